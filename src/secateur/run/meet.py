"""Meet a budget that is measured: solve, cut, export, measure, correct, until the measured figure holds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    made = {"budget": asked(budget), **made}
    tried: dict[bytes, Attempt] = {}

    def attempt(aim: float) -> Attempt | None:
        return _attempt(model, scores, replace(budget, limit=aim), allocation, limits, made, tried, tell)

    points, aim, luck = [(budget.cost.dense, budget.cost.dense)], budget.limit * AIM, 1.0
    for _ in range(STEPS):
        found = attempt(aim)
        measured = budget.cost.dense if found is None else found.measured
        if found is not None and NEAR * budget.limit <= measured * luck <= budget.limit:
            confirmed = _confirmed(model, budget, found)
            if confirmed <= budget.limit:
                return found.plan
            luck = max(luck, confirmed / measured)
        points.append((aim, measured))
        aim = _next(points, budget.limit * AIM / luck)
        close = min(abs(aim - a) for a, _ in points) < budget.limit / 2000
        if len(tried) >= ROUNDS or close or (found is not None and found.last and measured > budget.limit):
            break
    if all(a.measured > budget.limit for a in tried.values()):
        attempt(budget.limit * 1e-9)  # all that the limits allow
    for best in sorted(tried.values(), key=lambda a: -a.measured):
        if best.measured <= budget.limit and _confirmed(model, budget, best) <= budget.limit:
            return best.plan
    least = min(a.measured for a in tried.values())
    raise BudgetError(
        f"budget {budget.cost.name} <= {budget.limit:.4g} {budget.cost.unit} was not met on the target: the least "
        f"measured was {least:.4g} {budget.cost.unit} ({least / budget.cost.dense:.0%} of dense). Ask for at least "
        "that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=least,
    )


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


def _confirmed(model: nn.Module, budget: Budget, attempt: Attempt) -> float:
    """The mean with a second timing: that one of several attempts was taken is partly its luck."""
    assert budget.cost.measured is not None
    return (attempt.measured + budget.cost.measured(apply(attempt.plan, model), True)) / 2


def _attempt(
    model: nn.Module,
    scores: Scores,
    budget: Budget,
    allocation: Allocation,
    limits: Limits,
    made: Mapping[str, Any],
    tried: dict[bytes, Attempt],
    tell: Callable[[str], None],
) -> Attempt | None:
    """Allocate for a predicted cost and measure it, once; None where nothing is cut for so high an aim."""
    assert budget.cost.measured is not None
    last = False
    try:
        plan = allocate(scores, budget, allocation, limits, made)
    except BudgetError as error:  # by the prediction: try all that the limits allow before giving up
        if error.closest is None or error.closest >= budget.cost.dense:
            raise
        plan = allocate(scores, replace(budget, limit=error.closest * (1 + 1e-9)), allocation, limits, made)
        last = True
    except PlanError:
        if not tried:
            raise
        return None
    key = b"".join(m.tobytes() for m in plan.keep.values())
    if key not in tried:
        tried[key] = Attempt(plan, budget.cost.measured(apply(plan, model), False), last)
        tell(f"{budget.cost.name} {tried[key].measured / budget.cost.dense:.1%} of dense")
        log.info("aimed at %.6g, measured %.6g %s", budget.limit, tried[key].measured, budget.cost.unit)
    return replace(tried[key], last=last)
