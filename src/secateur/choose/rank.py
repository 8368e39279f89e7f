"""Units in the order of their scores, and the allocations that need no more than that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from secateur.choose.together import Counts, least
from secateur.types import Bools, Budget, Ints, Scores

Allocation: TypeAlias = Callable[[Scores, Budget, Mapping[str, Ints]], Counts]
"""``(scores, budget, allowed counts of each group, ascending) -> units kept of each group``."""


def keep_best(scores: Scores, counts: Counts) -> dict[str, Bools]:
    """The best-scored units of each group; ties go to the earlier unit."""
    out = {}
    for g in scores.groups:
        mask = np.zeros(g.units, bool)
        mask[np.argsort(-scores.values[g.name], kind="stable")[: counts[g.name]]] = True
        out[g.name] = mask
    return out


def uniform(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
    """The same fraction of every group, as little as meets the budget (kept counts rounded up to allowed ones)."""
    steps = 4096

    def counts(i: int) -> Counts:
        return {g.name: int(_atleast(options[g.name], round((1 - i / steps) * g.units))) for g in scores.groups}

    return counts(_first(steps, lambda i: budget.cost.of(scores.groups, keep_best(scores, counts(i))) <= budget.limit))


def global_(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
    """One ranking of all units: the lowest go, as few as meet the budget (kept counts rounded up to allowed ones).

    Groups of different scale need normalised scores: `sc.by_mean`, `sc.by_max`, `sc.by_cost`.
    """
    names = [g.name for g in scores.groups]
    owner = np.concatenate([np.full(len(scores.values[n]), i) for i, n in enumerate(names)])
    ranked = owner[np.argsort(np.concatenate([scores.values[n] for n in names]), kind="stable")]
    sizes = np.array([g.units for g in scores.groups])

    def counts(i: int) -> Counts:
        left = sizes - np.bincount(ranked[:i], minlength=len(names))
        return {n: int(_atleast(options[n], left[k])) for k, n in enumerate(names)}

    cost = budget.cost.of
    return counts(_first(len(ranked), lambda i: cost(scores.groups, keep_best(scores, counts(i))) <= budget.limit))


def _first(n: int, holds: Callable[[int], bool]) -> int:
    """The first step from which on the budget holds; on a device where less may cost more, any at which it does."""
    found = least(n, holds)
    if holds(found):
        return found
    return next((i for i in sorted({*range(0, n, max(n // 512, 1)), *range(max(n - 64, 0), n)}) if holds(i)), n)


def _atleast(options: Ints, count: int) -> int:
    return int(options[np.searchsorted(options, max(count, options[0]))])
