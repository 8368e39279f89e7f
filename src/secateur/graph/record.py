"""Record what a model does: one pass on fake tensors, every ATen call written down."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from secateur.calling import as_call, modules_of, named_tensors, run, tensors_of
from secateur.errors import TraceError, brief
from secateur.graph.caches import forget
from secateur.graph.recorded import Call, Graph, Value
from secateur.graph.recorder import Recorder
from secateur.graph.scripts import call, outcome
from secateur.graph.shells import call_op, fake_of, no_garbage_collection
from secateur.graph.sizes import (
    Attribute,
    Extent,
    Size,
    leaves,
    plain,
    remembering,
)
from secateur.graph.wholes import WHOLES
from secateur.graph.wider import Wider, wider
from secateur.types import Example

_ARITHMETIC = frozenset(
    (
        "add sub rsub mul rmul div truediv rtruediv pow rpow true_divide floordiv tensor full "
        "fill imul iadd itruediv rdiv radd idiv eq lt le gt ge clamp"
    ).split()
)
_DEVICE = torch.ops.prim.device.default
_QUESTIONS = frozenset((Tensor.dim, Tensor.ndim.__get__, Tensor.dtype.__get__, Tensor.device.__get__))  # type: ignore[attr-defined]
_READS = frozenset(("tolist", "numpy", "__array__"))
_LIKE = frozenset(("view_as", "reshape_as", "expand_as"))


class _Dispatch(TorchDispatchMode):
    """Writes down every ATen call."""

    def __init__(self, recorder: Recorder, fakes: FakeTensorMode | None) -> None:
        super().__init__()
        self.recorder = recorder
        self.fakes = fakes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper that would see to it costs as much as the record

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is _DEVICE and isinstance(args[0], FakeTensor):  # asked by C++ at every turn
            return args[0].fake_device
        kwargs = kwargs or {}
        out = op(*args, **kwargs) if self.fakes is None else call_op(self.fakes, op, args, kwargs)
        r = self.recorder
        if r.silent:
            return out
        name, arguments, pointwise = r.schema(op)
        if name.startswith("prim::"):  # a question about a tensor, not a computation
            return out
        bound: dict[str, Any] = {}
        inputs: list[Value] = []

        for i, (key, default, only) in enumerate(arguments):
            given = kwargs.get(key, default) if only or i >= len(args) else args[i]
            bound[key] = r.enter(given, inputs)
        r.write(name, bound, inputs, out, pointwise)
        if name == "aten::lift_fresh" and not isinstance(args[0], FakeTensor) and args[0].dtype == torch.long:
            r.literals[r.value(out).index] = args[0]
        return out


class _Function(TorchFunctionMode):
    """Gives sizes a memory, and remembers which ints the model's code passed to which function."""

    def __init__(self, recorder: Recorder, fakes: FakeTensorMode | None) -> None:
        super().__init__()
        self.recorder = recorder
        self.fakes = fakes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            return func(*args, **kwargs)
        r = self.recorder
        name: str = getattr(func, "__name__", "")
        if name == "size" or getattr(func, "__self__", None) is torch.Tensor.shape:
            return self.sized(args[0], func(*args, **kwargs), args[1:] or tuple(kwargs.values()))
        if name in ("numel", "nelement"):
            product: int = 1
            for d, n in enumerate(args[0].shape):
                product = Size(int(n), Extent(r.value(args[0]).index, d), r.escape) * product
            return product
        outer = r.api, r.sizes, r.place, r.nth, r.turn
        r.api, r.sizes, r.place = name, tuple(_ints((args, kwargs), [])), r.here()
        r.nth, r.turn = r.count(func, name)
        if name in _READS:
            v = r.value(args[0])
            r.calls.append(Call("secateur::read", {"self": v}, (v,), (), r.place, name, (), False))
        if name in _LIKE:
            other = args[1] if len(args) > 1 else kwargs["other"]
            r.sizes = tuple(self.sized(other, other.shape, ()))
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            query = r.value(args[0] if args else kwargs["query"])
            r.write("secateur::default_scale", {"query": query}, [query], (), pointwise=False)
        if name.strip("_") in _ARITHMETIC:
            for size in r.sizes:
                if isinstance(size, Size):
                    r.escapes.append((size.source, r.place))
        try:
            if name in WHOLES:
                return self.whole(name, func, args, kwargs)
            return func(*args, **kwargs) if self.fakes is None else call(r, self.fakes, func, args, kwargs)
        finally:
            r.api, r.sizes, r.place, r.nth, r.turn = outer

    def whole(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Write down a torch function as one call."""
        r = self.recorder
        inputs: list[Value] = []
        bound = {key: r.enter(given, inputs) for key, given in WHOLES[name](*args, **kwargs).items()}
        bound["owner"] = r.kinds.get(r.stack[-1])
        args, kwargs = tree_map(lambda a: plain(a) if isinstance(a, Size) else a, (args, kwargs))
        r.silent = True
        try:
            out = func(*args, **kwargs) if self.fakes is None else outcome(r, self.fakes, func, args, kwargs)
        finally:
            r.silent = False
        r.write(f"secateur::{name}", bound, inputs, out, pointwise=False)
        return out

    def sized(self, tensor: Tensor, result: Any, asked: tuple[Any, ...]) -> Any:
        r, index = self.recorder, self.recorder.value(tensor).index
        if isinstance(result, int):
            return Size(result, Extent(index, asked[0] % tensor.dim()), r.escape)
        return torch.Size([Size(int(n), Extent(index, d), r.escape) for d, n in enumerate(result)])


def _ints(items: Iterable[Any], found: list[int]) -> list[int]:
    """The ints among the arguments of a function, in order; bools are none."""
    for item in items:
        kind = item.__class__
        if kind is int or kind is Size:
            found.append(item)
        elif kind is tuple or kind is list or kind is torch.Size:
            _ints(item, found)
        elif kind is dict:
            _ints(item.values(), found)
        elif kind is slice:
            _ints((item.start, item.stop, item.step), found)
        elif isinstance(item, int) and kind is not bool:
            found.append(item)
        elif isinstance(item, (list, tuple)):
            _ints(item, found)
    return found


@contextlib.contextmanager
def _watching(model: nn.Module, recorder: Recorder, more: Wider) -> Iterator[dict[Attribute, int]]:
    """Evaluation mode, module paths on a stack, attributes that remember; all put back afterwards."""
    registered = modules_of(model)
    modules = {**more.parts.modules, **registered}
    recorder.kinds = {name: type(module) for name, module in modules.items()}
    names = {id(m): n for n, m in modules.items()}
    fast = torch.backends.mha.get_fastpath_enabled()

    def enter(module: nn.Module, args: Any) -> None:
        recorder.stack.append(names.get(id(module), recorder.stack[-1]))
        recorder.counts.append(Counter())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        recorder.stack.pop()
        recorder.counts.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque kernel otherwise
    try:
        with remembering(modules, recorder.escape) as attributes:
            for module in registered.values():  # not those that ``model.eval()`` does not reach
                module.__dict__["training"] = False
            with more.remembering(model, recorder.values, recorder.escape, attributes):
                yield attributes
    finally:
        forget(modules.values())
        before.remove()
        after.remove()
        torch.backends.mha.set_fastpath_enabled(fast)


def _on_fakes(model: nn.Module, examples: Sequence[Example], recorder: Recorder) -> list[Value]:
    """Fake tensors: shapes and devices, no arithmetic and no memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode._allow_unsafe_data_ptr_access = False  # there is nothing at an address: writing to it ends the process
    fakes = [
        fake_of(mode, e) if isinstance(e, Tensor) else tree_map(functools.partial(fake_of, mode), e) for e in examples
    ]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was = logger.disabled
    logger.disabled = True  # what has no fake kernel is recorded on real tensors next
    try:
        with mode:
            return _run(model, fakes, recorder, mode)
    finally:
        logger.disabled = was


def _on_tensors(model: nn.Module, examples: Sequence[Example], recorder: Recorder) -> list[Value]:
    """Real tensors, for ops without a fake kernel and for branches on values."""
    state = {n: b.detach().clone() for n, b in model.named_buffers()}
    try:
        return _run(model, examples, recorder)
    finally:
        for n, b in model.named_buffers():  # a real pass may write into them
            if n in state and b.shape == state[n].shape:
                b.copy_(state[n])


def _run(
    model: nn.Module, examples: Sequence[Example], recorder: Recorder, fakes: FakeTensorMode | None = None
) -> list[Value]:
    outputs: list[Value] = []
    for example in examples:
        recorder.counts = [Counter()]
        with _Dispatch(recorder, fakes), _Function(recorder, fakes):
            out = run(model, example)
        outputs += [recorder.value(t) for t in tensors_of(out)]
    return outputs


Way: TypeAlias = Callable[[nn.Module, Sequence[Example], Recorder], list[Value]]


def _record(model: nn.Module, examples: Sequence[Example], way: Way, more: Wider | None = None) -> Graph:
    recorder, (parameters, buffers) = Recorder(), named_tensors(model)
    named = {**parameters, **buffers}
    tensors = {name: recorder.value(t, weight=True) for name, t in named.items()}
    with no_garbage_collection(), _watching(model, recorder, more or Wider()) as known, torch.no_grad():
        outputs = way(model, examples, recorder)
    sources = [size.source for call in recorder.calls for size in call.sizes if isinstance(size, Size)]
    sources += [source for source, _ in recorder.escapes]
    attributes = {leaf for source in sources for leaf in leaves(source) if isinstance(leaf, Attribute)}
    integers = {n: named[n] for n, v in tensors.items() if v.integral}
    integers = {n: t for n, t in integers.items() if t.dtype == torch.long and t.device.type != "meta"}
    graph = Graph(
        calls=tuple(recorder.calls),
        shapes=tuple(recorder.shapes),
        tensors=tensors,
        parameters=frozenset(parameters),
        floating=frozenset(n for n, v in tensors.items() if not v.integral),
        constants={n: np.asarray(t.detach().cpu().numpy()) for n, t in integers.items()},
        literals={i: np.asarray(t.detach().cpu().numpy()) for i, t in recorder.literals.items()},
        itemsize={n: t.element_size() for n, t in named.items()},
        outputs=tuple(outputs),
        escapes=tuple(recorder.escapes),
        attributes={a: known[a] for a in attributes},
        fake=way is not _on_tensors,
    )
    recorder.let_go()
    found = (
        wider(model, {id(t) for t in named.values()}, recorder.homes.values(), recorder.escapes)
        if more is None
        else None
    )
    if found is not None:
        with contextlib.suppress(Exception):  # the first look stands
            return _record(model, examples, way, found)
    return graph


def trace(model: nn.Module, example: Example, also: Sequence[Example] = ()) -> Graph:
    """Record every ATen call that the model makes on an example; the model is left as it was.

    One pass in evaluation mode on fake tensors (no arithmetic, no memory), on real ones where an op has no fake
    kernel or a branch asks for a value. Time and memory grow with the number of calls, not with the weights.

    Args:
        model: any module.
        example: what its ``forward`` takes.
        also: further examples (other lengths, masks, batch sizes); what any of them does constrains the cut.

    Raises:
        TraceError: the model does not run on an example.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> [call.op for call in graph.calls if call.op != "aten::t"]
        ['aten::addmm', 'aten::relu', 'aten::addmm']
    """
    examples = [example, *also]
    for e in examples:
        as_call(e)
    failed: list[Exception] = []
    for way in (_on_fakes, _on_tensors):
        try:
            return _record(model, examples, way)
        except Exception as error:
            failed.append(error)
    given = [tuple(t.shape) for t in tensors_of(as_call(example))]
    raise TraceError(
        f"{type(model).__name__} does not run on the example (tensor shapes {given}): {brief(failed[-1])}. "
        "Give what its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments. "
        f"(On fake tensors: {brief(failed[-2])})"
    ) from failed[-1]
