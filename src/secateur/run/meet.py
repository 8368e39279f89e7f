"""Meet a budget that is measured: solve, cut, export, measure, correct, until the measured figure holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.choose.allocate import Allocation, allocate, asked
from secateur.errors import BudgetError, PlanError
from secateur.evidence.gather import TOLERANCE
from secateur.graph.surgery import apply
from secateur.types import Budget, Limits, Plan, Scores

log = logging.getLogger("secateur")

AIM, NEAR = 0.985, 0.95
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

    A measured cost is predicted; what the prediction is asked for is corrected by the ratio found at the last
    attempt, or halves the distance between an attempt that held and one that did not. The first attempt that comes
    within 5 % below the limit is taken, else the nearest below it after eight. The one taken is timed once more.

    Raises:
        BudgetError: no attempt met the budget; ``closest`` is the least that was measured.
        PlanError: the budget holds already.
    """
    if budget.cost.measured is None:
        return allocate(scores, budget, allocation, limits, made)
    made = {"budget": asked(budget), **made}
    tried: dict[bytes, Attempt] = {}
    low, high, aim = 0.0, math.inf, budget.limit * AIM
    for _ in range(STEPS):
        found = _attempt(model, scores, budget, aim, allocation, limits, made, tried, tell)
        if found is not None and NEAR * budget.limit <= found.measured <= budget.limit and _holds(model, budget, found):
            return found.plan
        if found is not None and found.measured < NEAR * budget.limit:
            low = max(low, aim)
        else:
            high = min(high, aim)
        if len(tried) >= ROUNDS or high - low < budget.limit / 1000 or (found is not None and found.last and low == 0):
            break
        aim *= 1.0 if found is None else min(max(budget.limit * AIM / found.measured, 0.6), 1.5)
        if not low < aim < high:
            aim = (low + high) / 2
    for best in sorted(tried.values(), key=lambda a: -a.measured):
        if best.measured <= budget.limit and _holds(model, budget, best):
            return best.plan
    least = min(a.measured for a in tried.values())
    raise BudgetError(
        f"budget {budget.cost.name} <= {budget.limit:.4g} {budget.cost.unit} was not met on the target: the least "
        f"measured was {least:.4g} {budget.cost.unit} ({least / budget.cost.dense:.0%} of dense). Ask for at least "
        "that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=least,
    )


def _holds(model: nn.Module, budget: Budget, attempt: Attempt) -> bool:
    """Whether the figure holds when it is taken once more: the best of several attempts is partly luck."""
    assert budget.cost.measured is not None
    return budget.cost.measured(apply(attempt.plan, model), True) <= budget.limit * (1 + TOLERANCE / 2)


def _attempt(
    model: nn.Module,
    scores: Scores,
    budget: Budget,
    aim: float,
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
        plan = allocate(scores, replace(budget, limit=aim), allocation, limits, made)
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
        log.info("aimed at %.6g, measured %.6g %s", aim, tried[key].measured, budget.cost.unit)
    return replace(tried[key], last=last)
