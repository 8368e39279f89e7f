"""How much of a model can be cut, by kind of unit, and what keeps the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from secateur.types import Bools, Frozen, Group


@dataclass(frozen=True)
class Whole:
    """A parameter with entries that no unit takes. ``entries``: how many; ``reason``, ``line``: what keeps them."""

    name: str
    entries: int
    reason: str
    line: str


@dataclass(frozen=True)
class Coverage:
    """How many parameter entries some unit takes with it.

    Attributes:
        params: entries in all, shared parameters counted once. prunable: those that belong to a unit.
        by_kind: kind of unit -> entries; an entry between two widths counts under both.
        whole: what no unit takes, the largest first.
    """

    params: int
    prunable: int
    by_kind: Mapping[str, int]
    whole: tuple[Whole, ...]

    @property
    def share(self) -> float:
        """Prunable entries over all, in [0, 1]."""
        return self.prunable / self.params if self.params else 0.0


def coverage_of(shapes: Mapping[str, tuple[int, ...]], groups: Iterable[Group], frozen: Iterable[Frozen]) -> Coverage:
    """Count the entries that units take. ``shapes``: of every parameter, shared ones under one name.

    Linear in the number of positions of all groups.
    """
    taken: dict[str, dict[tuple[str, int], Bools]] = defaultdict(dict)
    for g in groups:
        for s in g.slices:
            if s.name in shapes:
                mask = taken[g.kind].setdefault((s.name, s.dim), np.zeros(shapes[s.name][s.dim], bool))
                mask[s.index.ravel()] = True
    together: dict[tuple[str, int], Bools] = {}
    for masks in taken.values():
        for key, mask in masks.items():
            together[key] = together.get(key, False) | mask
    left = {name: _left(name, shape, together) for name, shape in shapes.items()}
    params = sum(math.prod(s) for s in shapes.values())
    by_kind = {
        kind: sum(math.prod(shape) - _left(name, shape, masks) for name, shape in shapes.items())
        for kind, masks in sorted(taken.items())
    }
    why: dict[str, list[Frozen]] = defaultdict(list)
    for f in frozen:
        why[f.name].append(f)
    whole = [Whole(n, k, *_reason(why[n])) for n, k in left.items() if k]
    whole.sort(key=lambda w: -w.entries)
    return Coverage(params, params - sum(left.values()), by_kind, tuple(whole))


def _left(name: str, shape: tuple[int, ...], masks: Mapping[tuple[str, int], Bools]) -> int:
    """Entries at positions that no mask takes along any axis."""
    return math.prod(n - int(masks[name, d].sum()) if (name, d) in masks else n for d, n in enumerate(shape))


def _reason(frozen: list[Frozen]) -> tuple[str, str]:
    """What keeps the widest axis."""
    if not frozen:
        return "no axis of it can be told apart", ""
    widest = max(frozen, key=lambda f: f.size)
    return widest.reason, widest.line
