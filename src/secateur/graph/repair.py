"""Constants in the code: the values they must take after a cut, or why they cannot."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secateur.graph.axes import COMPARISONS, Axes, Expected
from secateur.graph.sizes import Arithmetic, Attribute, Expression, Extent, evaluate, leaves
from secateur.types import Bools, Ints


@dataclass(frozen=True, eq=False)
class Repairs:
    """The sizes written in the code, ready to be checked against any cut.

    ``check`` costs one pass over the ids of those sizes, and evaluates only the expressions that a cut touches.
    """

    expected: tuple[Expected, ...]
    attributes: Mapping[Attribute, int]
    _roots: Ints  # of every axis that a size follows or reads, one after another
    _starts: Ints
    _lengths: Ints
    _own: tuple[int, ...]  # expected -> its axis among them, or -1
    _reads: tuple[tuple[int, ...], ...]  # expected -> axes its expression reads
    _axis_of: Mapping[Extent, int]
    _users: Mapping[Attribute, tuple[int, ...]]  # attribute -> expected that read it
    _as_number: frozenset[Attribute]
    _fixed: Mapping[Extent, int]  # sizes of untracked dimensions
    _ids: int  # how many there are in all

    @classmethod
    def of(cls, axes: Axes, root: Ints) -> Repairs:
        """Gather what a check needs."""
        vectors: list[Ints] = []
        axis_of: dict[Extent, int] = {}
        fixed: dict[Extent, int] = {}
        users: dict[Attribute, list[int]] = defaultdict(list)
        own, reads = [], []
        for i, e in enumerate(axes.expected):
            own.append(len(vectors) if e.ids.size else -1)
            if e.ids.size:
                vectors.append(root[e.ids])
            mine = []
            for leaf in leaves(e.source):
                if isinstance(leaf, Attribute):
                    users[leaf].append(i)
                    continue
                shape = axes.graph.shapes[leaf.value]
                ids = axes.ids.get(leaf.value, [None] * len(shape))[leaf.dim]
                if ids is None:
                    fixed[leaf] = shape[leaf.dim]
                    continue
                if leaf not in axis_of:
                    axis_of[leaf] = len(vectors)
                    vectors.append(root[ids])
                mine.append(axis_of[leaf])
            reads.append(tuple(mine))
        lengths = np.array([len(v) for v in vectors], np.int64)
        return cls(
            tuple(axes.expected),
            axes.graph.attributes,
            np.concatenate(vectors) if vectors else np.zeros(0, np.int64),
            (np.cumsum(lengths) - lengths).astype(np.int64),
            lengths,
            tuple(own),
            tuple(reads),
            axis_of,
            {a: tuple(u) for a, u in users.items()},
            frozenset(
                a for s, _ in axes.graph.escapes for a in leaves(s) if isinstance(a, Attribute) and not _compares(s)
            ),
            fixed,
            axes.n,
        )

    @functools.cached_property
    def _readers(self) -> tuple[Ints, Ints]:
        """(expected, axis) of every axis that a size follows or reads."""
        pairs = [(i, j) for i, mine in enumerate(self._reads) for j in (self._own[i], *mine)]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def touched_by(self, roots: Ints) -> bool:
        """Whether any size written in the code depends on these roots."""
        return bool(self._depends[roots].any()) if len(self._roots) else False

    @functools.cached_property
    def _depends(self) -> Bools:
        depends = np.zeros(self._ids, bool)
        depends[self._roots] = True
        return depends

    def check(self, removed: Bools) -> tuple[dict[Attribute, int], list[str]]:
        """New values of the attributes for a cut (bool by root), and the sizes that cannot be met."""
        if not len(self._roots):
            return {}, []
        gone = np.add.reduceat(removed[self._roots].astype(np.int64), self._starts)
        kept = [*(self._lengths - gone).tolist(), 0]  # the last: no axis
        of, axis = self._readers
        touched = set(of[np.append(gone > 0, False)[axis]].tolist())
        new: dict[Attribute, int] = {}
        bad: list[str] = []

        def count(i: int) -> int:
            return int(kept[self._own[i]] + self.expected[i].constant)

        for i in sorted(touched):
            self._assign(self.expected[i], count(i), new, bad)
        for attribute in [a for a, n in new.items() if n != self.attributes[a]]:
            for i in self._users[attribute]:
                if i not in touched:
                    touched.add(i)
                    self._assign(self.expected[i], count(i), new, bad)

        def read(leaf: Attribute | Extent) -> int:
            if isinstance(leaf, Attribute):
                return new.get(leaf, self.attributes[leaf])
            return kept[self._axis_of[leaf]] if leaf in self._axis_of else self._fixed[leaf]

        for i in sorted(touched):
            e = self.expected[i]
            try:
                got = evaluate(e.source, read)
            except ZeroDivisionError:
                got = -1
            if got != count(i) and _compares(e.source):
                bad.append(f"{_words(e.source)} would come out otherwise, {_at(e)}")
            elif got != count(i):
                bad.append(f"the size {_words(e.source)} in {e.api} would be {got} and must be {count(i)}, {_at(e)}")
        return {a: n for a, n in new.items() if n != self.attributes[a]}, bad

    def _assign(self, e: Expected, count: int, new: dict[Attribute, int], bad: list[str]) -> None:
        """A size that is an attribute alone says what the attribute must be."""
        if not isinstance(e.source, Attribute):
            return
        if new.setdefault(e.source, count) != count:
            bad.append(f"{e.source} is one number for two sizes, {new[e.source]} and {count}, {_at(e)}")
        elif count != self.attributes[e.source] and e.source in self._as_number:
            bad.append(f"{e.source} is used as a number in arithmetic, {_at(e)}")


def _compares(source: Expression) -> bool:
    return isinstance(source, Arithmetic) and source.op.strip("_") in COMPARISONS


def _at(e: Expected) -> str:
    return f"in {e.place.module or 'the model'} at {e.place.line}"


def _words(source: Expression) -> str:
    if isinstance(source, Arithmetic):
        sign = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", **COMPARISONS}
        name = source.op.strip("_")
        left, right = _words(source.left), _words(source.right)
        if name not in sign:  # a reflected operator
            return f"({right} {sign[name[1:]]} {left})"
        return f"({left} {sign[name]} {right})"
    return f"shape[{source.dim}]" if isinstance(source, Extent) else str(source)
