"""Meet a budget that is measured: solve, cut, export, measure, correct, until the measured figure holds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.choose.allocate import Allocation, allocate, asked
from secateur.errors import BudgetError, PlanError
from secateur.graph.surgery import apply
from secateur.types import Budget, Limits, Plan, Scores

log = logging.getLogger("secateur")

AIM, NEAR = 0.985, 0.97
"""What a solution aims at, and what is near enough, as parts of the limit."""
ROUNDS, STEPS = 8, 40
"""Most plans that are measured, and that are solved for."""


LUCK = 1.03
"""What one failed confirmation may ask of the next attempt, at most: a second timing may be disturbed too."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan and what it measured, in the cost's unit; ``last`` where the limits allow no smaller one."""

    plan: Plan
    measured: float
    last: bool = False


def meet(
    model: nn.Module,
    scores: Scores,
    budget: Budget,
    allocation: Allocation,
    limits: Limits,
    made: Mapping[str, Any],
    tell: Callable[[str], None] = lambda words: None,
) -> Plan:
    """A plan whose cost meets the budget, by count where the cost is exact, by measurement where it is not.

    A measured cost is predicted. What the prediction is asked for is corrected from attempt to attempt, along the line
    through what was measured nearest the limit on either side. The first attempt that comes within 3 % below the limit
    is taken, else the nearest below it after eight; what is taken must hold in the mean with a second timing too, and
    where it does not, the next attempts are asked for that much less.

    Raises:
        BudgetError: no attempt met the budget; ``closest`` is the least that was measured.
        PlanError: the budget holds already.
    """
    if budget.cost.measured is None:
        return allocate(scores, budget, allocation, limits, made)
    search = _Search(model, scores, budget, allocation, limits, {"budget": asked(budget), **made}, tell)
    plan = _close_in(search) or search.best()
    if plan is None:
        search.attempt(budget.limit * 1e-9)  # all that the limits allow
        plan = search.best()
    if plan is not None:
        return plan
    least = min(max(a.measured, search.means.get(key, 0.0)) for key, a in search.tried.items())
    raise BudgetError(
        f"budget {budget.cost.name} <= {budget.limit:.4g} {budget.cost.unit} was not met on the target: the least "
        f"measured was {least:.4g} {budget.cost.unit} ({least / budget.cost.dense:.0%} of dense). Ask for at least "
        "that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=least,
    )


@dataclass(frozen=True, eq=False)
class _Search:
    """What is looked for, and what has been tried: attempts by plan, and their means with a second timing."""

    model: nn.Module
    scores: Scores
    budget: Budget
    allocation: Allocation
    limits: Limits
    made: Mapping[str, Any]
    tell: Callable[[str], None]
    tried: dict[bytes, Attempt] = field(default_factory=dict)
    means: dict[bytes, float] = field(default_factory=dict)

    def attempt(self, aim: float) -> Attempt | None:
        """Allocate for a predicted cost and measure it, once; None where nothing is cut for so high an aim."""
        last, cost = False, self.budget.cost
        try:
            plan = self._allocated(aim)
        except BudgetError as error:  # by the prediction: try all that the limits allow before giving up
            if error.closest is None or error.closest >= cost.dense:
                raise
            plan = self._allocated(error.closest * (1 + 1e-9))
            last = True
        except PlanError:
            if not self.tried:
                raise
            return None
        key = _key(plan)
        if key not in self.tried:
            self.tried[key] = Attempt(plan, self._measured(plan, False), last)
            self.tell(f"{cost.name} {self.tried[key].measured / cost.dense:.1%} of dense")
            log.info("aimed at %.6g, measured %.6g %s", aim, self.tried[key].measured, cost.unit)
        return replace(self.tried[key], last=last)

    def mean(self, attempt: Attempt) -> float:
        """The mean with a second timing: that one of several attempts was taken is partly its luck."""
        key = _key(attempt.plan)
        if key not in self.means:
            self.means[key] = (attempt.measured + self._measured(attempt.plan, True)) / 2
        return self.means[key]

    def best(self) -> Plan | None:
        """The plan nearest below the limit that holds in its mean too."""
        limit = self.budget.limit
        below = [a for a in self.tried.values() if a.measured <= limit]
        return next((a.plan for a in sorted(below, key=lambda a: -a.measured) if self.mean(a) <= limit), None)

    def _allocated(self, aim: float) -> Plan:
        return allocate(self.scores, replace(self.budget, limit=aim), self.allocation, self.limits, self.made)

    def _measured(self, plan: Plan, again: bool) -> float:
        assert self.budget.cost.measured is not None
        return self.budget.cost.measured(apply(plan, self.model), again)


def _key(plan: Plan) -> bytes:
    return b"".join(m.tobytes() for m in plan.keep.values())


def _close_in(search: _Search) -> Plan | None:
    """The first plan that comes near enough below the limit and holds."""
    limit, dense = search.budget.limit, search.budget.cost.dense
    points, aim, luck = [(dense, dense)], limit * AIM, 1.0
    for _ in range(STEPS):
        found = search.attempt(aim)
        measured = dense if found is None else found.measured
        if found is not None and NEAR * limit <= measured * luck <= limit:
            mean = search.mean(found)
            if mean <= limit:
                return found.plan
            luck = min(max(luck, mean / measured), luck * LUCK)
        points.append((aim, measured))
        aim = _next(points, limit * AIM / luck)
        close = min(abs(aim - a) for a, _ in points) < limit / 2000
        if len(search.tried) >= ROUNDS or close or (found is not None and found.last and measured * luck > limit):
            break
    return None


def _next(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """Where to aim: points are (aimed at, measured), the uncut model first, and measured figures rise with the aim."""
    above = min((p for p in points if p[1] > wanted), default=points[0])
    below = max((p for p in points if p[1] <= wanted and p[0] < above[0]), default=None)
    if below is None:  # on along the line through the two lowest
        (a, x), (b, y) = sorted(points)[:2] if len(points) > 1 else (points[0], points[0])
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
