"""What a torch function does to tensors of given shapes is recorded once a process, then read from memory.

A script is that memory: the ATen calls between a function's arguments and what it returns. It is kept where the
function is torch's own and everything that it saw is in its key: shapes, strides, types, devices, and every other
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from secateur.graph.recorded import Call, Value
from secateur.graph.recorder import Recorder
from secateur.graph.shells import Shell, fake, shell_of
from secateur.graph.sizes import Size, plain

MOST = 100_000
_known: dict[Any, Script] = {}
_outcomes: dict[Any, tuple[Any, list[Shell | None]]] = {}


@dataclass(frozen=True)
class _Ref:
    """Stands for a value: the function's tensor arguments come first, then what was made, in order."""

    number: int


@dataclass(frozen=True)
class _Step:
    """One ATen call. ``refs``: arguments that hold values. ``reads``: these values. ``outs``: what comes out."""

    op: str
    args: dict[str, Any]
    refs: tuple[str, ...]
    reads: tuple[int, ...]
    outs: tuple[int | None, ...]
    pointwise: bool


@dataclass(frozen=True)
class Script:
    """A function's calls. ``made``: shape, integral of each new value. ``results``: (value, shell and facts if new)."""

    steps: tuple[_Step, ...]
    made: tuple[tuple[tuple[int, ...], bool], ...]
    container: Callable[[list[Tensor]], Any] | None
    results: tuple[tuple[int, tuple[Shell, tuple[Any, ...]] | None], ...]


def call(r: Recorder, mode: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` under a fake tensor mode, written down by the dispatch mode or from memory.

    Outputs from memory carry no aliasing: shapes, strides, types and devices are all that a recording asks for.
    """
    given: dict[int, Tensor] = {}
    try:
        key = (func, _context(), _facts((args, kwargs), given, r))
        script = _known.get(key)
    except (TypeError, _Unsure):
        return func(*args, **kwargs)
    tensors = list(given.values())
    values = [r.value(t) for t in tensors]
    if script is not None:
        return _read(script, r, mode, tensors, values)
    calls, escapes = len(r.calls), len(r.escapes)
    out = made_by(r, func, args, kwargs)
    if len(r.escapes) == escapes and _is_torchs(func):
        script = _written(r, r.calls[calls:], values, out)
        if script is not None and (func, _context(), _facts((args, kwargs), {}, Recorder())) == key:
            if len(_known) > MOST:
                _known.clear()
            _known[key] = script
    return out


def made_by(r: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)``; torch's own checks of sizes are no decision of the model's code, and not heard."""
    if r.api.endswith("_"):  # in place: of shapes too, it may be
        r.facts.clear()
    if _is_torchs(func) and any(size.__class__ is Size for size in r.sizes):
        return func(*_plainly(args), **_plainly(kwargs))
    return func(*args, **kwargs)


def outcome(r: Recorder, mode: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` where nothing is written down: from memory, if all that it returned was new."""
    given: dict[int, Tensor] = {}
    try:
        key = (func, "outcome", _context(), _facts((args, kwargs), given, r))
    except (TypeError, _Unsure):
        return func(*args, **kwargs)
    known = _outcomes.get(key)
    if known is None:
        out = func(*args, **kwargs)
        container = _container(out)
        items = [out] if container is None else out
        if all((isinstance(i, Tensor) and id(i) not in given) or i is None for i in items):
            shells = [None if i is None else shell_of(i) for i in items]
            if all((i is None) == (shell is None) for i, shell in zip(items, shells, strict=True)):
                _outcomes[key] = container, shells
        return out
    container, shells = known
    made = [None if shell is None else fake(mode, shell) for shell in shells]
    return made[0] if container is None else container(made)


class _Unsure(Exception):
    """More than the facts could matter."""


def _tensor_facts(item: Tensor) -> tuple[Any, ...]:
    fake = item.__class__ is FakeTensor
    knows = fake and item.constant is not None  # type: ignore[attr-defined] # its value, which may be asked for
    if knows or item.dtype.is_complex or item.layout is not torch.strided:
        raise _Unsure
    device = item.fake_device if fake else item.device  # type: ignore[attr-defined]
    return item.shape, item.stride(), item.dtype, device, item.requires_grad


def _facts(item: Any, given: dict[int, Tensor], r: Recorder) -> Any:
    """What a function can know of an argument, hashable; different tensors are listed in order."""
    kind = item.__class__
    if kind is FakeTensor or kind is nn.Parameter or kind is Tensor:
        at = id(item)
        facts = r.facts.get(at) or _tensor_facts(item)
        if at in r.values:  # it stays alive: nothing else will have its id
            r.facts[at] = facts
        if at not in given:
            given[at] = item
        return (len(given) - 1 if next(reversed(given)) == at else list(given).index(at), facts)
    if kind is int or item is None:
        return item
    if kind is bool:
        return (kind, item)  # equal to an int
    if kind is float:
        return (kind, repr(item))  # zero has two signs
    if kind is tuple or kind is list or kind is torch.Size:
        return (kind, *[x if x.__class__ is int else _facts(x, given, r) for x in item])
    if kind is dict:
        return (kind, *[(k, _facts(v, given, r)) for k, v in item.items()])
    if kind is Size:
        return plain(item)  # comparing it would be heard
    if kind is slice:
        return (kind, *[_facts(x, given, r) for x in (item.start, item.stop, item.step)])
    if isinstance(item, (Tensor, int, tuple, list)) or callable(item):  # subclasses, and what may have a state
        raise _Unsure
    return (kind, item)


def _plainly(item: Any) -> Any:
    """Arguments without the memory of their sizes."""
    kind = item.__class__
    if kind is Size:
        return plain(item)
    if kind in (tuple, list, torch.Size):
        return kind([_plainly(x) for x in item])
    if kind is dict:
        return {k: _plainly(v) for k, v in item.items()}
    if kind is slice:
        return slice(_plainly(item.start), _plainly(item.stop), _plainly(item.step))
    return item


def _context() -> tuple[Any, ...]:
    """Switches that change which calls a function makes."""
    c = torch._C
    modes = c._len_torch_function_stack(), c._len_torch_dispatch_stack()  # ours is off here; the dispatch and the fakes
    if modes != (0, 2) or c._is_any_autocast_enabled() or c._functorch.peek_interpreter_stack() is not None:
        raise _Unsure
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise _Unsure
    attention = c._get_math_sdp_enabled(), c._get_flash_sdp_enabled(), c._get_mem_efficient_sdp_enabled()
    kernels = c._get_mkldnn_enabled(), c._get_cudnn_enabled(), c._get_cudnn_sdp_enabled()
    return torch.get_default_dtype(), *attention, *kernels


def _is_torchs(func: Any) -> bool:
    """Methods have no module. Setting an attribute changes more than a recording sees; custom ops are somebody's."""
    module = (getattr(func, "__module__", None) or "torch").split(".")
    custom = module[:2] == ["torch", "_ops"] and module[2:3] not in (["aten"], ["prims"])
    return module[0] == "torch" and not custom and getattr(func, "__name__", "") != "__set__"


def _read(script: Script, r: Recorder, mode: FakeTensorMode, tensors: list[Tensor], values: list[Value]) -> Any:
    """Write down a script's calls, and make what the function returns."""
    made = iter(script.made)
    for step in script.steps:
        reads = [values[i] for i in step.reads]
        weight = bool(reads) and all(v.weight for v in reads)
        args = dict(step.args)
        for name in step.refs:
            args[name] = _filled(args[name], values)
        for i in step.outs:
            if i == len(values):
                shape, integral = next(made)
                values.append(r.fresh(shape, weight, integral))
        outs = tuple([None if i is None else values[i] for i in step.outs])
        r.calls.append(Call(step.op, args, tuple(reads), outs, r.place, r.api, r.sizes, step.pointwise, r.nth, r.turn))
    out = []
    for i, new in script.results:
        if new is None:
            out.append(tensors[i])
        else:
            out.append(tensor := fake(mode, new[0]))
            r.holds(tensor, values[i])
            if new[1]:
                r.facts[id(tensor)] = new[1]
    return out[0] if script.container is None else script.container(out)


def _filled(item: Any, values: list[Value]) -> Any:
    if item.__class__ is _Ref:
        return values[item.number]
    return [_filled(x, values) for x in item] if item.__class__ is list else item


def _written(r: Recorder, calls: Sequence[Call], inputs: Sequence[Value], out: Any) -> Script | None:
    """The script of what was just recorded; None where it used or returned anything that no call made."""
    numbers = {v.index: i for i, v in enumerate(inputs)}
    count = len(inputs)
    steps: list[_Step] = []
    made: list[tuple[tuple[int, ...], bool]] = []
    for c in calls:
        reads = [numbers.get(v.index) for v in c.inputs]
        if None in reads:
            return None
        args = {name: _emptied(a, numbers) for name, a in c.args.items()}
        refs = tuple(name for name, a in args.items() if any(True for _ in _refs(a)))
        outs = []
        for v in c.outs:
            if v is not None and v.index not in numbers:
                numbers[v.index] = count + len(made)
                made.append((v.shape, v.integral))
            outs.append(None if v is None else numbers[v.index])
        steps.append(_Step(c.op, args, refs, tuple(i for i in reads if i is not None), tuple(outs), c.pointwise))
    container = _container(out)
    results: list[tuple[int, tuple[Shell, tuple[Any, ...]] | None]] = []
    for item in [out] if container is None else out:
        known = r.values.get(id(item)) if isinstance(item, Tensor) else None
        number = None if known is None else numbers.get(known.index)
        shell = None if number is None or number < count else shell_of(item)
        if number is None or (number >= count and shell is None):
            return None
        results.append(
            (number, None if shell is None else (shell, () if item.dtype.is_complex else _tensor_facts(item)))
        )
    return Script(tuple(steps), tuple(made), container, tuple(results))


def _container(out: Any) -> Callable[[list[Tensor]], Any] | None:
    """What puts several results together; None where one tensor is returned."""
    kind = type(out)
    return kind if kind in (tuple, list) or kind.__module__ == "torch.return_types" else None


def _emptied(item: Any, numbers: dict[int, int]) -> Any:
    if isinstance(item, Value):
        return _Ref(numbers[item.index])
    return [_emptied(x, numbers) for x in item] if isinstance(item, list) else item


def _refs(item: Any) -> Iterator[_Ref]:
    if isinstance(item, _Ref):
        yield item
    elif isinstance(item, list):
        for x in item:
            yield from _refs(x)
