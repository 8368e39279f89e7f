"""Ids for the positions of every axis, and the constraints between them.

Every position of every parameter axis has an integer id; every tensor carries one id vector a dimension, or None
where nothing can be cut. ``True`` means "removed". Three kinds of constraint between ids:

    x == y          tie    additions, contractions, elementwise ops, norm weights
    x == False      pin    outputs, unknown ops, sizes written as literals
    x == y or z     cell   a position of a merged axis goes when its row or its column goes
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from secateur.graph.recorded import NOWHERE, Call, Graph, Place, Value
from secateur.graph.resize import Slot
from secateur.graph.sizes import Attribute, Expression, Extent, Size, expression, leaves, plain
from secateur.types import Ints

Axis: TypeAlias = Ints | None
"""The ids along one dimension; None: not tracked, never cut."""

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
NOTHING: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Pin:
    """Ids that must stay, and why."""

    ids: Ints
    reason: str
    place: Place


@dataclass(frozen=True, eq=False)
class Expected:
    """A size written in the code that must equal the number of ids kept, plus a constant.

    ``slot``: where the size is passed to torch, if it can be replaced there (resize.py).
    """

    source: Expression
    ids: Ints
    place: Place
    api: str
    constant: int = 0
    slot: Slot | None = None


@dataclass(frozen=True, eq=False)
class Renumbered:
    """A buffer of positions that index an axis: its entries are renumbered after the cut."""

    buffer: str
    ids: Ints


class Axes:
    """Collects ids and constraints while the rules run over a graph; rules are its only callers."""

    def __init__(self, graph: Graph) -> None:
        self.n = 0
        self.ties: list[tuple[Ints, Ints]] = []
        self.cells: list[tuple[Ints, Ints, Ints]] = []
        self.pins: list[Pin] = []
        self.norms: list[Pin] = []  # statistics run over these: they stay if they are residual width (residual.py)
        self.expected: list[Expected] = []
        self.followed: set[Expression] = set()  # sizes of the call at hand that a rule has accounted for
        self.renumbered: list[Renumbered] = []
        self.labels: list[tuple[Ints, str]] = []
        self.rounded: list[tuple[Ints, int]] = []  # kernels want multiples of so many of these
        self.asked: frozenset[str] = frozenset()  # wishes in the table of rules, such as residual width
        self.chosen: list[Pin] = []  # a choice runs along these: they stay if they are no experts (rules/experts.py)
        self.least: list[tuple[Ints, int]] = []  # so many of these must stay
        self.points: dict[int, Ints] = {}  # value -> the axis that its entries number positions of
        self.vanishing: dict[int, int] = {}  # value -> a dim along which it is zero where something is cut
        self.inputs: list[Ints] = []  # weight axes that a contraction sums over
        self.work: list[tuple[int, tuple[Ints, ...]]] = []  # MACs: constant times kept counts
        self.births: list[int] = []  # first id of every fresh vector
        self.ids: dict[int, list[Axis]] = {}
        self.names: dict[int, str] = {}
        self.made_by: dict[int, str] = {}  # value -> the op that made it
        self.graph = graph
        self.place = NOWHERE
        self._used: set[int] = set()
        self._memo: dict[Any, Any] = {}
        self._factors: dict[bytes, tuple[Ints, ...]] = {}  # a merged axis -> its rows and columns
        for name, value in graph.tensors.items():
            if value.index not in self.ids:
                self.ids[value.index] = [self.fresh(k) for k in value.shape]
                self.names[value.index] = name

    def __getitem__(self, value: Value) -> list[Axis]:
        """The id vectors of a value's dimensions."""
        known = self.ids.get(value.index)
        return [None] * value.ndim if known is None else list(known)

    def fresh(self, n: int) -> Ints:
        """New ids."""
        self.births.append(self.n)
        self.n += n
        return np.arange(self.n - n, self.n)

    def pin(self, reason: str, *axes: Axis) -> None:
        """These positions stay."""
        for a in axes:
            if a is not None and a.size:
                self.pins.append(Pin(a.ravel(), reason, self.place))

    def over(self, reason: str, *axes: Axis) -> None:
        """Statistics run over these positions: over whatever is kept of them, unless they are residual width."""
        for a in axes:
            if a is not None and a.size:
                self.norms.append(Pin(a.ravel(), reason, self.place))

    def tie(self, a: Axis, b: Axis, reason: str = "meets an axis that is not tracked") -> None:
        """These positions go together, one by one; against an untracked axis they stay."""
        if a is None or b is None:
            self.pin(reason, a, b)
        elif a.size != b.size:
            self.pin(f"{reason}: {a.size} against {b.size} positions", a, b)
        elif a is not b:
            self.ties.append((a.ravel(), b.ravel()))

    def cell(self, rows: Ints, columns: Ints) -> Ints:
        """Ids of the cells of broadcast rows and columns."""
        rows, columns = np.broadcast_arrays(rows, columns)
        made = self.fresh(rows.size).reshape(rows.shape)
        self.cells.append((made.ravel(), rows.ravel(), columns.ravel()))
        return made

    @functools.cached_property
    def producers(self) -> dict[int, Call]:
        """Value -> the call that made it."""
        return {out.index: call for call in self.graph.calls for out in call.outs if out is not None}

    def is_used(self, value: Value) -> bool:
        """Whether anything comes of a value: another call, or an output of the model."""
        if not self._used:
            self._used = {v.index for call in self.graph.calls for v in call.inputs}
            self._used |= {v.index for v in self.graph.outputs}
        return value.index in self._used

    def round(self, reason: str, axis: Axis, multiple: int) -> None:
        """A kernel runs only where a multiple of so many of these positions is kept; any other number of them stays."""
        if axis is None:
            return
        if axis.size % multiple:
            self.pin(f"{reason}, {axis.size} as they are", axis)
        else:
            self.rounded.append((axis.ravel(), multiple))

    def label(self, axis: Axis, kind: str) -> None:
        """What the field calls these positions: ``head``, ``channel`` ..."""
        if axis is not None:
            self.labels.append((axis.ravel(), kind))

    def label_input(self, axis: Axis) -> None:
        """A contraction sums over these positions of a weight; where they are rows times columns, over both."""
        if axis is not None:
            self.inputs.append(axis)
            for part in self._factors.get(axis.tobytes(), ()):
                self.label_input(part)

    def count_macs(self, *dims: Axis | int, value: Sequence[int] = ()) -> None:
        """Work of a contraction: the product of the dims, given as ids or (where not tracked) as sizes in ``value``."""
        constant, live = 1, []
        for d, size in zip(dims, value, strict=True):
            if d is None or isinstance(d, int):
                constant *= size
            else:
                live.append(d.ravel())
        self.work.append((constant, tuple(live)))

    def expect(self, size: int | None, axis: Axis, call: Call, at: int | None = None, *, constant: int = 0) -> None:
        """The int in the code, ``call.sizes[at]`` where that is known, must be the number kept, plus a constant."""
        if axis is None or size is None or plain(size) == -1:
            return
        slot = None if at is None or call.nth is None else (call.api, call.nth, at)
        if isinstance(size, Size) or slot:
            self.followed.add(expression(size))
            self.expected.append(Expected(expression(size), axis.ravel(), call.place, call.api, constant, slot))
        else:
            self.pin(f"size {plain(size)} is written as a literal in {call.api or call.op}", axis)

    def stay(self, size: int, call: Call) -> None:
        """The int in the code must keep its value."""
        source = size.source if isinstance(size, Size) else None
        if source is None or source in self.followed:
            return
        self.followed.add(source)
        if any(self.follows(leaf) for leaf in leaves(source)):
            self.expected.append(Expected(source, NOTHING, call.place, call.api, plain(size)))

    def follows(self, leaf: Attribute | Extent) -> bool:
        """Whether what an expression reads can change with a cut."""
        return isinstance(leaf, Attribute) or self.ids_of(leaf) is not None

    def may_follow(self, size: Size) -> bool:
        """Whether a size in the code can change with a cut."""
        return any(self.follows(leaf) for leaf in leaves(size.source))

    def ids_of(self, source: Expression) -> Axis:
        """The ids behind the size of a tensor; None for any other expression."""
        known = self.ids.get(source.value) if isinstance(source, Extent) else None
        return None if known is None or not isinstance(source, Extent) else known[source.dim]

    def read(self, leaf: Attribute | Extent) -> int:
        """The value before any cut."""
        return self.graph.attributes[leaf] if isinstance(leaf, Attribute) else self.graph.shapes[leaf.value][leaf.dim]

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """Ids of the flattened block of dims."""
        live = [d for d, a in enumerate(axes) if a is not None]
        if not live:
            return None
        key = ("m", tuple(None if a is None else a.tobytes() for a in axes), tuple(sizes))
        if key not in self._memo:
            block: Ints | None = None
            for d in live:
                axis = axes[d]
                assert axis is not None
                shaped = axis.reshape([-1 if e == d else 1 for e in range(len(axes))])
                block = shaped if block is None else self.cell(block, shaped)
            assert block is not None
            flat = np.ascontiguousarray(np.broadcast_to(block, sizes).reshape(-1))
            self._memo[key] = flat
            if len(live) > 1:  # splitting it again finds the same rows and columns
                self._memo["s", flat.tobytes(), tuple(sizes)] = list(axes)
                self._factors[flat.tobytes()] = tuple(a for a in axes if a is not None)
        merged: Ints = self._memo[key]
        return merged

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Ids of each dim of a rectangular view of an axis."""
        if axis is None:
            return [None] * len(sizes)
        key = ("s", axis.tobytes(), tuple(sizes))
        if key not in self._memo:
            self._memo[key] = self._split(axis, tuple(sizes))
        return list(self._memo[key])

    def _split(self, axis: Ints, sizes: tuple[int, ...]) -> list[Axis]:
        block = axis.reshape(sizes)
        wide = [d for d, n in enumerate(sizes) if n > 1]
        varies = [d for d in wide if not (block == block.take([0], d)).all()]  # constant along a dim: repeated
        out: list[Axis] = [None] * len(sizes)
        if not varies and len(wide) != 1:
            self.pin("one position is repeated over several dims", axis)
        elif len(varies) <= 1:
            d = varies[0] if varies else wide[0]
            out[d] = block[tuple(slice(None) if e == d else 0 for e in range(len(sizes)))].copy()
        else:
            core = block[tuple(slice(None) if e in varies else 0 for e in range(len(sizes)))]
            acc: Ints | None = None
            for k, d in enumerate(varies):
                fresh = self.fresh(sizes[d])
                out[d] = fresh
                shaped = fresh.reshape([-1 if e == k else 1 for e in range(len(varies))])
                if acc is None:
                    acc = shaped
                elif k < len(varies) - 1:
                    acc = self.cell(acc, shaped)
                else:
                    rows, columns = np.broadcast_arrays(acc, shaped)
                    self.cells.append((core.ravel(), rows.ravel(), columns.ravel()))
        return out

    def join(self, values: Sequence[Value], shape: Sequence[int]) -> list[Axis]:
        """Ids of an elementwise result: operands broadcast from the right and are tied."""
        out: list[Axis] = [None] * len(shape)
        seen = [False] * len(shape)
        for v in values:
            axes = self[v]
            for i in range(1, v.ndim + 1):
                if v.shape[-i] == 1 and shape[-i] != 1:
                    continue
                if not seen[-i]:
                    out[-i], seen[-i] = axes[-i], True
                elif v.shape[-i] > 1 or axes[-i] is not None:
                    self.tie(out[-i], axes[-i], "is combined elementwise with an axis that is not tracked")
        return out
