"""How much goes where: turn scores and a budget into a choice of units. Ranks and counts, never thresholds."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from secateur.choose.plan import make_plan
from secateur.choose.together import Choices, Counts, fits, least, reconciled
from secateur.errors import BudgetError, CoupleError, PlanError
from secateur.graph.couple import Groups
from secateur.types import Bools, Budget, Cost, Floats, Group, Ints, Limits, Plan, Scores

_KINDS = ("channel", "embedding", "expert", "head", "head_dim", "hidden", "neuron", "width")

Allocation: TypeAlias = Callable[[Scores, Budget, Mapping[str, Ints]], Counts]
"""``(scores, budget, allowed counts of each group, ascending) -> units kept of each group``."""


def allocate(
    scores: Scores,
    budget: Budget,
    allocation: Allocation,
    limits: Limits | None = None,
    made: Mapping[str, Any] | None = None,
) -> Plan:
    """Choose which units stay so that the budget holds: the best-scored of each group, ties by position.

    Where groups cannot all be cut as the allocation chooses (together they would leave nothing of an axis, or a size
    in the code could not follow), it is asked again without the counts that were refused.

    Args:
        scores: from `sc.score`, made comparable across groups where the allocation compares them.
        budget: upper limit on a cost.
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
    choices = _choices(scores, budget, limits or Limits())
    about = {**_about(scores, budget, allocation), **(made or {})}
    if choices.price(choices.least) > budget.limit:
        return _plan(scores, budget, _reachable(choices, budget), about)
    counts = allocation(scores, budget, choices.options)
    try:
        return _plan(scores, budget, counts, about)
    except (PlanError, CoupleError):
        if any(counts[n] not in o for n, o in choices.options.items()) or choices.possible(counts):
            raise
    floor = _reachable(choices, budget)
    counts = reconciled(choices, counts, lambda left: allocation(scores, budget, left), budget.limit, floor)
    return _plan(scores, budget, counts, about)


def _choices(scores: Scores, budget: Budget, limits: Limits) -> Choices:
    groups = scores.groups
    check_limits(groups, limits)
    _check_same_count(groups, budget.cost)
    return Choices(
        {g.name: allowed_counts(g, limits) for g in groups},
        lambda counts: fits(groups, keep_best(scores, counts)),
        lambda counts: budget.cost.of(groups, keep_best(scores, counts)),
    )


def _about(scores: Scores, budget: Budget, allocation: Allocation) -> dict[str, Any]:
    return {
        "criterion": scores.criterion,
        "normalization": scores.normalization,
        "allocation": getattr(allocation, "__name__", type(allocation).__name__),
        "budget": asked(budget),
    }


def _reachable(choices: Choices, budget: Budget) -> Counts:
    """The least that can be carried out, if the budget holds there."""
    counts, _ = choices.raised(choices.least)
    reachable = float(choices.price(counts))
    if reachable <= budget.limit:
        return counts
    what = "that the limits allow" if counts == choices.least else "that the limits allow and that can go together"
    raise BudgetError(
        f"budget {budget.cost.name} <= {_amount(budget.limit, budget.cost)} cannot be met: with everything cut {what}, "
        f"{_amount(reachable, budget.cost)} is left of {budget.cost.dense:.6g}. Ask for at least that, or relax "
        "minimum, multiple, max_sparsity, per_group or ignore",
        closest=reachable,
    )


def _plan(scores: Scores, budget: Budget, counts: Counts, made: Mapping[str, Any]) -> Plan:
    keep = keep_best(scores, counts)
    if all(m.all() for m in keep.values()):
        raise PlanError(
            f"nothing is cut: {budget.cost.name} is {_amount(budget.cost.dense, budget.cost)} and the budget "
            f"{budget.limit:.6g} holds already; ask for less"
        )
    return make_plan(scores.groups, keep, made)


def _amount(value: float, cost: Cost) -> str:
    return f"{value:.6g} {cost.unit}".rstrip()


def _check_same_count(groups: Groups, cost: Cost) -> None:
    if cost.measured is not None:
        return  # predicted from a measurement of the dense model
    whole = cost.of(groups, groups.all_kept())
    if not math.isclose(whole, cost.dense, rel_tol=1e-6):
        raise BudgetError(
            f"{cost.name} of the budget were counted as {_amount(cost.dense, cost)}, but what is to be cut has "
            f"{whole:.6g}: count and trace the same model on the same example (batch size and lengths included)"
        )


def asked(budget: Budget) -> dict[str, Any]:
    """A budget as it stands in a plan: nothing that was measured."""
    if budget.fraction is not None:
        return {"cost": budget.cost.name, "fraction": budget.fraction}
    return {"cost": budget.cost.name, "limit": budget.limit}


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

    return counts(least(steps, lambda i: budget.cost.of(scores.groups, keep_best(scores, counts(i))) <= budget.limit))


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
    return counts(least(len(ranked), lambda i: cost(scores.groups, keep_best(scores, counts(i))) <= budget.limit))


def _atleast(options: Ints, count: int) -> int:
    return int(options[np.searchsorted(options, max(count, options[0]))])


def knapsack_with(buckets: int = 4096, rounds: int = 4) -> Allocation:
    """`knapsack` with another resolution of the budget or number of linearisations."""

    def knapsack(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        """Least total score lost under the budget, over all groups at once: a multiple-choice knapsack.

        Each group chooses one of its allowed counts; within a group the lowest scores go first (the precedence of
        HALP, arXiv:2110.10811). Solved by dynamic programming over the budget in ``buckets`` steps. Where a group's
        cost depends on the others (the two sides of a convolution) it is linearised around the last solution,
        ``rounds`` times, and the best solution that truly meets the budget is kept.

        Time: groups x options x buckets; memory: groups x buckets.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
            >>> sc.allocate(scores, sc.Budget.of_dense(sc.params(net), 0.5), sc.knapsack).removed
            5
        """
        loss = {g.name: _losses(scores.values[g.name], options[g.name]) for g in scores.groups}
        counts: Counts = uniform(scores, budget, options)
        best, least = counts, _total(loss, options, counts)
        aim = budget.limit
        for _ in range(rounds):
            costs, fixed = _marginal(scores, budget, options, counts)
            counts = _solve(loss, costs, options, aim - fixed, buckets)
            found = budget.cost.of(scores.groups, keep_best(scores, counts))
            total = _total(loss, options, counts)
            if found <= budget.limit and total < least:
                best, least = counts, total
            aim *= min(max(budget.limit / found, 0.8), 1.25)
        return _fill(scores, budget, options, loss, best)

    return knapsack


def _losses(values: Floats, options: Ints) -> Floats:
    """Score lost at each allowed count."""
    lost = np.concatenate([[0.0], np.cumsum(np.sort(values, kind="stable"))])
    out: Floats = lost[len(values) - options]
    return out


def _total(loss: Mapping[str, Floats], options: Mapping[str, Ints], counts: Counts) -> float:
    return float(sum(loss[n][np.searchsorted(options[n], c)] for n, c in counts.items()))


def _marginal(
    scores: Scores, budget: Budget, options: Mapping[str, Ints], counts: Counts
) -> tuple[dict[str, Floats], float]:
    """Cost of each option of each group with the others at ``counts``, and the part that belongs to no group."""
    of, groups = budget.cost.of, scores.groups
    base = of(groups, keep_best(scores, counts))
    costs, fixed = {}, base
    for g in groups:
        choices = options[g.name]
        probe = np.unique(np.linspace(0, len(choices) - 1, min(len(choices), 9)).round().astype(int))
        found = [of(groups, keep_best(scores, {**counts, g.name: int(choices[i])})) for i in probe]
        curve = np.interp(np.arange(len(choices)), probe, found)
        costs[g.name] = curve - curve.min()
        fixed -= float(costs[g.name][np.searchsorted(choices, counts[g.name])])
    return costs, fixed


def _solve(
    loss: Mapping[str, Floats],
    costs: Mapping[str, Floats],
    options: Mapping[str, Ints],
    room: float,
    buckets: int,
) -> Counts:
    """Dynamic programming over the room, in ``buckets`` steps; costs are rounded up, so the sum never exceeds it."""
    names = list(loss)
    unit = max(room, 0.0) / buckets
    best = np.zeros(buckets + 1)
    taken: list[Ints] = []
    for n in names:
        steps = np.ceil(costs[n] / unit - 1e-9).astype(np.int64) if unit > 0 else (costs[n] > 0) * (buckets + 1)
        after = np.full(buckets + 1, np.inf)
        choice = np.zeros(buckets + 1, np.int64)
        for j, (step, lost) in enumerate(zip(steps.tolist(), loss[n].tolist(), strict=True)):
            if step > buckets:
                continue
            candidate = np.full(buckets + 1, np.inf)
            candidate[step:] = best[: buckets + 1 - step] + lost
            better = candidate < after
            after[better], choice[better] = candidate[better], j
        best, taken = after, [*taken, choice]
    at, counts = buckets, {}
    if not np.isfinite(best[at]):
        return {n: int(options[n][0]) for n in names}
    for n, choice in zip(reversed(names), reversed(taken), strict=True):
        j = int(choice[at])
        counts[n] = int(options[n][j])
        at -= int(np.ceil(costs[n][j] / unit - 1e-9)) if unit > 0 else 0
    return {n: counts[n] for n in names}


def _fill(
    scores: Scores, budget: Budget, options: Mapping[str, Ints], loss: Mapping[str, Floats], counts: Counts
) -> Counts:
    """Give back what still fits after rounding, the most valuable first."""
    counts = dict(counts)
    while True:
        steps = []
        for n, c in counts.items():
            i = int(np.searchsorted(options[n], c))
            if i + 1 < len(options[n]):
                steps.append((float(loss[n][i] - loss[n][i + 1]), n, int(options[n][i + 1])))
        for _, n, c in sorted(steps, key=lambda s: -s[0]):
            if budget.cost.of(scores.groups, keep_best(scores, {**counts, n: c})) <= budget.limit:
                counts[n] = c
                break
        else:
            return counts


knapsack = knapsack_with()
"""`knapsack_with` its defaults."""
