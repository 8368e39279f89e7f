"""Allocation against exhaustive search, and the limits it must respect."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.choose.allocate import allowed_counts, keep_best
from secateur.errors import BudgetError, PlanError
from secateur.types import Cost, Group
from tiny import counts, groups_of, mlp, scores_of

SIZES = (5, 6, 4)
NET = mlp(3, *SIZES, 2)
GROUPS = groups_of(NET, torch.zeros(1, 3))
NAMES = [g.name for g in GROUPS]
ALLOCATIONS = [sc.uniform, sc.global_, sc.knapsack]


def additive(curves: Mapping[str, list[float]], base: float = 0.0) -> Cost:
    """A cost that is a sum of one curve a group over what is kept."""

    def of(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
        return base + float(sum(curves[n][int(keep[n].sum())] for n in curves))

    return Cost("toy", "", base + sum(c[-1] for c in curves.values()), of)


def every_choice(limits: sc.Limits | None = None) -> list[dict[str, int]]:
    options = {g.name: allowed_counts(g, limits or sc.Limits()) for g in GROUPS}
    return [dict(zip(options, map(int, c), strict=True)) for c in itertools.product(*options.values())]


def lost(scores: sc.Scores, choice: Mapping[str, int]) -> float:
    return float(sum(np.sort(scores.values[n])[: len(scores.values[n]) - k].sum() for n, k in choice.items()))


scores_strategy = st.tuples(
    *(st.lists(st.floats(0, 10, allow_nan=False, width=32), min_size=n, max_size=n) for n in SIZES)
)
curve_strategy = st.tuples(*(st.lists(st.integers(1, 50), min_size=n, max_size=n) for n in SIZES))


@settings(max_examples=60, deadline=None)
@given(values=scores_strategy, steps=curve_strategy, share=st.floats(0.0, 0.98), base=st.integers(0, 40))
def test_knapsack_is_the_best_of_all_choices(values: Any, steps: Any, share: float, base: int) -> None:
    scores = scores_of(GROUPS, values)
    curves = {n: [0.0, *np.cumsum(s).astype(float).tolist()] for n, s in zip(NAMES, steps, strict=True)}
    cost = additive(curves, base)
    least = base + sum(c[1] for c in curves.values())
    limit = least + share * (cost.dense - least)
    plan = sc.allocate(scores, sc.Budget(cost, limit), sc.knapsack)
    assert cost.of(GROUPS, plan.keep) <= limit
    best = min(
        lost(scores, c) for c in every_choice() if additive(curves, base).of(GROUPS, keep_best(scores, c)) <= limit
    )
    step = limit / 4096 * len(SIZES)  # what rounding to buckets may hide
    tight = [c for c in every_choice() if cost.of(GROUPS, keep_best(scores, c)) <= limit - step]
    assert best - 1e-6 <= lost(scores, counts(plan)) <= min((lost(scores, c) for c in tight), default=np.inf) + 1e-6


@settings(max_examples=30, deadline=None)
@given(values=scores_strategy, share=st.floats(0.05, 0.95))
def test_knapsack_meets_costs_of_two_sides(values: Any, share: float) -> None:
    """Parameters of a chain multiply neighbouring widths: linearised, but never over, and never worse than uniform."""
    scores, cost = scores_of(GROUPS, values), sc.params(NET)
    least = cost.of(GROUPS, {g.name: np.arange(g.units) < 1 for g in GROUPS})
    budget = sc.Budget(cost, least + share * (cost.dense - 1 - least))
    plan = sc.allocate(scores, budget, sc.knapsack)
    assert cost.of(GROUPS, plan.keep) <= budget.limit
    even = sc.allocate(scores, budget, sc.uniform)
    assert lost(scores, counts(plan)) <= lost(scores, counts(even)) + 1e-9
    for name, n in counts(plan).items():  # nothing more fits
        if n < GROUPS[name].units:
            assert cost.of(GROUPS, keep_best(scores, {**counts(plan), name: n + 1})) > budget.limit


@settings(max_examples=20, deadline=None)
@given(values=scores_strategy, share=st.floats(0.0, 0.98), allocation=st.sampled_from(ALLOCATIONS[:2]))
def test_uniform_and_global_cut_no_more_than_they_must(values: Any, share: float, allocation: Any) -> None:
    scores, cost = scores_of(GROUPS, values), sc.params(NET)
    least = cost.of(GROUPS, {g.name: np.arange(g.units) < 1 for g in GROUPS})
    limit = least + share * (cost.dense - 1 - least)
    found = counts(sc.allocate(scores, sc.Budget(cost, limit), allocation))
    assert cost.of(GROUPS, keep_best(scores, found)) <= limit
    if allocation is sc.uniform:
        path = [{g.name: max(round(f * g.units), 1) for g in GROUPS} for f in np.linspace(1, 0, 4097)]
    else:  # one ranking, each step takes one more unit
        ranked = sorted((v, i, u) for i, n in enumerate(NAMES) for u, v in enumerate(scores.values[n].tolist()))
        left, path = {g.name: g.units for g in GROUPS}, []
        path.append(dict(left))
        for _, i, _ in ranked:
            left[NAMES[i]] -= 1
            path.append({n: max(k, 1) for n, k in left.items()})
    assert found == next(c for c in path if cost.of(GROUPS, keep_best(scores, c)) <= limit)


def test_within_a_group_the_best_stay_and_ties_go_to_the_earlier() -> None:
    scores = scores_of(GROUPS, [[1, 5, 1, 1, 4], [2] * 6, [0, 0, 0, 9]])
    keep = keep_best(scores, dict(zip(NAMES, (3, 4, 2), strict=True)))
    assert [np.nonzero(keep[n])[0].tolist() for n in NAMES] == [[0, 1, 4], [0, 1, 2, 3], [0, 3]]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_equal_scores_still_meet_the_budget_exactly(allocation: Any) -> None:
    scores = scores_of(GROUPS, [[1.0] * n for n in SIZES])
    units = additive({n: list(range(k + 1)) for n, k in zip(NAMES, SIZES, strict=True)})
    for limit in range(len(SIZES), sum(SIZES)):
        plan = sc.allocate(scores, sc.Budget(units, limit), allocation)
        kept = sum(counts(plan).values())
        assert kept <= limit
        if allocation is not sc.uniform:
            assert kept == limit  # what was asked is what is cut
        assert plan.removed == sum(SIZES) - kept


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_less_budget_keeps_a_part_of_what_more_budget_keeps(allocation: Any) -> None:
    scores = scores_of(GROUPS, [np.random.default_rng(i).random(n).tolist() for i, n in enumerate(SIZES)])
    cost, last = sc.params(NET), None
    for fraction in (0.9, 0.7, 0.5, 0.3):
        plan = sc.allocate(scores, sc.Budget.of_dense(cost, fraction), allocation)
        if last is not None:
            assert plan.removed > last.removed
            if allocation is not sc.knapsack:
                assert all((last.keep[n] | ~plan.keep[n]).all() for n in NAMES)
        for n in NAMES:  # in each group the best-scored, whatever the count
            assert scores.values[n][plan.keep[n]].min() > scores.values[n][~plan.keep[n]].max(initial=-1)
        last = plan


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (sc.Limits(), [1, 2, 3, 4, 5]),
        (sc.Limits(multiple=2), [2, 4, 5]),
        (sc.Limits(multiple=8), [5]),
        (sc.Limits(minimum=3), [3, 4, 5]),
        (sc.Limits(minimum=9), [5]),
        (sc.Limits(max_sparsity=0.4), [3, 4, 5]),
        (sc.Limits(max_sparsity=0.0), [5]),
        (sc.Limits(multiple=2, minimum=3), [4, 5]),
        (sc.Limits(by_kind={"neuron": 3}), [3, 5]),
        (sc.Limits(multiple=2, by_kind={"head": 1}), [2, 4, 5]),
        (sc.Limits(max_sparsity=0.2, per_group={"a*": 0.6}), [2, 3, 4, 5]),
        (sc.Limits(per_group={"*": 0.2, "a:neuron": 0}), [5]),
    ],
)
def test_allowed_counts(limits: sc.Limits, expected: list[int]) -> None:
    assert allowed_counts(Group("a:neuron", "neuron", 5, ()), limits).tolist() == expected


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_limits_hold_in_every_allocation(allocation: Any) -> None:
    limits = sc.Limits(multiple=2, minimum=2, per_group={NAMES[2]: 0.0})
    scores = scores_of(GROUPS, [[1, 2, 3, 4, 5], [1] * 6, [0] * 4])
    found = counts(sc.allocate(scores, sc.Budget.of_dense(sc.params(NET), 0.7), allocation, limits))
    assert found in every_choice(limits)
    assert found[NAMES[2]] == 4


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("limits", [sc.Limits(), sc.Limits(multiple=2, minimum=4), sc.Limits(max_sparsity=0.3)])
def test_a_budget_out_of_reach_says_what_is(allocation: Any, limits: sc.Limits) -> None:
    scores, cost = scores_of(GROUPS, [[1.0] * n for n in SIZES]), sc.params(NET)
    true = min(cost.of(GROUPS, keep_best(scores, c)) for c in every_choice(limits))
    with pytest.raises(BudgetError, match=r"params <= .* cannot be met.*Ask for at least that") as caught:
        sc.allocate(scores, sc.Budget(cost, true - 1), allocation, limits)
    assert caught.value.closest == true
    assert cost.of(GROUPS, sc.allocate(scores, sc.Budget(cost, true), allocation, limits).keep) == true


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_budget_that_holds_already_is_an_error(allocation: Any) -> None:
    scores, cost = scores_of(GROUPS, [[1.0] * n for n in SIZES]), sc.params(NET)
    for budget in (sc.Budget.of_dense(cost, 1.0), sc.Budget(cost, 10 * cost.dense)):
        with pytest.raises(PlanError, match="nothing is cut.*ask for less"):
            sc.allocate(scores, budget, allocation)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (sc.Limits(multiple=0), "multiple must be a whole number of at least 1, got 0"),
        (sc.Limits(minimum=-1), "minimum must be a whole number"),
        (sc.Limits(multiple=1.5), "got 1.5"),  # type: ignore[arg-type]
        (sc.Limits(max_sparsity=1.2), r"max_sparsity is the largest fraction removed, in \[0, 1\], got 1.2"),
        (sc.Limits(per_group={"*": 50}), r"per_group\['\*'\] is the largest fraction"),
        (sc.Limits(per_group={"nothing*": 0.5}), "per_group 'nothing\\*' matches no group; there are"),
        (sc.Limits(by_kind={"haed": 1}), "by_kind 'haed' is no kind of unit; the kinds are .*'head'"),
        (sc.Limits(by_kind={"head": 0}), r"by_kind\['head'\] must be"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: sc.Limits, words: str) -> None:
    scores = scores_of(GROUPS, [[1.0] * n for n in SIZES])
    with pytest.raises(PlanError, match=words):
        sc.allocate(scores, sc.Budget.of_dense(sc.params(NET), 0.5), sc.uniform, limits)


def test_the_plan_says_what_made_it() -> None:
    scores, cost = scores_of(GROUPS, [[1.0] * n for n in SIZES]), sc.params(NET)
    made = sc.allocate(scores, sc.Budget.of_dense(cost, 0.5), sc.knapsack, made={"seed": 3}).made
    assert made == {
        "criterion": "given",
        "normalization": "none",
        "allocation": "knapsack",
        "budget": {"cost": "params", "fraction": 0.5},
        "seed": 3,
    }
    assert sc.allocate(scores, sc.Budget(cost, 40), sc.uniform).made["budget"] == {"cost": "params", "limit": 40.0}
    nameless = functools.partial(sc.uniform)  # its text would hold an address, another one in every run
    assert sc.allocate(scores, sc.Budget(cost, 40), nameless).made["allocation"] == "partial"


def test_knapsack_where_a_staircase_makes_smaller_dearer() -> None:
    """Odd widths cost as much as the next even one and a bit: only even ones are worth choosing."""
    curves = {
        n: [2 * ((k + 1) // 2) + 0.5 * (k % 2) for k in range(size + 1)] for n, size in zip(NAMES, SIZES, strict=True)
    }
    scores = scores_of(GROUPS, [np.arange(1, n + 1).tolist() for n in SIZES])
    cost = additive(curves)
    plan = sc.allocate(scores, sc.Budget(cost, 10), sc.knapsack)
    assert cost.of(GROUPS, plan.keep) <= 10
    best = min(lost(scores, c) for c in every_choice() if cost.of(GROUPS, keep_best(scores, c)) <= 10)
    assert lost(scores, counts(plan)) == best


def test_a_budget_counted_on_another_batch_or_model_is_refused() -> None:
    x = torch.zeros(1, 3)
    scores = sc.score(NET, GROUPS, sc.magnitude)
    for cost in (sc.macs(NET, torch.zeros(4, 3)), sc.params(mlp(3, 50, 2))):
        with pytest.raises(BudgetError, match="same example"):
            sc.allocate(scores, sc.Budget.of_dense(cost, 0.5), sc.uniform)
    assert sc.allocate(scores, sc.Budget.of_dense(sc.macs(NET, x), 0.5), sc.uniform).removed
