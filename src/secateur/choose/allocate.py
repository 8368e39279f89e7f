"""How much goes where: turn scores and a budget into a choice of units. Ranks and counts, never thresholds."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from secateur.choose.budgets import all_of, amount, asked, cannot_be_met, check_same_count, parts_of
from secateur.choose.knapsack import knapsack as knapsack
from secateur.choose.knapsack import knapsack_with as knapsack_with
from secateur.choose.plan import make_plan
from secateur.choose.pricing import spread
from secateur.choose.rank import Allocation, keep_best
from secateur.choose.rank import global_ as global_
from secateur.choose.rank import uniform as uniform
from secateur.choose.together import Choices, Counts, fits, reconciled
from secateur.errors import CoupleError, PlanError
from secateur.graph.couple import Groups
from secateur.types import Budget, Budgets, Group, Ints, Limits, Plan, Scores

_KINDS = ("channel", "embedding", "expert", "head", "head_dim", "hidden", "neuron", "width")


def allocate(
    scores: Scores,
    budget: Budgets,
    allocation: Allocation,
    limits: Limits | None = None,
    made: Mapping[str, Any] | None = None,
) -> Plan:
    """Choose which units stay so that the budget holds: the best-scored of each group, ties by position.

    Where groups cannot all be cut as the allocation chooses (together they would leave nothing of an axis, or a size
    in the code could not follow), it is asked again without the counts that were refused.

    Args:
        scores: from `sc.score`, made comparable across groups where the allocation compares them.
        budget: upper limit on a cost, or several that all have to hold.
        allocation: `uniform`, `global_`, `knapsack`, or a function of one's own.
        limits: multiples, minimum widths, caps.
        made: what else to write into the plan about its making.

    Raises:
        BudgetError: the limits, and what can go together, do not let the cost fall to the budget; ``closest`` says how
            far it falls. Or the cost was counted on another model or example than the scores.
        PlanError: the budget is met without cutting anything, or a limit makes no sense or matches no group.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
        >>> allocate(scores, sc.Budget.of_dense(sc.params(net), 0.5), sc.uniform).removed
        5
    """
    whole = all_of(budget)
    choices = _choices(scores, whole, limits or Limits())
    about = {**_about(scores, budget, allocation), **(made or {})}
    floor = None
    if choices.price(choices.least) > whole.limit:
        floor = _reachable(choices, scores, whole)
    counts = allocation(scores, whole, choices.options)
    if floor is not None and choices.price(counts) > whole.limit:
        counts = floor
    try:
        return _plan(scores, whole, counts, about)
    except (PlanError, CoupleError):
        if any(counts[n] not in o for n, o in choices.options.items()) or choices.possible(counts):
            raise
    floor = floor or _reachable(choices, scores, whole)
    counts = reconciled(choices, counts, lambda left: allocation(scores, whole, left), whole.limit, floor)
    return _plan(scores, whole, counts, about)


def _choices(scores: Scores, budget: Budget, limits: Limits) -> Choices:
    groups = scores.groups
    check_limits(groups, limits)
    check_same_count(groups, budget)
    return Choices(
        {g.name: allowed_counts(g, limits) for g in groups},
        lambda counts: fits(groups, keep_best(scores, counts)),
        lambda counts: budget.cost.of(groups, keep_best(scores, counts)),
    )


def _about(scores: Scores, budget: Budgets, allocation: Allocation) -> dict[str, Any]:
    return {
        "criterion": scores.criterion,
        "normalization": scores.normalization,
        "allocation": getattr(allocation, "__name__", type(allocation).__name__),
        "budget": asked(budget),
    }


def _reachable(choices: Choices, scores: Scores, budget: Budget) -> Counts:
    """A choice that can be carried out and meets the budget: the least, or where less costs more, another."""
    counts, _ = choices.raised(choices.least)
    parts = parts_of(budget)

    def price(part: Budget) -> Callable[[Counts], float]:
        return lambda c: float(part.cost.of(scores.groups, keep_best(scores, c)))

    if choices.price(counts) <= budget.limit:
        return counts
    joint = _descended(choices, counts, choices.price)
    if choices.price(joint) <= budget.limit:
        return joint
    singles = [_descended(choices, counts, price(p)) for p in parts] if len(parts) > 1 else [joint]
    for start in singles:  # the largest of several costs has ridges on which no single group leads down
        joint = min(joint, _descended(choices, start, choices.price), key=choices.price)
    if choices.price(joint) <= budget.limit:
        return joint
    what = "that the limits allow" if counts == choices.least else "that the limits allow and that can go together"
    each = [price(p)(c) for p, c in zip(parts, singles, strict=True)]
    raise cannot_be_met(budget, each, [price(p)(joint) for p in parts], f"with everything cut {what}")


def _descended(choices: Choices, counts: Counts, price: Callable[[Counts], float]) -> Counts:
    """From a choice, one group after another to the count that costs least, while that helps."""
    best, found = dict(counts), price(counts)
    for _ in range(3):
        before = found
        for n, o in choices.options.items():
            for c in o[spread(o, best[n], 32)].tolist():
                tried = {**best, n: c}
                now = price(tried)
                if now < found and choices.possible(tried):
                    best, found = tried, now
        if found >= before:
            break
    return best


def _plan(scores: Scores, budget: Budget, counts: Counts, made: Mapping[str, Any]) -> Plan:
    keep = keep_best(scores, counts)
    if all(m.all() for m in keep.values()):
        held = " and ".join(
            f"{p.cost.name} is {amount(p.cost.dense, p.cost)} and the budget {p.limit:.6g} holds already"
            for p in parts_of(budget)
        )
        raise PlanError(f"nothing is cut: {held}; ask for less")
    return make_plan(scores.groups, keep, made)


def allowed_counts(group: Group, limits: Limits) -> Ints:
    """Kept counts that the limits allow, ascending; the whole group is always one of them."""
    step = math.lcm(limits.by_kind.get(group.kind, limits.multiple), group.multiple)
    most = limits.max_sparsity
    for pattern, fraction in limits.per_group.items():
        if fnmatch.fnmatch(group.name, pattern):
            most = fraction
    floor = max(limits.minimum, group.least, int(np.ceil(group.units * (1 - most) - 1e-9)))
    counts = np.arange(step, group.units + 1, step)
    return np.unique(np.append(counts[counts >= floor], group.units)).astype(np.int64)


def check_limits(groups: Groups, limits: Limits) -> None:
    """Refuse limits that make no sense or touch nothing.

    Raises:
        PlanError: names the limit, what was given and what it may be.
    """
    kinds = sorted({*_KINDS, *(g.kind for g in groups)})
    wrong = [
        f"{what} must be a whole number of at least {least}, got {n!r}"
        for what, n, least in (
            ("multiple", limits.multiple, 1),
            ("minimum", limits.minimum, 0),
            *((f"by_kind[{k!r}]", n, 1) for k, n in limits.by_kind.items()),
        )
        if not isinstance(n, int) or n < least
    ]
    wrong += [
        f"{what} is the largest fraction removed, in [0, 1], got {f!r}"
        for what, f in (
            ("max_sparsity", limits.max_sparsity),
            *((f"per_group[{p!r}]", f) for p, f in limits.per_group.items()),
        )
        if not 0 <= f <= 1
    ]
    wrong += [f"by_kind {k!r} is no kind of unit; the kinds are {kinds}" for k in limits.by_kind if k not in kinds]
    names = [g.name for g in groups]
    wrong += [
        f"per_group {p!r} matches no group; there are {names}" for p in limits.per_group if not fnmatch.filter(names, p)
    ]
    if wrong:
        raise PlanError(f"limits: {'; '.join(wrong)}")
