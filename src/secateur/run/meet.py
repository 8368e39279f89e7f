"""Meet a budget that is measured: solve, cut, export, measure, correct, until the measured figure holds."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from secateur.choose.allocate import allocate
from secateur.choose.budgets import asked, parts_of
from secateur.choose.rank import Allocation
from secateur.errors import BudgetError, PlanError
from secateur.graph.surgery import apply
from secateur.types import Budget, Budgets, Floats, Limits, Plan, Scores

log = logging.getLogger("secateur")

AIM, NEAR = 0.987, 0.975
"""What a solution aims at, and what is near enough, as parts of the limit."""
ROUNDS, STEPS = 8, 40
"""Most plans that are measured, and that are solved for."""
LESSONS = 2
"""Attempts from which several predictions are scaled."""
LOWER = (0.9, 0.8, 0.65, 0.5, 0.35)
"""Where nothing held, what is aimed at next, of the lowest aim so far."""
SECOND = 3
"""What second timings count against the first, by which the plan was taken."""
LUCK = 1.03
"""By how much one confirmation may move what is asked of the next attempt: second timings may be disturbed too."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan and what it measured, each figure over its limit; ``last`` where the limits allow no smaller one."""

    plan: Plan
    figures: Floats
    last: bool = False

    @property
    def measured(self) -> float:
        """The figure that is worst."""
        return float(self.figures.max())


def meet(
    model: nn.Module,
    scores: Scores,
    budget: Budgets,
    allocation: Allocation,
    limits: Limits,
    made: Mapping[str, Any],
    tell: Callable[[str], None] = lambda words: None,
) -> Plan:
    """A plan whose costs meet the budgets, by count where a cost is exact, by measurement where it is not.

    A measured cost is predicted. What the prediction is asked for is corrected from attempt to attempt, along the line
    through what was measured nearest the limit on either side; of several measured costs each prediction is first
    scaled to what the first attempts measured, and the one that is worst over its limit is led to it. The first
    attempt that comes within 2.5 % below a limit, above none, is taken, else the nearest below after eight. Second
    timings must confirm that, and count three times as much; where they do not, the next attempts are asked for that
    much less or more.

    Raises:
        BudgetError: no attempt met the budgets; ``closest`` is the least that was measured (of several budgets the
            least of the largest over its limit).
        PlanError: the budgets hold already.
    """
    parts = parts_of(budget)
    measured = tuple(p for p in parts if p.cost.measured is not None)
    exact = tuple(p for p in parts if p.cost.measured is None)
    if not measured:
        return allocate(scores, budget, allocation, limits, made)
    if exact:
        _check_reachable(scores, exact, allocation, limits)
    search = _Search(model, scores, measured, exact, allocation, limits, {**made, "budget": asked(budget)}, tell)
    plan = _close_in(search) or search.best()
    return plan or _lower(search)


def _lower(search: _Search) -> Plan:
    """Nothing near the limits held: less and less, while attempts are left; at last all that the limits allow."""
    lowest = search.lowest
    for share in LOWER:
        if len(search.tried) <= ROUNDS:
            search.attempt(share * lowest)
        if plan := search.best():
            return plan
    search.attempt(1e-9)
    if plan := search.best():
        return plan
    raise _not_met(search)


def _check_reachable(scores: Scores, exact: Sequence[Budget], allocation: Allocation, limits: Limits) -> None:
    """Nothing is exported or timed for counted budgets that cannot be met."""
    with contextlib.suppress(PlanError):  # they hold already, or groups cannot go together: measured ones may cut
        allocate(scores, exact, allocation, limits)


def _not_met(search: _Search) -> BudgetError:
    least = min((search.means.get(key, a.figures) for key, a in search.tried.items()), key=lambda f: float(f.max()))
    told = [
        f"budget {p.cost.name} <= {p.limit:.4g} {p.cost.unit} was not met on the target: the least measured was "
        f"{share * p.limit:.4g} {p.cost.unit} ({share * p.limit / p.cost.dense:.0%} of dense)"
        for p, share in zip(search.budgets, least.tolist(), strict=True)
        if share > 1
    ]
    one = len(search.budgets) + len(search.exact) == 1
    return BudgetError(
        f"{'; '.join(told)}. Ask for at least that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=float(least[0] * search.budgets[0].limit if one else least.max()),
        several=not one,
    )


@dataclass(eq=False)
class _Search:
    """What is looked for, and what has been tried: attempts by plan, and their means with a second timing.

    Aims and figures are parts of the limits; ``scales`` says what of each limit its prediction is held to, ``lowest``
    what the least aim was.
    """

    model: nn.Module
    scores: Scores
    budgets: tuple[Budget, ...]
    exact: tuple[Budget, ...]
    allocation: Allocation
    limits: Limits
    made: Mapping[str, Any]
    tell: Callable[[str], None]
    tried: dict[bytes, Attempt] = field(default_factory=dict)
    means: dict[bytes, Floats] = field(default_factory=dict)
    scales: Floats = field(init=False)
    lowest: float = 1.0

    def __post_init__(self) -> None:
        self.scales = np.ones(len(self.budgets))

    @property
    def dense(self) -> float:
        """The uncut model's worst figure."""
        return max(p.cost.dense / p.limit for p in self.budgets)

    def attempt(self, aim: float) -> Attempt | None:
        """Allocate for a predicted cost and measure it, once; None where nothing is cut for so high an aim."""
        last, self.lowest = False, min(aim, self.lowest)
        try:
            plan = self._allocated(aim)
        except BudgetError:  # by the prediction: try all that the limits allow before giving up
            plan = self._allocated(self._least_aim() * (1 + 1e-9))
            last = True
        except PlanError:
            if not self.tried:
                raise
            return None
        key = _key(plan)
        if key not in self.tried:
            found = self.tried[key] = Attempt(plan, self._measured(plan, False), last)
            each = zip(self.budgets, found.figures.tolist(), strict=True)
            self.tell(", ".join(f"{p.cost.name} {f * p.limit / p.cost.dense:.1%} of dense" for p, f in each))
            log.info("aimed at %.4g of the limit, measured %.4g of it", aim, found.measured)
        return replace(self.tried[key], last=last)

    def mean(self, attempt: Attempt) -> float:
        """The mean with second timings: that one of several attempts was taken is partly its luck."""
        key = _key(attempt.plan)
        if key not in self.means:
            self.means[key] = (attempt.figures + SECOND * self._measured(attempt.plan, True)) / (1 + SECOND)
        return float(self.means[key].max())

    def told(self, attempt: Attempt) -> float:
        """The mean where it is known, else the first timing."""
        return float(self.means.get(_key(attempt.plan), attempt.figures).max())

    def best(self) -> Plan | None:
        """The plan nearest below the limits, by its mean."""
        while below := [a for a in self.tried.values() if self.told(a) <= 1]:
            found = max(below, key=self.told)
            if _key(found.plan) in self.means:
                return found.plan
            self.mean(found)
        return None

    def nearness(self, attempt: Attempt) -> float:
        """How near a plan comes to any of the limits that are counted: nothing is to be had beyond one of them."""
        keep = attempt.plan.keep
        return max((p.cost.of(self.scores.groups, keep) / p.limit for p in self.exact), default=0.0)

    def learn(self, attempt: Attempt) -> bool:
        """Hold each of several predictions to what was measured; whether that changes any by much."""
        if len(self.budgets) < 2:
            return False
        told = np.array([p.cost.of(self.scores.groups, attempt.plan.keep) / p.limit for p in self.budgets])
        scales = np.clip(told / np.maximum(attempt.figures, 1e-12), 0.1, 10)
        changed = bool((np.abs(scales / self.scales - 1) > 0.01).any())
        self.scales = scales
        return changed

    def _least_aim(self) -> float:
        """What all that the limits allow is predicted to take."""
        found = []
        for p, scale in zip(self.budgets, self.scales.tolist(), strict=True):
            try:
                allocate(self.scores, replace(p, limit=1e-9 * p.limit), self.allocation, self.limits)
            except BudgetError as error:
                if error.closest is None or error.closest >= p.cost.dense:
                    raise
                found.append(error.closest / p.limit / scale)
        return max(found, default=1e-9)

    def _allocated(self, aim: float) -> Plan:
        aims = [replace(p, limit=aim * s * p.limit) for p, s in zip(self.budgets, self.scales.tolist(), strict=True)]
        return allocate(self.scores, [*aims, *self.exact], self.allocation, self.limits, self.made)

    def _measured(self, plan: Plan, again: bool) -> Floats:
        small = apply(plan, self.model)
        return np.array([p.cost.measured(small, again) / p.limit for p in self.budgets if p.cost.measured is not None])


def _key(plan: Plan) -> bytes:
    return b"".join(m.tobytes() for m in plan.keep.values())


def _close_in(search: _Search) -> Plan | None:
    """The first plan that comes near enough below the limits and holds."""
    dense = search.dense
    points, aim, luck, lessons = [(dense, dense)], AIM, 1.0, LESSONS
    for _ in range(STEPS):
        found = search.attempt(aim)
        measured = dense if found is None else found.measured
        if found is not None and measured * luck <= 1 and max(measured * luck, search.nearness(found)) >= NEAR:
            mean = search.mean(found)
            if mean <= 1 and max(mean, search.nearness(found)) >= NEAR:
                return found.plan
            luck = min(max(mean / measured, luck / LUCK), luck * LUCK)
        if found is not None and lessons and search.learn(found):
            lessons, points, aim = lessons - 1, [(dense, dense)], AIM / luck
            continue
        points.append((aim, measured))
        aim = _next(points, AIM / luck)
        close = min(abs(aim - a) for a, _ in points) < 1 / 2000
        if len(search.tried) >= ROUNDS or close or (found is not None and found.last and measured * luck > 1):
            break
    return None


def _next(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """Where to aim: points, two or more, are (aimed at, measured), the uncut model first; figures rise with the aim."""
    above = min((p for p in points if p[1] > wanted), default=points[0])
    below = max((p for p in points if p[1] <= wanted and p[0] < above[0]), default=None)
    if below is None:  # on along the line through the two lowest
        (a, x), (b, y) = sorted(points)[:2]
        slope = (y - x) / (b - a) if b > a else 0.0
        return min(max(a - (x - wanted) / slope if slope > 0 else 0.0, 0.3 * a), 0.97 * a)
    over, under = above[1] - wanted, wanted - below[1]
    again = sum(1 for _ in itertools.takewhile(lambda p: (p[1] > wanted) == (points[-1][1] > wanted), points[::-1])) - 1
    if points[-1][1] > wanted:  # the Illinois rule: an end that stays gets half the say, each time
        under /= 2**again
    else:
        over /= 2**again
    share = min(max(under / (under + over), 0.02), 0.98)
    return below[0] + share * (above[0] - below[0])
