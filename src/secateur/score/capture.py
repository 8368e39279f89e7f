"""See what a model feeds its weights: linear layers and convolutions of any rank, by function, never by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from secateur.calling import tensors_of
from secateur.types import Ints


@dataclass(frozen=True, eq=False)
class Contraction:
    """One use of a weight: ``y = W x + b`` over rows of ``x``.

    Attributes:
        weight, bias: parameter names (bias None where there is none).
        in_dim: the axis of the weight that is summed over. taps: columns a position of that axis owns.
        x, y: input and output as the model saw them. unfold: how a convolution meets its input.
        groups: of a convolution: outputs of the k-th see the k-th part of the input's channels alone.
    """

    weight: str
    bias: str | None
    in_dim: int
    taps: int
    x: Tensor
    y: Tensor
    unfold: Mapping[str, Any]
    groups: int = 1

    def rows(self, most: int | None = None) -> Tensor:
        """Input rows, shape (n, positions * taps); with ``most`` the evenly spaced ones of `every_nth`."""
        if not self.unfold:
            rows = self.x.reshape(-1, self.x.shape[-1])
            return rows if most is None else rows[:: every_nth(len(rows), most)]
        return unfolded(self.x, **self.unfold, most=most)

    def outputs(self, y: Tensor | None = None) -> Tensor:
        """Output rows, shape (n, outputs), in the order of `rows`."""
        y = self.y if y is None else y
        if self.unfold and y.dim() == len(self.unfold["kernel"]) + 2:
            y = y.movedim(1, -1)
        return y.reshape(-1, y.shape[-1])


def matrix(weight: Tensor, in_dim: int) -> Tensor:
    """A weight as (outputs, positions * taps)."""
    return weight.movedim(in_dim, 1).reshape(weight.shape[1 - in_dim], -1)


def from_matrix(new: Tensor, weight: Tensor, in_dim: int) -> Tensor:
    """Back to the shape of the weight (its summed axis may have shrunk)."""
    rest = weight.movedim(in_dim, 1).shape
    return new.reshape(rest[0], -1, *rest[2:]).movedim(1, in_dim)


def columns(index: Ints, taps: int) -> Tensor:
    """Columns of `matrix` that units own: (units, k) positions -> (units, k * taps).

    Example:
        >>> import numpy as np
        >>> columns(np.array([[0], [2]]), 2)
        tensor([[0, 1],
                [4, 5]])
    """
    base = torch.from_numpy(index)
    return (base[:, :, None] * taps + torch.arange(taps)).reshape(len(base), -1)


def every_nth(rows: int, most: int) -> int:
    """The step that leaves at most so many of the rows.

    Example:
        >>> every_nth(10, 4), every_nth(10, 10)
        (3, 1)
    """
    return max(-(-rows // most), 1)


def unfolded(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    most: int | None = None,
) -> Tensor:
    """Patches of an input (N, C, *space) as rows (N * positions, C * taps), taps last and fastest.

    With ``most`` only the rows of `every_nth`, and only these are copied: time and memory go with the rows returned.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> unfolded(x, (2, 2), (2, 2), (0, 0), (1, 1))[0]
        tensor([0., 1., 4., 5.])
    """
    k = len(kernel)
    pads = [p for d in reversed(range(k)) for p in (padding[d], padding[d])]
    x = F.pad(x, pads) if any(pads) else x
    for d in range(k):  # views alone
        x = x.unfold(2 + d, dilation[d] * (kernel[d] - 1) + 1, stride[d])[..., :: dilation[d]]
    x = x.permute(0, *range(2, 2 + k), 1, *range(2 + k, 2 + 2 * k))
    places = x.shape[: 1 + k]
    step = 1 if most is None else every_nth(math.prod(places), most)
    if step > 1:
        at = torch.arange(0, math.prod(places), step, device=x.device)
        x = x[torch.unravel_index(at, places)]
    return x.reshape(-1, math.prod(x.shape[-1 - k :]))


def version(tensor: Tensor) -> int:
    """How often a tensor was written to: the same object may hold other values later."""
    return -1 if tensor.is_inference() else tensor._version


class Enough(BaseException):
    """Everything wanted was seen: the rest of the forward pass is not needed."""


class Watch(TorchFunctionMode):
    """Calls ``seen(contraction)`` after every linear layer or ungrouped convolution on a named weight.

    ``every`` tells of grouped convolutions too, for which no single matrix stands, and of the products inside of
    ``F.multi_head_attention_forward``. ``stacked`` tells of matrices that are slices of a parameter of three axes, as
    those of experts are: slice 2 of ``up`` is named ``up[2]``. The pass ends, with `Enough`, where the weight ``last``
    is to be used: that is told of with the input in the place of the output.
    ``added(left, right)`` hears of every addition of two tensors before it happens (``+=`` writes over one of them):
    a residual stream shows itself there.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Callable[[Contraction], None],
        added: Callable[[Tensor, Tensor], None] | None = None,
        every: bool = False,
        stacked: bool = False,
        last: str | None = None,
    ) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        self.stacks: dict[int, tuple[str, Tensor]] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(p), name)
            if stacked and p.dim() == 3:
                self.stacks.setdefault(p.untyped_storage().data_ptr(), (name, p))
        self.seen, self.added, self.every = seen, added, every
        self.last = None if last is None else id(model.get_parameter(last))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the call on, and report it if it is one of ours."""
        kwargs = kwargs or {}
        if self.added is not None and func in _ADD and len(args) == 2 and not kwargs:
            left, right = args
            if isinstance(left, Tensor) and isinstance(right, Tensor):
                self.added(left, right)
        if self.every and func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        ends = (
            self.last is not None and func in _PRODUCTS and any(id(a) == self.last for a in (*args, *kwargs.values()))
        )
        out = args[0] if ends else func(*args, **kwargs)
        if func in _LINEAR:
            self._linear(args, kwargs, out)
        elif func in _CONV:
            self._conv(_CONV[func], args, kwargs, out)
        elif func in _MATMUL and len(args) == 2:
            self._report(args[0], args[1], None, 0, out)
        elif func is torch.addmm and len(args) == 3 and not kwargs:
            self._report(args[1], args[2], args[0], 0, out)
        if ends:
            raise Enough
        return out

    def _linear(self, args: Any, kwargs: Any, out: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        w = args[1] if len(args) > 1 else kwargs["weight"]
        b = args[2] if len(args) > 2 else kwargs.get("bias")
        self._report(x, w, b, 1, out)

    def _conv(self, rank: int, args: Any, kwargs: Any, out: Tensor) -> None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        x, w = given["input"], given["weight"]
        kernel = tuple(w.shape[2:])
        stride, dilation = (_tuple(given.get(k, 1), rank) for k in ("stride", "dilation"))
        padding = _padding(given.get("padding", 0), kernel, dilation)
        groups = int(given.get("groups", 1))
        if (groups != 1 and not self.every) or padding is None:
            return
        if x.dim() == rank + 1:  # one image without a batch
            x, out = x[None], out[None]
        unfold = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        self._report(x, w, given.get("bias"), 1, out, math.prod(kernel), unfold, groups)

    def _report(
        self,
        x: Any,
        w: Any,
        b: Any,
        in_dim: int,
        out: Tensor,
        taps: int = 1,
        unfold: Mapping[str, Any] = MappingProxyType({}),
        groups: int = 1,
    ) -> None:
        name = self.names.get(id(w))
        if name is None and self.stacks and isinstance(w, Tensor) and w.dim() == 2:
            name, in_dim = self._slice(w, in_dim)
        if name is not None and isinstance(x, Tensor) and w.dim() == (len(unfold["kernel"]) + 2 if unfold else 2):
            bias = self.names.get(id(b)) if b is not None else None
            self.seen(Contraction(name, bias, in_dim, taps, x, out, unfold, groups))

    def _slice(self, w: Tensor, in_dim: int) -> tuple[str | None, int]:
        """The name of a slice of a stack, and the axis of that slice (which may be used transposed) summed over."""
        name, stack = self.stacks.get(w.untyped_storage().data_ptr(), ("", w))
        if not name:
            return None, in_dim
        at, rest = divmod(int(w.storage_offset() - stack.storage_offset()), stack.stride(0))
        for turned, same in ((False, stack[0]), (True, stack[0].T)):
            if not rest and (w.shape, w.stride()) == (same.shape, same.stride()):
                return f"{name}[{at}]", 1 - in_dim if turned else in_dim
        return None, in_dim


class Uses(TorchFunctionMode):
    """Counts, by the first name of each parameter, the calls that make a tensor of it: ``uses.of[name]``.

    A weight that `Watch` tells of once and that is used more often is an embedding too, or fed in a way not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.of: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the call on, and count the parameters among its arguments, unless it gives one back as it is."""
        out = func(*args, **(kwargs or {}))
        if made := tensors_of(out):
            taken = {id(t) for t in tensors_of((args, kwargs or {}))} - {id(t) for t in made}
            self.of.update(self.names[i] for i in taken & self.names.keys())
        return out


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...] | None:
    """Zeros on either side of each dimension; None where the two sides differ."""
    if given == "valid":
        return (0,) * len(kernel)
    if given == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return _tuple(given, len(kernel))


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return given * rank if len(given) == 1 else given


def _unguarded(func: Any) -> Any:
    """A function of torch's own as it runs without a mode, which would take it for one call: its parts can be seen."""
    inside = {**func.__globals__, "has_torch_function": lambda *tensors: False}
    made = FunctionType(func.__code__, inside, func.__name__, func.__defaults__, func.__closure__)
    made.__kwdefaults__ = func.__kwdefaults__
    return made


_attention = _unguarded(F.multi_head_attention_forward)
_LINEAR = {F.linear}
_PRODUCTS = {F.linear, torch.addmm, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__}
_CONV = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_MATMUL = {torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__}
_ADD = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.add_, torch.Tensor.__iadd__}
