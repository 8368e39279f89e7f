"""From masks to smaller models: the units that pruning has emptied go, and the function stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
import tiny
from secateur.choose.zeros import zero_units
from secateur.train.dynamic import fixed, gmp
from secateur.train.schedule import cubic
from secateur.train.sparse import Sparse


def shrunk(model: nn.Module, example: Tensor) -> tuple[sc.Plan, nn.Module]:
    """The smaller model, after it was seen to compute the same."""
    groups = tiny.groups_of(model, example)
    plan = sc.make_plan(groups, zero_units(model, groups))
    small = sc.apply(plan, model)
    x = torch.randn(3, *example.shape[1:], dtype=torch.float64)
    one, other = model.double().eval()(x), small.double().eval()(x)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    return plan, small


def masked_rows(model: nn.Module, rows: dict[str, list[int]]) -> dict[str, Tensor]:
    masks = {}
    for name, at in rows.items():
        mask = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        mask[at] = False
        masks[name] = mask
    return masks


def trained(model: nn.Module, masks: dict[str, Tensor], *shape: int) -> nn.Module:
    """A few steps with these masks, biases and norms among them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    chosen = {name: model.get_parameter(name) for name in masks}
    run = Sparse(model, optimizer, fixed(masks), chosen)
    for x in tiny.draws(10, *shape):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return run.strip().eval()


def test_an_mlp() -> None:
    model = tiny.mlp(6, 12, 10, 3)
    rows = {"0.weight": [1, 4, 5], "0.bias": [1, 4, 7], "2.weight": [0, 9], "2.bias": [0, 9]}
    plan, _ = shrunk(trained(model, masked_rows(model, rows), 8, 6), torch.zeros(1, 6))
    assert tiny.counts(plan) == {"0:neuron": 10, "2:neuron": 8}


def test_a_cnn() -> None:
    model = tiny.cnn()
    rows = {n: [0, 3, 6] for n in ("0.weight", "1.weight", "1.bias")} | {n: [2] for n in ("3.weight", "3.bias")}
    plan, _ = shrunk(trained(model, masked_rows(model, rows), 4, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    assert tiny.counts(plan) == {"0:channel": 5, "3:channel": 12}  # the second batch norm makes a constant of it


def test_a_transformer() -> None:
    model = tiny.attention()
    head = [0, 1, 2, 3]
    rows = dict.fromkeys(("v.weight", "v.bias"), head) | {n: [5, 6] for n in ("up.weight", "up.bias")}
    plan, small = shrunk(trained(model, masked_rows(model, rows), 4, 5, 16), torch.zeros(1, 5, 16))
    assert tiny.counts(plan) == {"q:head": 3, "up:neuron": 22}
    assert small.q.out_features == 12


def test_what_reads_only_units_that_go_goes_too() -> None:
    model = tiny.mlp(6, 8, 8, 8, 3, bias=False)
    with torch.no_grad():
        model[0].weight[[0, 1]] = 0
        model[2].weight[3] = 0
        model[2].weight[3, [0, 1]] = 1.0  # reads nothing but what goes
        model[4].weight[5] = 0
        model[4].weight[5, 3] = 1.0  # and so on
    plan, _ = shrunk(model, torch.zeros(1, 6))
    assert tiny.counts(plan) == {"0:neuron": 6, "2:neuron": 7, "4:neuron": 7}


def test_one_unit_of_an_empty_group_stays() -> None:
    model = tiny.mlp(6, 8, 3)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    plan, _ = shrunk(model, torch.zeros(1, 6))
    assert tiny.counts(plan) == {"0:neuron": 1}
    assert plan.keep["0:neuron"][0]


@pytest.mark.parametrize("sparsity", [0.9, 0.97])
def test_after_gradual_magnitude_pruning(sparsity: float) -> None:
    model = tiny.mlp(6, 40, 40, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = Sparse(model, optimizer, gmp(cubic(sparsity, 0, 40)))
    teacher = tiny.mlp(6, 5, 3, seed=9)
    for x in tiny.draws(60, 16, 6):
        optimizer.zero_grad()
        (model(x) - teacher(x).detach()).square().mean().backward()
        optimizer.step()
    dead = int((run.strip()[0].weight == 0).all(1).sum())
    plan, small = shrunk(model, torch.zeros(1, 6))
    assert plan.removed >= dead > 0
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_nothing_goes_of_a_dense_model() -> None:
    model = tiny.cnn()
    assert shrunk(model, torch.zeros(1, 3, 8, 8))[0].removed == 0
