"""Plans: what a choice of units means for every tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.errors import PlanError
from tiny import attention, counts, groups_of, mlp

NET = mlp(4, 8, 6, 2)
GROUPS = groups_of(NET, torch.zeros(1, 4))


def test_a_plan_names_the_axes_that_lose_something() -> None:
    keep = np.array([True, False] * 4)
    plan = sc.make_plan(GROUPS, {"0:neuron": keep}, {"why": "test"})
    assert set(plan.axes) == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    assert all(np.array_equal(m, keep) for m in plan.axes.values())
    assert plan.keep["2:neuron"].all()  # what is not named stays whole
    assert (plan.removed, plan.made, plan.kinds["0:neuron"]) == (4, {"why": "test"}, "neuron")
    assert (plan.attributes, plan.renumber) == ({}, {})


def test_a_plan_sets_the_constants_of_the_code() -> None:
    net = attention()
    groups = groups_of(net, torch.zeros(1, 5, 16))
    name = next(g.name for g in groups if g.kind == "head")
    plan = sc.make_plan(groups, {name: np.array([True, False, True, True])})
    assert plan.attributes == {("", "heads"): (4, 3)}


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"0:neuron": np.ones(7, bool)}, r"0:neuron' has shape \(7,\); expected \(8,\)"),
        ({"nothing": np.ones(8, bool)}, r"nothing' has shape \(8,\); expected \['0:neuron', '2:neuron'\]"),
        ({"0:neuron": np.zeros(8, bool)}, "would lose all of its 8 units; keep at least one"),
    ],
)
def test_masks_that_do_not_fit_are_refused(keep: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        sc.make_plan(GROUPS, keep)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.0, [8, 6]), (0.3, [6, 4]), (0.5, [4, 3]), (0.99, [1, 1])])
def test_random_plans_have_exact_counts(sparsity: float, expected: list[int]) -> None:
    plan = sc.random_plan(GROUPS, sparsity, seed=0)
    assert list(counts(plan).values()) == expected
    again, other = sc.random_plan(GROUPS, sparsity, seed=0), sc.random_plan(GROUPS, sparsity, seed=1)
    assert all(np.array_equal(plan.keep[n], again.keep[n]) for n in plan.keep)
    if sparsity == 0.5:
        assert any(not np.array_equal(plan.keep[n], other.keep[n]) for n in plan.keep)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50])
def test_sparsity_is_a_part(sparsity: float) -> None:
    with pytest.raises(PlanError, match=r"sparsity is the fraction removed, in \[0, 1\)"):
        sc.random_plan(GROUPS, sparsity, seed=0)
