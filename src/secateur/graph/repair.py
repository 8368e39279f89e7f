"""Constants in the code: the values they must take after a cut, or why they cannot."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from secateur.graph.axes import COMPARISONS, Axes, Expected
from secateur.graph.sizes import Arithmetic, Attribute, Expression, Extent, evaluate, leaves
from secateur.types import Bools, Ints

Sizes: TypeAlias = dict[tuple[str, str, int, int], tuple[int, int]]
"""(module, torch function, which call, which int) -> (what the code passes after the cut, what it must be)."""


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

    def check(self, removed: Bools) -> tuple[dict[Attribute, int], Sizes, list[str]]:
        """New values of the attributes for a cut (bool by root), sizes to replace, and what cannot be met.

        Attributes follow where all of their uses can; sizes that can be replaced where they are passed on do so.
        """
        if not len(self._roots):
            return {}, {}, []
        gone = np.add.reduceat(removed[self._roots].astype(np.int64), self._starts)
        kept = [*(self._lengths - gone).tolist(), 0]  # the last: no axis
        of, axis = self._readers
        touched = set(of[np.append(gone > 0, False)[axis]].tolist())
        found = self._try(kept, touched, follow=True)
        if found[2]:
            other = self._try(kept, touched, follow=False)
            found = found if other[2] else other
        return found

    def _try(self, kept: list[int], touched: set[int], follow: bool) -> tuple[dict[Attribute, int], Sizes, list[str]]:
        """``follow``: attributes take part although every size that they set could be replaced."""
        bad: list[str] = []
        new = self._attributes(kept, touched, follow, bad)
        changed = {a: n for a, n in new.items() if n != self.attributes[a]}
        sizes: dict[tuple[str, str, int, int], tuple[int, int]] = {}

        def read(leaf: Attribute | Extent) -> int:
            if isinstance(leaf, Attribute):
                return new.get(leaf, self.attributes[leaf])
            return kept[self._axis_of[leaf]] if leaf in self._axis_of else self._fixed[leaf]

        for i in sorted(touched.union(*(self._users[a] for a in changed))):
            e, wanted = self.expected[i], self._count(kept, i)
            try:
                got = evaluate(e.source, read)
            except ZeroDivisionError:
                bad.append(f"the size {_words(e.source)} in {e.api} would divide by nothing, {_at(e)}")
                continue
            if wanted < 1 and e.ids.size:
                bad.append(f"the size {_words(e.source)} in {e.api} would become nothing, {_at(e)}")
            elif got != wanted and e.slot and any(leaf in self._fixed for leaf in leaves(e.source)):
                bad.append(f"the size {_words(e.source)} in {e.api} depends on the input too, {_at(e)}")
            elif e.slot:
                before = sizes.setdefault((e.place.module, *e.slot), (got, wanted))
                if before != (got, wanted):
                    bad.append(f"the size {_words(e.source)} in {e.api} is one for {before[1]} and {wanted}, {_at(e)}")
            elif got != wanted and _compares(e.source):
                bad.append(f"{_words(e.source)} would come out otherwise, {_at(e)}")
            elif got != wanted:
                bad.append(f"the size {_words(e.source)} in {e.api} would be {got} and must be {wanted}, {_at(e)}")
        return changed, {slot: (got, wanted) for slot, (got, wanted) in sizes.items() if got != wanted}, bad

    def _count(self, kept: list[int], i: int) -> int:
        return int(kept[self._own[i]] + self.expected[i].constant)

    def _attributes(self, kept: list[int], touched: set[int], follow: bool, bad: list[str]) -> dict[Attribute, int]:
        """What each attribute must be: a size that is an attribute alone says so."""
        new: dict[Attribute, int] = {}
        for i in sorted(touched):
            a = self.expected[i].source
            if not isinstance(a, Attribute) or a in new:
                continue
            own = [j for j in self._users[a] if self.expected[j].source == a]
            must = {self._count(kept, j): j for j in own if not self.expected[j].slot}
            if a in self._as_number:
                must.setdefault(self.attributes[a], i)
            if len(must) > 1:
                one, two, *_ = must
                why = "is used as a number in arithmetic" if a in self._as_number else f"is one for {one} and {two}"
                bad.append(f"{a} {why}, {_at(self.expected[must[two]])}")
            if must:
                new[a] = next(iter(must))
            elif follow:
                new[a] = self._count(kept, i)
        return new


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
