"""Criteria against their formulas, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, CoupleError, DataError, PlanError
from tiny import attention, cnn, draws, groups_of, mlp, scores_of

IMAGE = torch.zeros(1, 3, 8, 8)


def of(model: nn.Module, example: Tensor, criterion: sc.Criterion, data: Any = None) -> dict[str, np.ndarray]:
    groups = groups_of(model, example)
    stats = None if data is None else sc.calibrate(model, data, criterion, groups)
    return dict(sc.score(model, groups, criterion, stats).values)


def test_magnitude_is_the_norm_of_all_that_goes() -> None:
    net = mlp(4, 8, 2)
    made, taken = net[0].weight.detach().double(), net[2].weight.detach().double()
    found = of(net, torch.zeros(1, 4), sc.magnitude)["0:neuron"]
    np.testing.assert_allclose(found, [(made[u].square().sum() + taken[:, u].square().sum()).sqrt() for u in range(8)])
    found = of(net, torch.zeros(1, 4), sc.magnitude_l1)["0:neuron"]
    np.testing.assert_allclose(found, [made[u].abs().sum() + taken[:, u].abs().sum() for u in range(8)])


def test_magnitude_of_a_head_is_that_of_its_block() -> None:
    net = attention()
    groups = groups_of(net, torch.zeros(1, 5, 16))
    heads = next(g for g in groups if g.kind == "head")
    found = sc.score(net, groups, sc.magnitude).values[heads.name]
    for h in range(4):
        block = slice(4 * h, 4 * h + 4)
        parts = [net.q.weight[block], net.k.weight[block], net.v.weight[block], net.o.weight[:, block]]
        assert found[h] == pytest.approx(sum(float(p.detach().double().square().sum()) for p in parts) ** 0.5)


def test_vectors_count_where_there_is_no_matrix() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gain, self.out = nn.Embedding(5, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embed(x) * self.gain)

    net = Scale()
    group = next(iter(groups_of(net, torch.tensor([[1, 2]]))))
    only = type(group)(group.name, group.kind, group.units, tuple(s for s in group.slices if s.name == "gain"))
    np.testing.assert_allclose(sc.magnitude_l1.score(net, only, None), net.gain.detach().abs().double())


def losses(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    """Gradients of the cross-entropy of each batch, by name."""
    out = []
    for x, y in data:
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        out.append({n: g for (n, _), g in zip(net.named_parameters(), grads, strict=True)})
    return out


def test_taylor_is_the_loop_over_batches_and_weights() -> None:
    net = mlp(4, 8, 3)
    data = [(x, torch.tensor([0, 1, 2])) for x in draws(4, 3, 4)]
    squares, sizes = np.zeros(8), np.zeros(8)
    for grads in losses(net, data):
        for u in range(8):
            total = (net[0].weight[u] * grads["0.weight"][u]).sum() + net[0].bias[u] * grads["0.bias"][u]
            squares[u] += total.item() ** 2 / 4
            sizes[u] += abs(total.item()) / 4
    np.testing.assert_allclose(of(net, torch.zeros(1, 4), sc.taylor, data)["0:neuron"], squares, rtol=1e-4)
    np.testing.assert_allclose(of(net, torch.zeros(1, 4), sc.taylor_abs, data)["0:neuron"], sizes, rtol=1e-4)


def test_taylor_of_a_relu_unit_is_the_gradient_of_its_gate() -> None:
    net = mlp(4, 8, 3).double()
    data = [(x, torch.tensor([0, 1, 2])) for x in draws(2, 3, 4, dtype=torch.float64)]
    expected = torch.zeros(8, dtype=torch.float64)
    for x, y in data:
        gate = torch.ones(8, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(net[2](F.relu(net[0](x)) * gate), y)
        expected += torch.autograd.grad(loss, gate)[0].square() / 2
    np.testing.assert_allclose(of(net, torch.zeros(1, 4).double(), sc.taylor, data)["0:neuron"], expected, rtol=1e-9)


def test_gate_form_is_gamma_and_beta_and_the_gradient_of_a_gate() -> None:
    net = cnn().double()
    data = [(x, torch.tensor([0, 3])) for x in draws(3, 2, 3, 8, 8, dtype=torch.float64)]
    found = of(net, IMAGE.double(), sc.taylor_gate, data)["0:channel"]
    by_formula, by_gate = np.zeros(8), np.zeros(8)
    for (x, y), grads in zip(data, losses(net, data), strict=True):
        total = net[1].weight * grads["1.weight"] + net[1].bias * grads["1.bias"]
        by_formula += total.detach().square().numpy() / 3
        gate = torch.ones(8, 1, 1, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(net[2:](net[:2](x) * gate), y)
        by_gate += torch.autograd.grad(loss, gate)[0].flatten().square().numpy() / 3
    np.testing.assert_allclose(found, by_formula, rtol=1e-9)
    np.testing.assert_allclose(found, by_gate, rtol=1e-9)


def test_bn_scale_is_the_mean_gamma() -> None:
    found = of(net := cnn(), IMAGE, sc.bn_scale)
    np.testing.assert_allclose(found["0:channel"], net[1].weight.detach().abs())

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 6, 1), nn.Conv1d(2, 6, 1)
            self.m, self.n, self.out = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Conv1d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.m(self.a(x)) + self.n(self.b(x)))

    net = Twice().eval()
    net.m.weight.data.uniform_(-2, 2)
    net.n.weight.data.uniform_(-2, 2)
    (found,) = of(net, torch.zeros(1, 2, 4), sc.bn_scale).values()
    np.testing.assert_allclose(found, (net.m.weight.abs() + net.n.weight.abs()).detach().double() / 2, rtol=1e-6)


@pytest.mark.parametrize("criterion", [sc.bn_scale, sc.taylor_gate])
def test_gates_need_a_batch_norm(criterion: sc.Criterion) -> None:
    net = mlp(4, 8, 2)
    with pytest.raises(CoupleError, match=r"0:neuron passes through no batch norm.*use sc\.taylor"):
        of(net, torch.zeros(1, 4), criterion, None if criterion.stat is None else draws(1, 2, 4))


def test_fpgm_is_the_sum_of_distances() -> None:
    net = cnn()
    found = of(net, IMAGE, sc.fpgm)["0:channel"]
    flat = net[0].weight.detach().double().reshape(8, -1)
    np.testing.assert_allclose(found, [sum(float((a - b).norm()) for b in flat) for a in flat], rtol=1e-9)


def test_fpgm_sends_duplicates_first_and_ignores_a_common_filter() -> None:
    net = cnn()
    weight = net[0].weight.data
    weight[3] = weight[6] = weight.mean(0)
    found = of(net, IMAGE, sc.fpgm)["0:channel"]
    assert set(np.argsort(found)[:2]) == {3, 6}
    weight += torch.randn_like(weight[0])
    np.testing.assert_allclose(of(net, IMAGE, sc.fpgm)["0:channel"], found, rtol=1e-5)


def test_random_is_seeded_and_differs_by_group() -> None:
    net, x = mlp(4, 8, 8, 2), torch.zeros(1, 4)
    one, same, other = (of(net, x, sc.random(s)) for s in (3, 3, 4))
    for name in one:
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one["0:neuron"], one["2:neuron"])


def test_statistics_are_asked_for() -> None:
    net = mlp(4, 8, 2)
    groups = groups_of(net, torch.zeros(1, 4))
    with pytest.raises(DataError, match=r"taylor needs calibration data: stats = sc\.calibrate"):
        sc.score(net, groups, sc.taylor)
    with pytest.raises(ArgumentError, match=r"sc\.random\(seed\)"):
        sc.score(net, groups, sc.random)  # type: ignore[arg-type]
    others = sc.calibrate(net, draws(1, 2, 4), sc.taylor, groups)
    with pytest.raises(CoupleError, match="has no gradients"):
        sc.taylor.score(net, groups["0:neuron"], type(others)({}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    net = mlp(4, 8, 2)
    net[0].weight.data[2, 1] = bad
    with pytest.raises(PlanError, match="magnitude gave 1 scores that are not finite in group 0:neuron"):
        of(net, torch.zeros(1, 4), sc.magnitude)


def test_normalisations() -> None:
    net = mlp(4, 3, 2, 2)
    groups = groups_of(net, torch.zeros(1, 4))
    scores = scores_of(groups, [[1, 2, 6], [0, 0]])
    assert sc.unnormalized(scores) is scores
    for made, name, expected in (
        (sc.by_mean(scores), "mean", [1 / 3, 2 / 3, 2]),
        (sc.by_max(scores), "max", [1 / 6, 1 / 3, 1]),
        (sc.by_cost(scores), "cost", [1 / 7, 2 / 7, 6 / 7]),  # 4 weights and a bias in, 2 weights out
    ):
        np.testing.assert_allclose(made.values["0:neuron"], expected)
        assert made.values["2:neuron"].tolist() == [0, 0]  # nothing to divide by
        assert (made.normalization, made.criterion, made.groups) == (name, "given", groups)


def test_a_criterion_of_ones_own() -> None:
    first = sc.Criterion("first", lambda model, group, stats: np.arange(group.units, dtype=float)[::-1].copy())
    assert of(mlp(4, 8, 2), torch.zeros(1, 4), first)["0:neuron"][0] == 7
