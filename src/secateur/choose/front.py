"""Loss against cost: the whole front in one pass over the multipliers, and plans for many budgets from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.choose.allocate import allocate, allowed_counts, check_limits
from secateur.choose.budgets import parts_of
from secateur.choose.knapsack import error_curve, improved, losses
from secateur.choose.pricing import Prices, Table
from secateur.choose.rank import Allocation
from secateur.choose.together import Counts
from secateur.errors import BudgetError
from secateur.types import Budget, Cost, Floats, Ints, Limits, Plan, Scores

SPAN = 1 / 16
"""How much of the cost may go before coupled costs are looked up anew."""

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Point:
    """One choice on the front: units kept of each group, its cost in the cost's unit, and the total loss."""

    counts: Counts
    cost: float
    loss: float


def pareto(scores: Scores, cost: Cost, limits: Limits | None = None, errors: Errors | None = None) -> list[Point]:
    """The lower convex hull of total loss against cost, dearest first, in one pass over the multipliers.

    ``min sum_g loss_g(n_g) + l c(n)`` for every ``l`` from 0 up: the steps between neighbouring corners of each group's
    own hull, taken in the order of loss a cost saved. Where costs of groups depend on each other they are looked up
    anew around the last solution each time a sixteenth of the cost has gone, and what then lies above the hull is left
    out.

    Args:
        scores: loss is the score that goes, unless there are errors. cost: exact or predicted.
        limits: multiples, minimum widths, caps. errors: group -> units kept -> error, as `sc.dp` takes.

    Raises:
        PlanError: a limit makes no sense, or a group has no errors.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
        >>> [p.cost for p in pareto(scores, sc.params(net), sc.Limits(multiple=2))]
        [58.0, 44.0, 30.0, 16.0]
    """
    check_limits(scores.groups, limits or Limits())
    options = {g.name: allowed_counts(g, limits or Limits()) for g in scores.groups}
    loss = _loss(scores, options, errors)
    prices = Prices(scores, (cost,))
    counts: dict[str, int] = {n: int(o[-1]) for n, o in options.items()}
    found, multiplier = [], 0.0
    while True:
        tables = {n: t.undominated() for n, t in prices.tables(loss, options, counts)[0].items()}
        counts = {n: int(t.counts[np.argmin(t.loss + multiplier * t.costs[0])]) for n, t in tables.items()}
        start = float(prices(counts)[0])
        found.append(_point(counts, prices, loss, options))
        told, again = start, False
        for slope, name, count, saved in _steps(tables, counts):
            counts = {**counts, name: count}
            multiplier, told = max(multiplier, slope), told - saved
            found.append(_point(counts, prices, loss, options))
            off = abs(found[-1].cost - told) > 1e-9 * max(abs(told), 1e-300)
            if off and start - told > SPAN * start:
                again = True
                break
        if not again:
            return _hull(found)


def sweep(
    scores: Scores,
    cost: Cost,
    fractions: Sequence[float],
    allocation: Allocation | Errors | None = None,
    limits: Limits | None = None,
    made: Mapping[str, Any] | None = None,
) -> list[Plan | None]:
    """Plans for many budgets from one set of scores.

    Args:
        scores: measured once. cost: exact or predicted. fractions: of its dense value, one a plan.
        allocation: of each budget by itself; or measured errors, as `sc.dp` takes; or None. Without one, each plan is
            the point of the `pareto` front next below its budget with what still fits.
        limits: multiples, minimum widths, caps. made: what else to write into the plans.

    Returns:
        a plan a fraction, in their order; None where the budget cannot be met.

    Raises:
        BudgetError: none of them can be met. PlanError: a budget holds without cutting anything.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
        >>> [plan and plan.removed for plan in sweep(scores, sc.params(net), [0.8, 0.5, 0.01])]
        [2, 5, None]
    """
    errors = allocation if isinstance(allocation, Mapping) else None
    chosen = allocation if callable(allocation) else _along(pareto(scores, cost, limits, errors), errors)
    plans: list[Plan | None] = []
    last: BudgetError | None = None
    for fraction in fractions:
        try:
            plans.append(allocate(scores, Budget.of_dense(cost, fraction), chosen, limits, made))
        except BudgetError as error:
            plans.append(None)
            last = error
    if last is not None and not any(plans):
        raise last
    return plans


def _along(front: Sequence[Point], errors: Errors | None) -> Allocation:
    def pareto(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        limit = parts_of(budget)[0].limit
        below = [p for p in front if p.cost <= limit and all(c in options[n] for n, c in p.counts.items())]
        start = below[0].counts if below else {n: int(o[0]) for n, o in options.items()}
        return improved(scores, budget, options, _loss(scores, options, errors), start)

    return pareto


def _loss(scores: Scores, options: Mapping[str, Ints], errors: Errors | None) -> dict[str, Floats]:
    if errors is None:
        return {g.name: losses(scores.values[g.name], options[g.name]) for g in scores.groups}
    return {g.name: error_curve(g.name, g.units, errors, options[g.name]) for g in scores.groups}


def _point(counts: Counts, prices: Prices, loss: Mapping[str, Floats], options: Mapping[str, Ints]) -> Point:
    total = float(sum(loss[n][np.searchsorted(options[n], c)] for n, c in counts.items()))
    return Point(dict(counts), float(prices(counts)[0]), total)


def _steps(tables: Mapping[str, Table], counts: Counts) -> list[tuple[float, str, int, float]]:
    """From where each group is to the next corner of its hull: (loss a cost saved, group, count, cost saved)."""
    found = []
    for n, t in tables.items():
        at = int(np.searchsorted(t.counts, counts[n]))
        while True:
            saved, lost = t.costs[0, at] - t.costs[0], t.loss - t.loss[at]
            cheaper = np.nonzero(saved > 0)[0]
            if not len(cheaper):
                break
            slopes = lost[cheaper] / saved[cheaper]
            near = cheaper[slopes == slopes.min()]
            to = int(near[np.argmin(saved[near])])
            found.append((float(lost[to] / saved[to]), n, int(t.counts[to]), float(saved[to])))
            at = to
    order = sorted(range(len(found)), key=lambda i: found[i][0])  # stable: within a group slopes do not fall
    return [found[i] for i in order]


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull, dearest first; points on its edges stay."""
    hull: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, p.loss)):
        if hull and (p.cost == hull[-1].cost or p.loss >= hull[-1].loss):
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], p):
            hull.pop()
        hull.append(p)
    return hull[::-1]


def _above(a: Point, b: Point, c: Point) -> bool:
    """Whether b lies above the line from a to c, by more than rounding."""
    cross = (b.loss - a.loss) * (c.cost - a.cost) - (c.loss - a.loss) * (b.cost - a.cost)
    return cross > 1e-9 * (abs(a.loss - c.loss) * (c.cost - a.cost) + 1e-300)
