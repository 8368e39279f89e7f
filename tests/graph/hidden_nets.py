"""Nets as frameworks on top of torch build them: layers in lists, tensors in objects, sizes checked against specs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def standard(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape of plain ints."""
    made = []
    for d in shape:
        d = int(d)
        if d < 0:
            raise ValueError(f"negative: {shape}")
        made.append(d)
    return tuple(made)


class Spec:
    """What a layer asks of its input."""

    def __init__(self, rank: int, axes: dict[int, int]) -> None:
        self.rank, self.axes = rank, axes

    def check(self, x: Tensor) -> None:
        shape = standard(x.shape)
        for axis, size in self.axes.items():
            if shape[axis] not in {size, None}:
                raise ValueError(f"axis {axis} must be {size}, got {shape}")


class Variable:
    """Holds a parameter, and says its shape."""

    def __init__(self, value: nn.Parameter) -> None:
        self.value = value
        self._shape = tuple(value.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape


class Tracked(list[Any]):
    """A list that tells its tracker what it gets."""

    def __init__(self, items: Sequence[Any], tracker: Tracker) -> None:
        self.tracker = tracker
        super().__init__(items)

    def append(self, item: Any) -> None:
        self.tracker.told(item)
        super().append(item)

    def extend(self, items: Any) -> None:
        for item in items:
            self.append(item)


class Tracker:
    """Closed once a model is built."""

    def __init__(self) -> None:
        self.open = True

    def told(self, item: Any) -> None:
        if not self.open:
            raise ValueError(f"{item} comes too late")


class Dense(nn.Module):
    """A linear layer whose weights lie in objects and whose class is copied by its configuration."""

    def __init__(self, given: int, units: int, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.config = (given, units)
        self.activation = activation
        self._kernel = Variable(nn.Parameter(torch.randn(given, units) / given**0.5))
        self._bias = Variable(nn.Parameter(torch.randn(units) / 4))
        self._input_spec = [Spec(2, {-1: given})]
        forward = self.again

        def again(*shape: int) -> Dense:
            assert self.config
            return forward(*shape)

        self.again = again  # type: ignore[method-assign]

    def again(self, *shape: int) -> Dense:
        """Another one."""
        return Dense(*shape)

    def variables(self) -> dict[str, nn.Parameter]:
        return {"kernel": self._kernel.value, "bias": self._bias.value}

    def __reduce__(self) -> Any:
        return type(self), self.config

    def __call__(self, x: Tensor) -> Tensor:  # no hooks
        self._input_spec[0].check(x)
        if x.shape[1] != self._kernel.shape[0]:
            raise ValueError("the kernel does not fit")
        return self.activation(x @ self._kernel.value + self._bias.value)


class Stack(nn.Module):
    """Layers in a list; their parameters are its own, by their paths."""

    def __init__(self, widths: Sequence[int] = (6, 12, 10, 3)) -> None:
        super().__init__()
        self.widths = list(widths)
        self.tracker = Tracker()
        made = [Dense(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        self.layers = Tracked(made, self.tracker)
        named = {f"{i}/{name}": p for i, layer in enumerate(made) for name, p in layer.variables().items()}
        self.owned = nn.ParameterDict(named)
        self.tracker.open = False

    def __reduce__(self) -> Any:
        return type(self), (self.widths,)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Rebuilt(nn.Module):
    """Copies itself by its configuration, tensors and all."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Rebuilt:
        made = Rebuilt(self.width)
        made.load_state_dict(self.state_dict())
        return made


class Bound(Rebuilt):
    """Would compute with the original's weights once it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.where = _Opaque(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.where.held(x)))


class _Opaque:
    __slots__ = ("held",)

    def __init__(self, held: nn.Module) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict[int, Any]) -> _Opaque:
        return self


class Unhooked(nn.Module):
    """Called past its hooks, so that no size in its code can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def __call__(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)).view(len(x), 2, 4)
        return self.out(h.transpose(1, 2).reshape(len(x), 8))
