"""Meet a budget that is measured: solve, cut, export, measure, correct, until the measured figure holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.choose.allocate import Allocation, allocate
from secateur.errors import BudgetError
from secateur.graph.surgery import apply
from secateur.types import Budget, Limits, Plan, Scores

log = logging.getLogger("secateur")

TOLERANCE = 0.03
"""A measured figure holds up to this much over its limit: two runs of one model differ by as much."""

AIM, NEAR, ROUNDS = 0.985, 0.95, 8


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan and what it measured, in the cost's unit."""

    plan: Plan
    measured: float


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

    A measured cost is predicted, the prediction is corrected by the ratio found at the last attempt, and the
    attempt nearest below the limit is taken once one is within 5 % of it, or after eight. The one taken is
    timed once more.

    Raises:
        BudgetError: no attempt met the budget; ``closest`` is the least that was measured.
    """
    if budget.cost.measured is None:
        return allocate(scores, budget, allocation, limits, made)
    tried: dict[bytes, Attempt] = {}
    aim = budget.limit * AIM
    for _ in range(ROUNDS):
        plan = _attempt(scores, replace_limit(budget, aim), allocation, limits, made)
        key = b"".join(m.tobytes() for m in plan.keep.values())
        known = key in tried
        if not known:
            tried[key] = Attempt(plan, budget.cost.measured(apply(plan, model), False))
            tell(f"{budget.cost.name} {tried[key].measured / budget.cost.dense:.1%} of dense")
            log.info("aimed at %.6g, measured %.6g %s", aim, tried[key].measured, budget.cost.unit)
        found = tried[key].measured
        if NEAR * budget.limit <= found <= budget.limit:
            again = budget.cost.measured(apply(plan, model), True)
            if again <= budget.limit * (1 + TOLERANCE / 2):
                return plan
            found = again
            tried[key] = Attempt(plan, again)
        elif known:
            break
        aim *= min(max(budget.limit * AIM / found, 0.6), 1.5)
    below = [a for a in tried.values() if a.measured <= budget.limit]
    if below:
        return max(below, key=lambda a: a.measured).plan
    least = min(a.measured for a in tried.values())
    raise BudgetError(
        f"budget {budget.cost.name} <= {budget.limit:.4g} {budget.cost.unit} was not met on the target: the least "
        f"measured was {least:.4g} {budget.cost.unit} ({least / budget.cost.dense:.0%} of dense). Ask for at least "
        "that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=least,
    )


def replace_limit(budget: Budget, limit: float) -> Budget:
    """The same budget with another limit to solve for."""
    return replace(budget, limit=limit)


def _attempt(scores: Scores, budget: Budget, allocation: Allocation, limits: Limits, made: Mapping[str, Any]) -> Plan:
    """Allocate; where the prediction says it cannot be met, try all that the limits allow before giving up."""
    try:
        return allocate(scores, budget, allocation, limits, made)
    except BudgetError as error:
        if error.closest is None or error.closest >= budget.cost.dense:
            raise
        return allocate(scores, replace_limit(budget, error.closest * (1 + 1e-9)), allocation, limits, made)
