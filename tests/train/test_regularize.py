"""Penalties on units against plain loops, and growing regularisation against the paper's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
import tiny
from secateur.errors import ArgumentError, PlanError
from secateur.train.regularize import (
    doomed,
    group_decay,
    group_lasso,
    growing_l2,
    residue,
    unit_norms,
    vanished,
)
from secateur.train.sparse import Sparse

IMAGE, VECTOR = torch.zeros(1, 3, 8, 8), torch.zeros(1, 6)


def value(penalty: Tensor) -> float:
    return penalty.detach().item()


def mlp_unit(model: nn.Module, u: int) -> float:
    """Squared norm of a hidden unit's row, bias and column."""
    row, bias, column = model[0].weight[u], model[0].bias[u], model[2].weight[:, u]
    return float(sum(v**2 for v in torch.cat([row, bias[None], column]).tolist()))


def test_group_lasso_is_the_sum_of_norms() -> None:
    model = tiny.mlp(6, 10, 4)
    groups = tiny.groups_of(model, VECTOR)
    sizes = [mlp_unit(model, u) ** 0.5 for u in range(10)]
    assert value(group_lasso(model, groups, 0.5)) == pytest.approx(0.5 * sum(sizes))
    assert unit_norms(model, groups)["0:neuron"].tolist() == pytest.approx(sizes)
    gamma = [2 ** (3 * (max(sizes) - s) / (max(sizes) - min(sizes))) for s in sizes]
    weighted = sum(g * s for g, s in zip(gamma, sizes, strict=True))
    assert value(group_lasso(model, groups, 0.5, alpha=3)) == pytest.approx(0.5 * weighted)


def test_group_decay_weighs_squared_norms() -> None:
    model = tiny.mlp(6, 10, 4)
    sizes = [mlp_unit(model, u) for u in range(10)]
    gamma = [2 ** (4 * (max(sizes) - s) / (max(sizes) - min(sizes))) for s in sizes]
    weighted = sum(g * s for g, s in zip(gamma, sizes, strict=True))
    assert value(group_decay(model, tiny.groups_of(model, VECTOR), 0.1)) == pytest.approx(0.1 * weighted)


def test_its_gradient_is_the_unit_vector_and_zero_at_zero() -> None:
    model = tiny.mlp(6, 10, 4)
    with torch.no_grad():
        for part, dim in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            part.index_fill_(dim, torch.tensor([3]), 0)
    group_lasso(model, tiny.groups_of(model, VECTOR), 2.0).backward()
    for u in range(10):
        expected = 0 if u == 3 else 2 * model[0].weight[u].detach() / mlp_unit(model, u) ** 0.5
        torch.testing.assert_close(model[0].weight.grad[u], torch.zeros(6) + expected)
    assert model[2].bias.grad is None  # of no unit


def test_equal_units_weigh_alike() -> None:
    model = tiny.mlp(6, 10, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    groups = tiny.groups_of(model, VECTOR)
    assert value(group_lasso(model, groups, 1.0, alpha=4)) == pytest.approx(value(group_lasso(model, groups, 1.0)))


def test_a_penalised_net_loses_units_that_can_go() -> None:
    torch.manual_seed(0)
    model = tiny.cnn()
    groups = tiny.groups_of(model, IMAGE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(8, 3, 8, 8)
    target = model(x).detach() * 0.1
    for _ in range(150):
        optimizer.zero_grad()
        ((model(x) - target).square().mean() + group_lasso(model, groups, 0.05, alpha=4)).backward()
        optimizer.step()
    keep = vanished(model, groups, tolerance=0.1)
    assert any(not mask.all() for mask in keep.values())
    assert all(mask.any() for mask in keep.values())
    for g in groups:
        norms = unit_norms(model, groups)[g.name]
        assert (keep[g.name] == (norms > 0.1 * norms.max())).all()
    plan = sc.make_plan(groups, keep)
    model.eval()
    torch.testing.assert_close(sc.apply(plan, model)(x), sc.masked(plan, model)(x))


def test_growing_l2_is_the_papers_loop() -> None:
    model = tiny.cnn()
    plan = sc.random_plan(tiny.groups_of(model, IMAGE), 0.5, seed=0)
    twin = copy.deepcopy(model)
    batches = tiny.draws(4, 6, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Sparse(model, optimizer, growing_l2(plan, delta=0.05, every=10, ceiling=0.8))
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    named = dict(twin.named_parameters())
    for t in range(200):
        optimizer.zero_grad()
        model(batches[t % 4]).square().mean().backward()
        optimizer.step()
        strength = min(0.8, 0.05 * (t // 10))
        penalty = torch.zeros(())
        for name, p in named.items():
            gone = np.zeros(p.shape, bool)
            for (tensor, dim), keep in plan.axes.items():
                if tensor == name:
                    np.moveaxis(gone, dim, 0)[~keep] = True
            penalty = penalty + strength / 2 * p[torch.from_numpy(gone)].square().sum()
        theirs.zero_grad()
        (twin(batches[t % 4]).square().mean() + penalty).backward()
        theirs.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, named[name], rtol=1e-4, atol=1e-5)
    assert run.masks.sparsity == 0
    assert residue(model, plan) < 1e-3
    run.strip()
    torch.testing.assert_close(sc.apply(plan, model)(batches[0]), model(batches[0]), rtol=1e-2, atol=1e-3)


def test_what_is_doomed_is_what_masking_zeroes() -> None:
    model = tiny.attention()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.where(p == 0, 1.0, 0.0))
    plan = sc.random_plan(tiny.groups_of(model, torch.zeros(1, 5, 16)), 0.5, seed=1)
    masked = dict(sc.masked(plan, model).named_parameters())
    gone = doomed(model, plan)
    for name, p in model.named_parameters():
        assert torch.equal(masked[name] == 0, gone.get(name, torch.zeros_like(p, dtype=torch.bool)))


@pytest.mark.parametrize("bad", [dict(delta=0.0), dict(every=0), dict(ceiling=-1.0)])
def test_growth_must_grow(bad: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        growing_l2(sc.Plan({}, {}, {}, {}, {}, {}), **bad)


def test_a_penalty_is_not_negative() -> None:
    model = tiny.mlp(6, 4, 2)
    groups = tiny.groups_of(model, VECTOR)
    with pytest.raises(ArgumentError):
        group_lasso(model, groups, -1.0)
    with pytest.raises(ArgumentError, match="there is no group"):
        group_lasso(model, [], 1.0)  # type: ignore[arg-type]


def test_what_vanished_cannot_be_told_from_nan() -> None:
    model = tiny.mlp(6, 10, 4)
    groups = tiny.groups_of(model, VECTOR)
    with torch.no_grad():
        model[0].weight[3, 1] = torch.nan
    with pytest.raises(PlanError, match="group 0:neuron: 1 of 10 units have a norm of NaN or inf"):
        vanished(model, groups)


def test_a_plan_of_other_names_or_sizes_is_refused() -> None:
    model = tiny.mlp(6, 10, 4)
    plan = sc.random_plan(tiny.groups_of(model, VECTOR), 0.5, seed=0)
    wrapped, other = nn.ModuleDict({"net": model}), tiny.mlp(6, 12, 4)
    for stranger, says in ((wrapped, "0.weight from 10 positions, which in ModuleDict is not there"), (other, "12")):
        optimizer = torch.optim.SGD(stranger.parameters(), lr=0.1)
        with pytest.raises(PlanError, match=says):
            Sparse(stranger, optimizer, growing_l2(plan))
        with pytest.raises(PlanError, match=says):
            residue(stranger, plan)


def test_growth_of_another_plan_is_refused() -> None:
    model = tiny.mlp(6, 10, 4)
    groups = tiny.groups_of(model, VECTOR)
    first, same, other = (
        Sparse(model, torch.optim.SGD(model.parameters(), lr=0.1), growing_l2(sc.random_plan(groups, 0.5, seed)))
        for seed in (0, 0, 1)
    )
    same.load_state_dict(first.state_dict())
    with pytest.raises(ArgumentError, match="axes: .* there, .* here"):
        other.load_state_dict(first.state_dict())
