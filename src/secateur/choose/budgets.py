"""Several budgets at once: one that stands for all of them, and what each of them asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.errors import BudgetError
from secateur.graph.couple import Groups
from secateur.types import Budget, Budgets, Cost, Keep


def parts_of(budget: Budgets) -> tuple[Budget, ...]:
    """The single budgets that all have to hold, in the order given.

    Raises:
        BudgetError: there is none, or one of them is no `Budget`.
    """
    given = (budget,) if isinstance(budget, Budget) else tuple(budget)
    if not given:
        raise BudgetError("budget is an empty list; give at least one sc.Budget")
    for b in given:
        if not isinstance(b, Budget):
            raise BudgetError(
                f"budget holds {type(b).__name__}, expected sc.Budget, such as sc.Budget.of_dense(cost, 0.5)"
            )
    return tuple(p for b in given for p in (b.parts or (b,)))


def all_of(budget: Budgets) -> Budget:
    """One budget that holds exactly where all of them do: ``max_i cost_i / limit_i <= 1``.

    What an allocation that knows of one budget alone is given; one that can do better finds them in ``parts``.

    Raises:
        BudgetError: there is none.

    Example:
        >>> import secateur as sc, torch
        >>> net = torch.nn.Linear(4, 2)
        >>> both = all_of([sc.Budget(sc.params(net), 5), sc.Budget(sc.nbytes(net), 80)])
        >>> both.cost.name, both.cost.dense, both.limit
        ('params and nbytes', 2.0, 1.0)
    """
    parts = parts_of(budget)
    if len(parts) == 1:
        return parts[0]

    def of(groups: Groups, keep: Keep) -> float:
        return max(p.cost.of(groups, keep) / p.limit for p in parts)

    name = " and ".join(p.cost.name for p in parts)
    return Budget(Cost(name, "", max(p.cost.dense / p.limit for p in parts), of), 1.0, None, parts)


def asked(budget: Budgets) -> Any:
    """One budget, or a list of several, as it stands in a plan: nothing that was measured."""
    found = [_asked(p) for p in parts_of(budget)]
    return found[0] if len(found) == 1 else found


def _asked(budget: Budget) -> dict[str, Any]:
    if budget.fraction is not None:
        return {"cost": budget.cost.name, "fraction": budget.fraction}
    return {"cost": budget.cost.name, "limit": budget.limit}


def check_same_count(groups: Groups, budget: Budgets) -> None:
    """Refuse exact costs that were counted on another model or example than what is to be cut.

    Raises:
        BudgetError: says what was counted.
    """
    for part in parts_of(budget):
        cost = part.cost
        if cost.measured is not None:
            continue  # predicted from a measurement of the dense model
        whole = cost.of(groups, groups.all_kept())
        if not math.isclose(whole, cost.dense, rel_tol=1e-6):
            raise BudgetError(
                f"{cost.name} of the budget were counted as {amount(cost.dense, cost)}, but what is to be cut has "
                f"{whole:.6g}: count and trace the same model on the same example (batch size and lengths included)"
            )


def cannot_be_met(budget: Budgets, each: Sequence[float], joint: Sequence[float], what: str) -> BudgetError:
    """The error that names each budget that cannot be met, and the closest reachable of each.

    Args:
        budget: one or several. each: the least of each cost by itself. joint: the costs where the largest, over its
            limit, is least. what: was cut to get there.
    """
    parts = parts_of(budget)
    told = [
        f"budget {p.cost.name} <= {amount(p.limit, p.cost)} cannot be met: the closest reachable is "
        f"{amount(r, p.cost)} of {p.cost.dense:.6g}, {what}"
        for p, r in zip(parts, each, strict=True)
        if r > p.limit
    ]
    if not told:
        names = " and ".join(f"{p.cost.name} <= {amount(p.limit, p.cost)}" for p in parts)
        told = [f"budgets {names} cannot be met together, though each can alone"]
    if len(parts) > 1:
        near = " and ".join(f"{amount(r, p.cost)} of {p.cost.name}" for p, r in zip(parts, joint, strict=True))
        told.append(f"nearest to all of them are {near}")
    closest = joint[0] if len(parts) == 1 else max(r / p.limit for p, r in zip(parts, joint, strict=True))
    return BudgetError(
        f"{'; '.join(told)}. Ask for at least that, or relax minimum, multiple, max_sparsity, per_group or ignore",
        closest=float(closest),
        several=len(parts) > 1,
    )


def amount(value: float, cost: Cost) -> str:
    """A value in the unit of its cost.

    Example:
        >>> import secateur as sc, torch
        >>> amount(8.0, sc.nbytes(torch.nn.Linear(4, 2)))
        '8 B'
    """
    return f"{value:.6g} {cost.unit}".rstrip()
