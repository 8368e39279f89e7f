"""What choices cost: every budget's own cost of a choice, and of each option of a group with the others as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from secateur.choose.budgets import parts_of
from secateur.choose.together import Counts
from secateur.types import Bools, Budget, Cost, Floats, Ints, Scores

EXACT, PROBES = 64, 4000
"""Options of a group that are all priced; and how many are priced of all groups together, about."""


def spread(options: Ints, count: int, most: int = EXACT) -> Ints:
    """Which options to look at: all where they are few, else multiples of 8 (16, 32...) evenly, and those around one.

    Devices work in tiles of 8, 16 or 32: between two of them nothing is gained, and a straight line hides that.

    Args:
        options: ascending. count: one of them. most: look at about as many.

    Returns:
        ascending indices into the options; the first, the last and that of ``count`` are among them.

    Example:
        >>> spread(np.arange(1, 1001), 500, 8).tolist()
        [0, 255, 497, 498, 499, 500, 501, 511, 767, 999]
    """
    n = len(options)
    if n <= most:
        return np.arange(n)
    step = 8
    while options[-1] // step > most // 2:
        step *= 2
    at = int(np.searchsorted(options, count))
    near = np.arange(max(at - most // 4, 0), min(at + most // 4 + 1, n))
    even = np.nonzero(options % step == 0)[0]
    if len(even) < 2 or len(even) > most:
        even = np.linspace(0, n - 1, most // 2).round().astype(np.int64)
    found: Ints = np.unique(np.concatenate([[0, n - 1, at], near, even])).astype(np.int64)
    return found


@dataclass(frozen=True, eq=False)
class Table:
    """What one group may be, the others staying as they are.

    Attributes:
        counts: units kept, ascending. loss: of each. costs: (costs, options), each row from 0 at its cheapest.
    """

    counts: Ints
    loss: Floats
    costs: Floats

    def undominated(self) -> Table:
        """Without what another option is no worse than in loss and in every cost; of equals the larger stays.

        On a staircase only the upper end of a tread is left, and nothing that is both narrower and slower.
        """
        kept: list[int] = []
        order = np.lexsort((-self.counts, self.costs.sum(0), self.loss))
        for j in order.tolist():
            if not kept or not (self.costs[:, kept] <= self.costs[:, [j]]).all(0).any():
                kept.append(j)
        kept.sort()
        return Table(self.counts[kept], self.loss[kept], self.costs[:, kept])


@dataclass(eq=False)
class Prices:
    """The costs of choices, priced once each.

    Attributes:
        scores: rank the units of each group. costs: in this order in every vector.
    """

    scores: Scores
    costs: tuple[Cost, ...]
    _masks: dict[tuple[str, int], Bools] = field(default_factory=dict)
    _known: dict[tuple[int, ...], Floats] = field(default_factory=dict)
    _ranks: dict[str, Ints] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Scores, budget: Budget) -> Prices:
        """Of one budget, or of each of the several that it stands for."""
        return cls(scores, tuple(p.cost for p in parts_of(budget)))

    @property
    def asked(self) -> int:
        """How many choices were priced."""
        return len(self._known)

    def mask(self, name: str, count: int) -> Bools:
        """The best-scored units of a group; ties go to the earlier unit."""
        if (name, count) not in self._masks:
            if name not in self._ranks:
                self._ranks[name] = np.argsort(-self.scores.values[name], kind="stable")
            mask = np.zeros(len(self.scores.values[name]), bool)
            mask[self._ranks[name][:count]] = True
            self._masks[name, count] = mask
        return self._masks[name, count]

    def __call__(self, counts: Counts) -> Floats:
        """Every cost of a choice."""
        key = tuple(counts[g.name] for g in self.scores.groups)
        if key not in self._known:
            keep = {g.name: self.mask(g.name, n) for g, n in zip(self.scores.groups, key, strict=True)}
            self._known[key] = np.array([c.of(self.scores.groups, keep) for c in self.costs], float)
        return self._known[key]

    def tables(
        self, loss: Mapping[str, Floats], options: Mapping[str, Ints], counts: Counts
    ) -> tuple[dict[str, Table], Floats]:
        """Options of each group with the others at ``counts``, priced one by one, and what belongs to no group."""
        fixed, tables = self(counts).copy(), {}
        most = int(np.clip(PROBES // max(len(options), 1), 17, EXACT))
        for n, o in options.items():
            at = spread(o, counts[n], max(most, EXACT) if len(o) <= EXACT else most)
            found = np.stack([self({**counts, n: int(o[i])}) for i in at], axis=1)
            costs = found - found.min(1, keepdims=True)
            fixed -= costs[:, int(np.searchsorted(o[at], counts[n]))]
            tables[n] = Table(o[at], loss[n][at], costs)
        return tables, fixed
