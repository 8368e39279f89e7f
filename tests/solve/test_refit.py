"""Refit against least squares written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, DataError
from secateur.score.capture import unfolded
from secateur.solve.refit import refit_
from tiny import Tied, assert_same, attention, cnn, cut_evenly, draws, groups_of, mlp, state_of

Rows = np.ndarray


def ridge(x: Rows, y: Rows, old: Rows, damping: float, bias: bool) -> Rows:
    """``min || y - [x 1] w ||² + damping mean(diag xᵀx) || w - old ||²`` by lstsq on stacked rows, the bias free."""
    pull = (damping * np.square(x).sum(0).mean()) ** 0.5
    d = x.shape[1]
    a = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    weights = np.hstack([pull * np.eye(d), np.zeros((d, 1))]) if bias else pull * np.eye(d)
    return np.linalg.lstsq(np.vstack([a, weights]), np.vstack([y, pull * old]), rcond=None)[0]


def squared(a: Any, b: Any) -> float:
    return float(np.square(np.asarray(a) - np.asarray(b)).sum())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_two_layers_are_ridge_regression(bias: bool, damping: float) -> None:
    dense = mlp(5, 12, 4, bias=bias).double()
    data = draws(3, 30, 5, dtype=torch.float64)
    plan, small = cut_evenly(dense, data[0])
    old = small[2].weight.detach().clone()
    with torch.no_grad():
        x, y = torch.relu(small[0](torch.cat(data))).numpy(), dense(torch.cat(data)).numpy()
        before = small(torch.cat(data)).numpy()
    report = refit_(small, dense, plan, data, damping)
    expected = ridge(x, y, old.T.numpy(), damping, bias)
    np.testing.assert_allclose(small[2].weight.detach().T, expected[:6], rtol=1e-5, atol=1e-7)
    if bias:
        np.testing.assert_allclose(small[2].bias.detach(), expected[6], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        after = small(torch.cat(data)).numpy()
    energy = np.square(y).sum()
    assert report == {
        "2.weight": (pytest.approx(squared(before, y) / energy), pytest.approx(squared(after, y) / energy))
    }
    assert squared(after, y) < squared(before, y)


def test_what_can_be_made_up_for_is() -> None:
    """Half of the units say what the other half says: nothing is lost."""
    dense = mlp(5, 8, 3)
    dense[0].weight.data[4:] = 2 * dense[0].weight.data[:4]
    dense[0].bias.data[4:] = 2 * dense[0].bias.data[:4]
    data = draws(2, 40, 5)
    groups = groups_of(dense, data[0])
    plan = sc.make_plan(groups, {"0:neuron": np.arange(8) < 4})
    small = sc.apply(plan, dense)
    ((before, after),) = refit_(small, dense, plan, data, 1e-9).values()
    assert after < 1e-9 < before
    torch.testing.assert_close(small(data[0]), dense(data[0]), rtol=1e-4, atol=1e-4)


def test_later_layers_see_what_earlier_ones_became() -> None:
    dense = mlp(5, 12, 12, 4).double()
    data = draws(2, 50, 5, dtype=torch.float64)
    plan, small = cut_evenly(dense, data[0])
    cut = sc.apply(plan, dense)
    x = torch.cat(data)
    report = refit_(small, dense, plan, data, 1e-3)
    assert list(report) == ["2.weight", "4.weight"]
    keep = plan.axes["2.weight", 0]
    with torch.no_grad():
        first = ridge(torch.relu(cut[0](x)).numpy(), dense[:3](x)[:, keep].numpy(), cut[2].weight.T.numpy(), 1e-3, True)
        np.testing.assert_allclose(small[2].weight.T, first[:-1], rtol=1e-6, atol=1e-9)
        seen = torch.relu(small[:3](x)).numpy()
        second = ridge(seen, dense(x).numpy(), cut[4].weight.T.numpy(), 1e-3, True)
        np.testing.assert_allclose(small[4].weight.T, second[:-1], rtol=1e-6, atol=1e-9)


def test_a_convolution_is_refitted_on_its_patches() -> None:
    dense = cnn().double()
    data = draws(2, 8, 3, 8, 8, dtype=torch.float64)
    groups = groups_of(dense, data[0])
    plan = sc.make_plan(groups, {"0:channel": np.arange(8) % 2 == 0})
    small = sc.apply(plan, dense)
    old = small[3].weight.detach().clone().reshape(12, -1).T.numpy()
    x = torch.cat(data)
    with torch.no_grad():
        rows = unfolded(small[:3](x), (3, 3), (2, 2), (0, 0), (1, 1)).numpy()
        y = dense[:4](x).movedim(1, -1).reshape(-1, 12).numpy()
    refit_(small, dense, plan, data, 1e-2)
    expected = ridge(rows, y, old, 1e-2, True)
    np.testing.assert_allclose(small[3].weight.detach().reshape(12, -1).T, expected[:-1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(small[3].bias.detach(), expected[-1], rtol=1e-5, atol=1e-7)


class Stream(nn.Module):
    """Two branches on a residual stream; the ways of writing the sum."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = mlp(6, 10, 6, seed=1), mlp(6, 10, 6, seed=2)
        self.drop, self.how = nn.Dropout(0.5), how

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.a, self.b):
            if self.how == "right":
                x = x + self.drop(branch(x))
            elif self.how == "left":
                x = branch(x) + x
            elif self.how == "function":
                x = torch.add(branch(x), x)
            elif self.how == "onto the stream":
                x = x.clone()
                x += branch(x)
            else:
                y = branch(x)
                y += x
                x = y
        return x


@pytest.mark.parametrize("how", ["right", "left", "function", "onto the stream", "onto the branch"])
def test_a_residual_stream_is_made_up_for(how: str) -> None:
    torch.manual_seed(0)
    dense = Stream(how).double().eval()
    data = draws(2, 60, 6, dtype=torch.float64)
    plan, small = cut_evenly(dense, data[0])
    cut = sc.apply(plan, dense)
    refit_(small, dense, plan, data, 1e-4)
    x = torch.cat(data)
    with torch.no_grad():
        hidden = x + small.a(x)
        inner = torch.relu(small.b[0](hidden)).numpy()
        target = (dense(x) - hidden).numpy()  # the whole of what the stream lacks by then
        expected = ridge(inner, target, cut.b[2].weight.T.numpy(), 1e-4, True)
    np.testing.assert_allclose(small.b[2].weight.detach().T, expected[:-1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(small.b[2].bias.detach(), expected[-1], rtol=1e-5, atol=1e-7)


def test_outputs_written_over_are_seen_as_they_were() -> None:
    """A ReLU in place on the very output: the target is what the layer gave, not what became of it."""
    dense = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(inplace=True)).double()
    data = draws(2, 40, 5, dtype=torch.float64)
    plan = sc.make_plan(groups_of(dense, data[0]), {"0:neuron": np.arange(12) < 8})
    small = sc.apply(plan, dense)
    old, x = small[2].weight.detach().clone(), torch.cat(data)
    refit_(small, dense, plan, data, 1e-2)
    with torch.no_grad():
        expected = ridge(torch.relu(small[0](x)).numpy(), dense[:3](x).numpy(), old.T.numpy(), 1e-2, True)
    np.testing.assert_allclose(small[2].weight.detach().T, expected[:-1], rtol=1e-5, atol=1e-7)


def test_a_sum_after_a_change_is_no_residual_stream() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(x)))
            y.tanh_()
            return y + x

    torch.manual_seed(0)
    dense = Changed().double()
    data = draws(2, 40, 6, dtype=torch.float64)
    plan, small = cut_evenly(dense, data[0])
    old, x = small.b.weight.detach().clone(), torch.cat(data)
    refit_(small, dense, plan, data, 1e-2)
    with torch.no_grad():
        expected = ridge(
            torch.relu(small.a(x)).numpy(), dense.b(torch.relu(dense.a(x))).numpy(), old.T.numpy(), 1e-2, True
        )
    np.testing.assert_allclose(small.b.weight.detach().T, expected[:-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [attention, cnn])
def test_the_error_never_rises(make: Any, seed: int) -> None:
    dense = make(seed)
    data = draws(3, *((4, 5, 16) if make is attention else (4, 3, 8, 8)), seed=seed)
    plan, small = cut_evenly(dense, data[0], seed=seed)
    cut = sc.apply(plan, dense)
    report = refit_(small, dense, plan, data)
    assert report
    assert all(after <= before for before, after in report.values())
    with torch.no_grad():
        x = torch.cat(data)
        assert F.mse_loss(small(x), dense(x)) < F.mse_loss(cut(x), dense(x))


def test_memory_changes_nothing_but_time() -> None:
    dense, data = attention(), draws(3, 4, 5, 16)
    plan, one = cut_evenly(dense, data[0])
    other = sc.apply(plan, dense)
    heard: list[tuple[int, int]] = []
    assert refit_(one, dense, plan, data, progress=lambda i, n: heard.append((i, n))) == refit_(
        other, dense, plan, data, memory=0
    )
    assert_same(state_of(one), state_of(other))
    assert heard == [(1, 2), (2, 2)]


@pytest.mark.parametrize("make", [attention, cnn])
def test_the_dense_model_and_all_flags_stay(make: Any) -> None:
    dense = make().train()
    data = draws(2, *((4, 5, 16) if make is attention else (4, 3, 8, 8)))
    plan, small = cut_evenly(dense, data[0])
    next(iter(small.parameters())).requires_grad_(False)
    before, flags = state_of(dense), {k: v for k, v in state_of(small).items() if " " in k}
    refit_(small, dense, plan, data)
    assert_same(before, state_of(dense))
    assert_same(flags, {k: v for k, v in state_of(small).items() if " " in k})


def test_weights_used_twice_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.relu(self.a(x)))
            return self.b(torch.relu(self.a(x))) + self.c(torch.relu(self.a(x)))

    torch.manual_seed(0)
    dense, data = Twice(), draws(2, 20, 4)
    plan, small = cut_evenly(dense, data[0])
    before = state_of(small)
    report = refit_(small, dense, plan, data)
    assert list(report) == ["c.weight"]
    assert torch.equal(before["b.weight"], small.b.weight)
    assert torch.equal(before["b.bias"], small.b.bias)
    assert not torch.equal(before["c.weight"], small.c.weight)


def test_a_head_that_is_the_embedding_stays() -> None:
    """Refitted for the head's sake, it made the outputs ten times worse."""
    torch.manual_seed(0)
    dense, data = Tied(), [torch.randint(0, 20, (8, 12)) for _ in range(4)]
    plan = sc.make_plan(groups_of(dense, data[0]), {"b:neuron": np.arange(16) < 12})
    small = sc.apply(plan, dense)
    before = small.embed.weight.detach().clone()
    assert list(refit_(small, dense, plan, data)) == ["a.weight"]
    assert torch.equal(before, small.embed.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batches", [2, 3, 9])
def test_the_damping_is_the_best_on_what_is_kept_aside(bias: bool, batches: int) -> None:
    """Tried one by one with whole refits of the other batches; then all are fitted."""
    dense = mlp(5, 12, 4, bias=bias).double()
    data = draws(batches, 9, 5, dtype=torch.float64)
    plan, cut = cut_evenly(dense, data[0])
    every, dampings = min(4, batches), (1e-3, 1e-1, 10.0)
    aside = torch.cat(data[every - 1 :: every])
    rest = [x for i, x in enumerate(data) if i % every != every - 1]

    def lost(damping: float) -> float:
        other = sc.apply(plan, dense)
        refit_(other, dense, plan, rest, damping)
        return squared(other(aside).detach(), dense(aside).detach())

    best = min(dampings, key=lost)
    expected = sc.apply(plan, dense)
    refit_(expected, dense, plan, data, best)
    refit_(cut, dense, plan, data, dampings)
    for name, found in state_of(cut).items():  # summed in another order
        torch.testing.assert_close(found, state_of(expected)[name], rtol=1e-9, atol=1e-12)


def test_a_weight_that_no_fit_helps_on_what_is_kept_aside_stays() -> None:
    """What is kept aside has another distribution: every fit to the rest is worse there."""
    dense = mlp(4, 8, 3).double()
    near, far = draws(2, 6, 4, dtype=torch.float64)
    plan, small = cut_evenly(dense, near)
    before = state_of(small)
    refit_(small, dense, plan, [near, 40 * far + 100], (1e-6, 1e-3))
    alone = sc.apply(plan, dense)
    refit_(alone, dense, plan, [near], 1e-6)
    x = 40 * far + 100
    assert squared(alone(x).detach(), dense(x).detach()) > squared(sc.apply(plan, dense)(x).detach(), dense(x).detach())
    assert_same(before, state_of(small))


@pytest.mark.parametrize("damping", [(), -0.1, (0.1, float("inf")), float("nan")])
def test_wrong_dampings_are_refused(damping: Any) -> None:
    with pytest.raises(ArgumentError, match="dampings of at least 0"):
        sc.refit(draws(1, 5, 4), damping)


def test_dead_inputs_leave_the_weight_as_it_is() -> None:
    dense, data = mlp(4, 8, 3), draws(2, 20, 4)
    dense[0].weight.data.zero_()
    dense[0].bias.data.fill_(-1.0)
    plan, small = cut_evenly(dense, data[0])
    before = small[2].weight.detach().clone()
    assert refit_(small, dense, plan, data)["2.weight"] == (pytest.approx(0, abs=1e-6),) * 2
    torch.testing.assert_close(small[2].weight.detach(), before, rtol=1e-6, atol=1e-6)


def test_outputs_of_zero_energy_divide_nothing() -> None:
    dense, data = mlp(4, 8, 3, bias=False), [torch.zeros(5, 4)]
    plan, small = cut_evenly(dense, data[0])
    assert refit_(small, dense, plan, data)["2.weight"] == (0.0, 0.0)


def test_half_precision_is_solved_in_more() -> None:
    dense, data = attention().to(torch.bfloat16), [x.to(torch.bfloat16) for x in draws(3, 8, 5, 16)]
    plan, small = cut_evenly(dense, data[0])
    report = refit_(small, dense, plan, data)
    assert small.o.weight.dtype == torch.bfloat16
    assert all(after < before for before, after in report.values())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "empty"),
        ([torch.full((2, 4), float("nan"))], "NaN or inf"),
        ([torch.zeros(2, 7)], "refuses calibration batch 0"),
        ([torch.zeros(2, 4), torch.zeros(2, 7)], "refuses calibration batch 1"),
    ],
)
def test_bad_data_is_refused(data: list[Tensor], words: str) -> None:
    dense = mlp(4, 8, 3)
    plan, small = cut_evenly(dense, torch.zeros(1, 4))
    before = state_of(small)
    with pytest.raises(DataError, match=words):
        refit_(small, dense, plan, data)
    assert_same(before, state_of(small))


def test_examples_that_take_another_path_are_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor, deep: bool = True) -> Tensor:
            return self.b(torch.relu(self.a(x))) if deep else self.c(x)

    dense, (x,) = Branches(), draws(1, 5, 4)
    plan, small = cut_evenly(dense, x)
    with pytest.raises(DataError, match=r"b\.weight is not used on calibration batch 1"):
        refit_(small, dense, plan, [{"x": x}, {"x": x, "deep": False}])
