"""Allocation where groups cannot all be cut as chosen, against exhaustive search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.choose.allocate import allowed_counts, keep_best
from secateur.choose.together import Choices, Counts, Options, fits, reconciled
from secateur.errors import BudgetError, CoupleError
from secateur.types import Ints
from tiny import attention, counts, groups_of, mlp, scores_of

ALLOCATIONS = [sc.uniform, sc.global_, sc.knapsack]
X = torch.zeros(2, 6)


class Joined(nn.Module):
    """Two layers side by side; what follows depends on how wide they are together."""

    def __init__(self, a: int, b: int, wide: Callable[[int, int], bool]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.out = nn.Linear(6, a), nn.Linear(6, b), nn.Linear(a + b, 4), nn.Linear(4, 3)
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        h = torch.cat([a, b], -1)
        return self.out(F.relu(self.c(F.relu(h) if self.wide(a.shape[-1], b.shape[-1]) else torch.tanh(h))))


NETS = {
    "more than eight": Joined(8, 8, lambda a, b: a + b > 8),
    "two sizes that differ": Joined(5, 7, lambda a, b: a != b),
    "one size that is not met": Joined(6, 6, lambda a, b: a != 3),
}
BUILT = {name: groups_of(net, X) for name, net in NETS.items()}


def every_choice(groups: sc.Groups, limits: sc.Limits | None = None) -> Iterator[dict[str, int]]:
    options = {g.name: allowed_counts(g, limits or sc.Limits()) for g in groups}
    for c in itertools.product(*options.values()):
        yield dict(zip(options, map(int, c), strict=True))


def cheapest(scores: sc.Scores, cost: sc.Cost, limits: sc.Limits | None = None) -> float:
    every = [keep_best(scores, c) for c in every_choice(scores.groups, limits)]
    return min(cost.of(scores.groups, k) for k in every if fits(scores.groups, k))


@pytest.mark.parametrize("name", NETS)
def test_the_nets_here_are_hard(name: str) -> None:
    """Each group can be cut by itself, and evenly is refused somewhere."""
    groups, refused = BUILT[name], 0
    for kept in range(1, min(g.units for g in groups)):
        try:
            sc.make_plan(groups, {g.name: np.arange(g.units) < kept for g in groups})
        except CoupleError:
            refused += 1
    assert refused
    assert {g.name for g in groups} == {"a:neuron", "b:neuron", "c:neuron"}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 0.999))
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_plan_is_found_whenever_there_is_one(name: str, allocation: Any, seed: int, share: float) -> None:
    groups, cost = BUILT[name], sc.params(NETS[name])
    rng = np.random.default_rng(seed)
    scores = scores_of(groups, [rng.integers(0, 4, g.units).tolist() for g in groups])
    true = cheapest(scores, cost)
    limit = true + share * (cost.dense - 1 - true)
    plan = sc.allocate(scores, sc.Budget(cost, limit), allocation)
    assert cost.of(groups, plan.keep) <= limit
    assert plan.removed
    for n, mask in plan.keep.items():  # the best-scored of each group, whatever the count
        assert scores.values[n][mask].min() >= scores.values[n][~mask].max(initial=-1)
    again = sc.allocate(scores, sc.Budget(cost, limit), allocation)
    assert counts(again) == counts(plan)
    refused = not fits(groups, keep_best(scores, dict.fromkeys(plan.keep, 1)))
    with pytest.raises(BudgetError, match="cannot be met.*can go together" if refused else "cannot be met") as caught:
        sc.allocate(scores, sc.Budget(cost, true - 1), allocation)
    assert caught.value.closest == true
    assert "  " not in str(caught.value)


@pytest.mark.parametrize("limits", [sc.Limits(multiple=2), sc.Limits(minimum=3), sc.Limits(per_group={"a*": 0})])
@pytest.mark.parametrize("name", NETS)
def test_limits_hold_where_groups_conflict(name: str, limits: sc.Limits) -> None:
    groups, cost = BUILT[name], sc.params(NETS[name])
    scores = scores_of(groups, [[1.0] * g.units for g in groups])
    true = cheapest(scores, cost, limits)
    for allocation in ALLOCATIONS:
        for limit in np.linspace(true, cost.dense - 1, 7):
            plan = sc.allocate(scores, sc.Budget(cost, limit), allocation, limits)
            assert counts(plan) in list(every_choice(groups, limits))
            assert cost.of(groups, plan.keep) <= limit


def test_what_is_found_is_what_it_cuts() -> None:
    net, x = NETS["more than eight"], torch.randn(5, 6)
    plan = sc.allocate(sc.score(net, BUILT["more than eight"], sc.magnitude), sc.Budget(sc.params(net), 90), sc.uniform)
    assert plan.keep["a:neuron"].sum() + plan.keep["b:neuron"].sum() == 9
    small = sc.apply(plan, net)
    assert sum(p.numel() for p in small.parameters()) <= 90
    assert sc.verify(net, plan, small, x).ok


def test_an_allocation_is_asked_once_where_nothing_is_refused() -> None:
    asked = []

    def once(scores: sc.Scores, budget: sc.Budget, options: Mapping[str, Ints]) -> Counts:
        asked.append(options)
        return sc.uniform(scores, budget, options)

    for net, x in ((mlp(3, 5, 6, 2), torch.zeros(1, 3)), (attention(), torch.zeros(1, 5, 16))):
        asked.clear()
        scores = sc.score(net, groups_of(net, x), sc.magnitude)
        sc.allocate(scores, sc.Budget.of_dense(sc.params(net), 0.6), once)
        assert len(asked) == 1
    net = NETS["more than eight"]
    asked.clear()
    plan = sc.allocate(sc.score(net, BUILT["more than eight"], sc.magnitude), sc.Budget(sc.params(net), 90), once)
    assert len(asked) > 1
    assert plan.made["allocation"] == "once"


def test_an_allocation_of_ones_own() -> None:
    net, groups = NETS["more than eight"], BUILT["more than eight"]
    scores, budget = sc.score(net, groups, sc.magnitude), sc.Budget(sc.params(net), 100)
    stubborn = dict.fromkeys((g.name for g in groups), 2)  # whatever is left
    plan = sc.allocate(scores, budget, lambda scores, budget, options: stubborn)
    assert budget.cost.of(groups, plan.keep) == cheapest(scores, budget.cost)
    with pytest.raises(sc.PlanError, match="would lose all of its 8 units"):
        sc.allocate(scores, budget, lambda scores, budget, options: {**stubborn, "a:neuron": 0})
    with pytest.raises(CoupleError, match="would come out otherwise"):  # counts that were not offered stay an error
        sc.allocate(scores, sc.Budget(budget.cost, 160), lambda s, b, o: stubborn, sc.Limits(multiple=4))


def test_errors_say_no_unit_where_there_is_none() -> None:
    net = mlp(3, 5, 2)
    scores = sc.score(net, groups_of(net, torch.zeros(1, 3)), sc.magnitude)
    for limit in (1, 1000):
        with pytest.raises(sc.SecateurError, match="params") as caught:
            sc.allocate(scores, sc.Budget(sc.params(net), limit), sc.uniform)
        assert "  " not in str(caught.value)
    with pytest.raises(BudgetError, match=r"macs <= 1 MAC cannot be met.*closest reachable is \d+ MAC of"):
        sc.allocate(scores, sc.Budget(sc.macs(net, torch.zeros(1, 3)), 1), sc.uniform)


def of(sizes: list[int], prices: list[int], possible: Callable[[tuple[int, ...]], bool]) -> Choices:
    names = [f"g{i}" for i in range(len(sizes))]
    return Choices(
        {n: np.arange(1, size + 1) for n, size in zip(names, sizes, strict=True)},
        lambda c: possible(tuple(int(c[n]) for n in names)),
        lambda c: float(sum(p * c[n] for n, p in zip(names, prices, strict=True))),
    )


def evenly(choices: Choices, limit: float) -> Callable[[Options], dict[str, int]]:
    """Rounds of one less of each, until the price is right."""

    def allocation(options: Options) -> dict[str, int]:
        at = {n: len(o) - 1 for n, o in options.items()}
        while choices.price({n: int(options[n][i]) for n, i in at.items()}) > limit:
            at = {n: max(i - 1, 0) for n, i in at.items()}
        return {n: int(options[n][i]) for n, i in at.items()}

    return allocation


numbers = st.lists(st.integers(1, 5), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(sizes=numbers, prices=numbers, seed=st.integers(0, 10**6), often=st.floats(0, 1), share=st.floats(0, 1))
def test_any_refusals_are_avoided(sizes: list[int], prices: list[int], seed: int, often: float, share: float) -> None:
    """Whatever is refused at random but the whole: what comes out is possible, within the limit, no less than asked."""
    every = list(itertools.product(*(range(1, s + 1) for s in sizes)))
    taken = np.random.default_rng(seed).random(len(every)) >= often
    allowed = {c for c, t in zip(every, taken, strict=True) if t} | {tuple(sizes)}
    choices = of(sizes, prices, lambda c: c in allowed)
    floor, _ = choices.raised(choices.least)
    assert choices.possible(floor)
    whole = choices.price({n: int(o[-1]) for n, o in choices.options.items()})
    limit = choices.price(floor) + share * (whole - choices.price(floor))
    allocation = evenly(choices, limit)
    first = allocation(choices.options)
    found = first if choices.possible(first) else reconciled(choices, first, allocation, limit, floor)
    assert choices.possible(found)
    assert choices.price(found) <= limit


@settings(max_examples=100, deadline=None)
@given(sizes=numbers, prices=numbers, sums=st.tuples(st.integers(0, 10), st.integers(0, 10)))
def test_the_floor_is_the_cheapest_where_pairs_must_keep_so_many(
    sizes: list[int], prices: list[int], sums: tuple[int, int]
) -> None:
    one, two = min(sums[0], sizes[0] + sizes[1]), min(sums[1], sizes[2] + sizes[3])

    def possible(c: tuple[int, ...]) -> bool:
        return c[0] + c[1] >= one and c[2] + c[3] >= two

    choices = of(sizes, prices, possible)
    floor, _ = choices.raised(choices.least)
    every = itertools.product(*(range(1, s + 1) for s in sizes))
    assert choices.price(floor) == min(sum(p * n for p, n in zip(prices, c, strict=True)) for c in every if possible(c))


def test_a_raise_costs_few_looks() -> None:
    """A hundred groups of a thousand units, of which one pair conflicts: by halves, not one by one."""
    looks = 0

    def possible(c: tuple[int, ...]) -> bool:
        nonlocal looks
        looks += 1
        return c[17] + c[80] >= 700

    choices = of([1000] * 100, [1] * 80 + [2] * 20, possible)
    floor, left = choices.raised(choices.least)
    assert floor == {**choices.least, "g17": 699}
    assert (int(left.options["g17"][0]), len(left.options["g80"])) == (699, 1000)
    assert looks < 60
