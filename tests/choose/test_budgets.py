"""Several budgets, staircases and coupled costs: allocation against exhaustive search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.choose import knapsack as knapsack_module
from secateur.choose.allocate import keep_best
from secateur.choose.budgets import all_of, parts_of
from secateur.choose.front import pareto, sweep
from secateur.choose.knapsack import dp, error_curve
from secateur.choose.pricing import Prices, Table, spread
from secateur.errors import BudgetError, PlanError
from secateur.types import Cost
from tiny import counts, groups_of, mlp, scores_of

SIZES = (5, 6, 4)
NET = mlp(3, *SIZES, 2)
GROUPS = groups_of(NET, torch.zeros(1, 3))
NAMES = [g.name for g in GROUPS]
CHOICES = [dict(zip(NAMES, c, strict=True)) for c in itertools.product(*(range(1, n + 1) for n in SIZES))]


def lost(scores: sc.Scores, choice: Mapping[str, int]) -> float:
    return float(sum(np.sort(scores.values[n])[: len(scores.values[n]) - k].sum() for n, k in choice.items()))


def random_cost(kind: str, rng: np.random.Generator, name: str = "toy") -> Cost:
    """One curve a group, or products of neighbouring widths, on a grid of units or of tiles of two."""
    if kind.startswith("coupled"):
        a, b, c = rng.integers(1, 6, 3)
        tile = 2 if kind == "coupled stairs" else 1

        def of(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
            x, y, z = (-(-int(keep[n].sum()) // tile) * tile for n in NAMES)
            return float(3 * a * x + b * x * y + c * y * z + 2 * z)

    else:
        steps = {"stairs": (0, 9), "wider is quicker": (-3, 9), "plain": (1, 50)}[kind]
        curves = {n: np.cumsum(rng.integers(*steps, k + 1)).astype(float) for n, k in zip(NAMES, SIZES, strict=True)}
        curves = {n: c - c.min() + 1 for n, c in curves.items()}

        def of(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
            return float(sum(curves[n][int(keep[n].sum())] for n in NAMES))

    return Cost(name, "", of(GROUPS, GROUPS.all_kept()), of)


def random_scores(rng: np.random.Generator) -> sc.Scores:
    return scores_of(GROUPS, [rng.random(n).tolist() for n in SIZES])


def table_of(scores: sc.Scores, costs: list[Cost]) -> Any:
    return np.array([[c.of(GROUPS, keep_best(scores, x)) for c in costs] for x in CHOICES])


KINDS = ["plain", "stairs", "wider is quicker", "coupled", "coupled stairs"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), many=st.integers(1, 3), kinds=st.lists(st.sampled_from(KINDS), min_size=3))
def test_the_knapsack_finds_the_best_of_all_choices(seed: int, many: int, kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    scores, costs = random_scores(rng), [random_cost(k, rng, f"toy{i}") for i, k in enumerate(kinds[:many])]
    table = table_of(scores, costs)
    budgets = [sc.Budget(c, np.quantile(v, rng.uniform(0.05, 0.8))) for c, v in zip(costs, table.T, strict=True)]
    inside = (table <= [b.limit for b in budgets]).all(1)
    given = budgets if many > 1 else budgets[0]
    if not inside.any():
        with pytest.raises(BudgetError, match="cannot be met"):
            sc.allocate(scores, given, sc.knapsack)
        return
    best = min(lost(scores, x) for x, ok in zip(CHOICES, inside, strict=True) if ok)
    if best == 0:
        return
    plan = sc.allocate(scores, given, sc.knapsack)
    assert all(b.cost.of(GROUPS, plan.keep) <= b.limit for b in budgets)
    assert lost(scores, counts(plan)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["plain", "stairs", "wider is quicker"])
@pytest.mark.parametrize("many", [1, 2])
def test_separate_costs_are_solved_without_trying_everything(
    kind: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knapsack_module, "EFFORT", 0)
    for seed in range(15):
        rng = np.random.default_rng(seed)
        scores, costs = random_scores(rng), [random_cost(kind, rng, f"toy{i}") for i in range(many)]
        table = table_of(scores, costs)
        budgets = [sc.Budget(c, np.quantile(v, 0.4)) for c, v in zip(costs, table.T, strict=True)]
        inside = (table <= [b.limit for b in budgets]).all(1)
        if inside.any():
            best = min(lost(scores, x) for x, ok in zip(CHOICES, inside, strict=True) if ok)
            assert lost(scores, counts(sc.allocate(scores, budgets, sc.knapsack))) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("allocation", [sc.uniform, sc.global_, sc.knapsack])
def test_every_allocation_meets_both_budgets(allocation: Any) -> None:
    scores = random_scores(np.random.default_rng(1))
    budgets = [sc.Budget.of_dense(sc.params(NET), 0.6), sc.Budget.of_dense(sc.macs(NET, torch.zeros(1, 3)), 0.5)]
    plan = sc.allocate(scores, budgets, allocation)
    assert all(b.cost.of(GROUPS, plan.keep) <= b.limit for b in budgets)
    assert plan.made["budget"] == [{"cost": "params", "fraction": 0.6}, {"cost": "macs", "fraction": 0.5}]


def test_an_allocation_of_ones_own_sees_one_budget() -> None:
    seen: list[sc.Budget] = []

    def mine(scores: sc.Scores, budget: sc.Budget, options: Mapping[str, Any]) -> Mapping[str, int]:
        seen.append(budget)
        return {n: int(o[0]) for n, o in options.items()}

    budgets = [sc.Budget.of_dense(sc.params(NET), 0.6), sc.Budget(sc.nbytes(NET), 200)]
    plan = sc.allocate(random_scores(np.random.default_rng(0)), budgets, mine)
    assert seen[0].limit == 1
    assert seen[0].parts == tuple(budgets)
    assert seen[0].cost.of(GROUPS, plan.keep) == max(b.cost.of(GROUPS, plan.keep) / b.limit for b in budgets)
    assert parts_of(all_of(budgets)) == tuple(budgets)


def test_errors_name_the_budget_that_cannot_be_met() -> None:
    scores = random_scores(np.random.default_rng(0))
    params, size = sc.params(NET), sc.nbytes(NET)
    least = params.of(GROUPS, {g.name: np.arange(g.units) < 1 for g in GROUPS})
    with pytest.raises(
        BudgetError, match=rf"budget params <= 3 cannot be met.*closest reachable is {least:g} of.*of nbytes"
    ) as caught:
        sc.allocate(scores, [sc.Budget(params, 3), sc.Budget.of_dense(size, 0.9)], sc.knapsack)
    assert "budget nbytes" not in str(caught.value)
    assert caught.value.closest == pytest.approx(least / 3)
    with pytest.raises(BudgetError, match="empty"):
        sc.allocate(scores, [], sc.knapsack)


def test_budgets_that_only_hold_apart_are_told_so() -> None:
    """One cost wants the first group narrow, the other wide."""

    def narrow(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
        return float(keep[NAMES[0]].sum())

    def wide(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
        return float(6 - keep[NAMES[0]].sum())

    budgets = [sc.Budget(Cost("narrow", "", 5.0, narrow), 2), sc.Budget(Cost("wide", "", 1.0, wide), 2)]
    with pytest.raises(BudgetError, match="cannot be met together, though each can alone; nearest.*of narrow and"):
        sc.allocate(random_scores(np.random.default_rng(0)), budgets, sc.knapsack)


def test_a_count_that_costs_no_less_than_a_larger_one_is_never_chosen() -> None:
    table = Table(
        np.arange(1, 9), np.arange(8.0)[::-1], np.ceil(np.arange(1, 9) / 4)[None] * 2 + (np.arange(1, 9) == 2)
    )
    assert table.undominated().counts.tolist() == [4, 8]
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores, cost = random_scores(rng), random_cost("wider is quicker", rng)
        try:
            plan = sc.allocate(scores, sc.Budget(cost, 0.5 * (1 + cost.dense)), sc.knapsack)
        except (BudgetError, PlanError):
            continue
        found, price = counts(plan), cost.of(GROUPS, plan.keep)
        for n, k in zip(NAMES, SIZES, strict=True):
            wider = [cost.of(GROUPS, keep_best(scores, {**found, n: c})) for c in range(found[n] + 1, k + 1)]
            assert all(w > price for w in wider)


def test_multiples_of_eight_are_among_the_options_looked_at() -> None:
    found = np.arange(1, 2049)[spread(np.arange(1, 2049), 700)]
    assert len(found) < 80
    assert {1, 64, 128, 1024, 2048, 700, 701} <= set(found.tolist())
    wide = groups_of(mlp(8, 512, 4), torch.zeros(1, 8))
    name = next(iter(wide)).name

    def of(groups: sc.Groups, keep: Mapping[str, Any]) -> float:
        return float(-(-int(keep[name].sum()) // 32) * 32)

    scores = scores_of(wide, [np.linspace(1, 2, 512).tolist()])
    plan = sc.allocate(scores, sc.Budget(Cost("tiles", "", 512.0, of), 300), sc.knapsack)
    assert counts(plan) == {name: 288}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["plain", "stairs", "coupled"]))
def test_dp_has_the_least_error_and_more_budget_never_more(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores, cost = random_scores(rng), random_cost(kind, rng)
    errors = {
        n: {k: 0.0, 1: 9.0, **{int(c): float(rng.uniform(0, 9)) for c in rng.integers(1, k, 2)}}
        for n, k in zip(NAMES, SIZES, strict=True)
    }
    curves = {n: error_curve(n, k, errors, np.arange(1, k + 1)) for n, k in zip(NAMES, SIZES, strict=True)}
    assert all((np.diff(c) <= 1e-12).all() for c in curves.values())

    def total(x: Mapping[str, int]) -> float:
        return float(sum(curves[n][x[n] - 1] for n in NAMES))

    values, last = table_of(scores, [cost])[:, 0], np.inf
    for share in (0.2, 0.4, 0.6):
        limit = float(np.quantile(values, share))
        plan = sc.allocate(scores, sc.Budget(cost, limit), dp(errors))
        found = total(counts(plan))
        assert cost.of(GROUPS, plan.keep) <= limit
        assert found == pytest.approx(min(total(x) for x, v in zip(CHOICES, values, strict=True) if v <= limit))
        assert found <= last + 1e-9
        for greedy in (sc.uniform, sc.global_):
            assert found <= total(counts(sc.allocate(scores, sc.Budget(cost, limit), greedy))) + 1e-9
        last = found


def test_dp_refuses_tables_that_lack_a_group_or_make_no_sense() -> None:
    scores, budget = random_scores(np.random.default_rng(0)), sc.Budget.of_dense(sc.params(NET), 0.5)
    with pytest.raises(PlanError, match=f"no error was measured of group {NAMES[0]}"):
        sc.allocate(scores, budget, dp({}))
    for entry in ({2: float("nan")}, {9: 1.0}):
        with pytest.raises(PlanError, match="the table has the error"):
            sc.allocate(scores, budget, dp(dict.fromkeys(NAMES, entry)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["plain", "stairs", "wider is quicker"]))
def test_every_point_of_the_front_lies_on_the_hull_of_all_choices(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores, cost = random_scores(rng), random_cost(kind, rng)
    values = table_of(scores, [cost])[:, 0]
    losses = np.array([lost(scores, x) for x in CHOICES])
    front = pareto(scores, cost)
    for p in front:
        assert p.cost == cost.of(GROUPS, keep_best(scores, p.counts))
        assert p.loss == pytest.approx(lost(scores, p.counts))
    assert front[-1].cost == values.min()
    assert front[0].loss == losses.min() == 0
    for p, q in itertools.pairwise(front):  # nothing lies below the line between two neighbours
        slope = (q.loss - p.loss) / (p.cost - q.cost)
        assert (losses + slope * values >= p.loss + slope * p.cost - 1e-9).all()


def test_the_front_of_coupled_costs_falls_and_is_hardly_above_the_best() -> None:
    rng = np.random.default_rng(0)
    scores, cost = random_scores(rng), random_cost("coupled", rng)
    values, losses = table_of(scores, [cost])[:, 0], np.array([lost(scores, x) for x in CHOICES])
    front = pareto(scores, cost)
    assert all(p.cost > q.cost and p.loss < q.loss for p, q in itertools.pairwise(front))
    assert front[-1].cost == values.min()
    assert max(p.loss - losses[values <= p.cost].min() for p in front) <= 0.1 * losses.max()


@pytest.mark.parametrize("how", [None, sc.knapsack, {n: {1: 1.0} for n in NAMES}])
def test_a_sweep_gives_a_plan_a_budget(how: Any) -> None:
    scores, cost = random_scores(np.random.default_rng(0)), sc.params(NET)
    fractions = [0.8, 0.6, 0.4, 0.001]
    plans = sweep(scores, cost, fractions, how)
    assert plans[-1] is None
    sizes = [cost.of(GROUPS, p.keep) for p in plans if p is not None]
    assert all(s <= f * cost.dense for s, f in zip(sizes, fractions, strict=False))
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(BudgetError):
        sweep(scores, cost, [0.001], how)


def test_prices_are_those_of_the_cost_and_asked_for_once() -> None:
    asked: list[int] = []
    inner = sc.params(NET)

    def of(groups: sc.Groups, keep: Any) -> float:
        asked.append(1)
        return inner.of(groups, keep)

    prices = Prices(random_scores(np.random.default_rng(0)), (Cost("params", "", inner.dense, of),))
    for x in CHOICES * 2:
        assert prices(x)[0] == inner.of(GROUPS, keep_best(prices.scores, x))
    assert len(asked) == len(CHOICES)
