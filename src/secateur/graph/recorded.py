"""What a recording holds: values, the calls that made them, and where in the source each stands."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.graph.sizes import Attribute, Expression
from secateur.types import Ints


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor met while recording: ``weight`` if it was made from parameters and buffers alone."""

    index: int
    shape: tuple[int, ...]
    weight: bool
    integral: bool

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass(frozen=True, eq=False)
class Place:
    """Where in the model and in its source a call was made."""

    module: str
    file: str
    number: int

    @property
    def line(self) -> str:
        """``file.py:12``, the file told from its package on."""
        return f"{_short(self.file)}:{self.number}"


NOWHERE = Place("", "?", 0)


@functools.cache
def _short(file: str) -> str:
    parts = Path(file).parts
    anchors = [i for i, p in enumerate(parts) if p in ("site-packages", "src")]
    return "/".join(parts[anchors[-1] + 1 :] if anchors else parts[-2:])


@dataclass(frozen=True, eq=False)
class Call:
    """One ATen call.

    Attributes:
        op: qualified name without overload, such as ``aten::mm``.
        args: argument name -> value, defaults filled in; tensors are `Value`. inputs: these, in order.
        outs: its tensor outputs, in order (None for an output that is not a tensor).
        api: the torch function that the model's code called. sizes: the ints in that call, with their memory.
        pointwise: torch tags the op as elementwise.
    """

    op: str
    args: dict[str, Any]
    inputs: tuple[Value, ...]
    outs: tuple[Value | None, ...]
    place: Place
    api: str
    sizes: tuple[int, ...]
    pointwise: bool
    nth: int | None = None  # how many calls of the same torch function the module's forward made before
    turn: int | None = None  # how many the whole pass made before

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def out(self) -> Value:
        """The first output."""
        assert self.outs[0] is not None
        return self.outs[0]


@dataclass(frozen=True, eq=False)
class Graph:
    """What a model does on an example.

    Attributes:
        calls: in order. shapes: of every value, by its index.
        tensors: parameter or buffer name -> value; names of one shared tensor share a value.
        floating: names whose entries are floats. constants: entries of the integer buffers, by name.
        literals: integer tensors that the code wrote out, by the index of their value.
        outputs: what the model returned. escapes: sizes that became numbers in arithmetic, and where.
        fake: recorded on fake tensors. attributes: value of every int attribute an expression reads.
    """

    calls: tuple[Call, ...]
    shapes: tuple[tuple[int, ...], ...]
    tensors: dict[str, Value]
    parameters: frozenset[str]
    floating: frozenset[str]
    constants: dict[str, Ints]
    itemsize: dict[str, int]
    outputs: tuple[Value, ...]
    escapes: tuple[tuple[Expression, Place], ...]
    attributes: dict[Attribute, int]
    fake: bool
    literals: dict[int, Ints] = field(default_factory=dict)
