"""Structured OBS against explicit least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import CoupleError
from secateur.score.obs import Consumer, _cost, _remove, damped, firm, removal_order
from tiny import attention, cnn, draws, groups_of, mlp

HUGE = 10**9


def problem(seed: int, d: int = 12, outputs: int = 4, rows: int = 60) -> tuple[Tensor, Tensor]:
    """A weight and the second moment of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(outputs, d, generator=g, dtype=torch.float64), x.T @ x / rows


def least_squares(w: Tensor, h: Tensor, support: Tensor) -> Tensor:
    """``min || (W - W') X ||² + damping`` with W' zero outside the support."""
    out = torch.zeros_like(w)
    out[:, support] = torch.linalg.solve(h[support][:, support], h[support] @ w.T).T
    return out


def error(w: Tensor, fitted: Tensor, h: Tensor) -> float:
    return float((((w - fitted) @ h) * (w - fitted)).sum())


def explicit(consumers: list[Consumer], damping: float) -> np.ndarray:
    """One unit at a time, every candidate tried by least squares on what would be left."""
    n = len(consumers[0].units)
    hs = [damped(c.second, damping) for c in consumers]

    def total(gone: set[int]) -> float:
        out = 0.0
        for c, h in zip(consumers, hs, strict=True):
            support = torch.ones(h.shape[0], dtype=torch.bool)
            support[c.units[sorted(gone)].reshape(-1)] = False
            out += c.scale * error(c.weight, least_squares(c.weight, h, support), h)
        return out

    gone: set[int] = set()
    scores, floor, before = np.zeros(n), 0.0, 0.0
    while len(gone) < n:
        after = {u: total(gone | {u}) for u in range(n) if u not in gone}
        u = min(after, key=after.__getitem__)
        floor = max(floor, after[u] - before)
        scores[u], before = floor, after[u]
        gone.add(u)
    return scores


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 2, 3]), several=st.booleans())
def test_scores_are_the_rise_of_the_least_squares_error(seed: int, k: int, several: bool) -> None:
    w, h = problem(seed)
    units = torch.arange(12).reshape(-1, k)
    consumers = [Consumer(w, h, units, 0.7)]
    if several:  # another weight, with its own inputs, that the same units feed in another order
        other, second = problem(seed + 1, outputs=3)
        consumers.append(Consumer(other, second, units.flip(0).roll(1, 1), 2.0))
    expected = explicit(consumers, 0.05)
    np.testing.assert_allclose(removal_order(consumers, 0.05, HUGE), expected, rtol=1e-7)
    np.testing.assert_allclose(removal_order(consumers, 0.05, 12), expected, rtol=1e-7)  # one of at most 12 a step


@pytest.mark.parametrize("k", [1, 3])
def test_after_each_removal_the_rest_is_least_squares(k: int) -> None:
    w, h = problem(5)
    h = damped(h, 0.01)
    units = torch.arange(12).reshape(-1, k)
    weight, inverse, mine, alive = w, torch.linalg.inv(h), units, torch.arange(12)
    before = 0.0
    for step in range(len(units) - 1):
        gone = torch.tensor([step % len(mine)])
        rise = float(_cost(weight, inverse, mine)[gone])
        left = torch.ones(len(mine), dtype=torch.bool)
        left[gone] = False
        kept = torch.ones(len(alive), dtype=torch.bool)
        kept[mine[gone].reshape(-1)] = False
        weight, inverse, mine = _remove(weight, inverse, mine, gone, left)
        alive = alive[kept]
        support = torch.zeros(12, dtype=torch.bool)
        support[alive] = True
        fitted = least_squares(w, h, support)
        torch.testing.assert_close(weight, fitted[:, support], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(inverse, torch.linalg.inv(h[support][:, support]), rtol=1e-8, atol=1e-9)
        assert rise == pytest.approx(error(w, fitted, h) - before, rel=1e-8)
        before = error(w, fitted, h)


def test_removing_several_at_once_is_least_squares_too() -> None:
    w, h = problem(6)
    gone, left = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    units = torch.arange(12).reshape(6, 2)
    left_mask = torch.ones(6, dtype=torch.bool)
    left_mask[gone] = False
    weight, _, mine = _remove(w, torch.linalg.inv(h), units, gone, left_mask)
    support = torch.zeros(12, dtype=torch.bool)
    support[units[left].reshape(-1)] = True
    torch.testing.assert_close(weight, least_squares(w, h, support)[:, support], rtol=1e-9, atol=1e-9)
    assert mine.tolist() == torch.arange(8).reshape(4, 2).tolist()


def test_the_order_beats_every_other_first_step() -> None:
    w, h = problem(7, d=6)
    scores = removal_order([Consumer(w, h, torch.arange(6)[:, None])], 1e-9, HUGE)
    errors = {}
    for pair in itertools.combinations(range(6), 1):
        support = torch.ones(6, dtype=torch.bool)
        support[list(pair)] = False
        errors[pair[0]] = error(w, least_squares(w, h, support), h)
    assert int(np.argmin(scores)) == min(errors, key=errors.__getitem__)


def test_larger_chunks_keep_the_count_and_nearly_the_order() -> None:
    w, h = problem(8, d=40, rows=400)
    consumer = [Consumer(w, h, torch.arange(40)[:, None])]
    fine, coarse = removal_order(consumer, 0.01, HUGE), removal_order(consumer, 0.01, 8)
    half = [set(np.argsort(s, kind="stable")[:20]) for s in (fine, coarse)]
    assert len(half[0] & half[1]) >= 17


def test_correlated_inputs_are_handled() -> None:
    """Of two equal inputs one can go for nothing, and then the other is worth all of both."""
    x = torch.randn(100, 3, dtype=torch.float64)
    x[:, 2] = x[:, 0]
    w = torch.tensor([[1.0, 0.5, 1.0]], dtype=torch.float64)
    found = removal_order([Consumer(w, x.T @ x / 100, torch.arange(3)[:, None])], 1e-9, HUGE)
    first, last = sorted((0, 2), key=lambda u: found[u])
    assert found[first] < 1e-6 * found[last]
    assert found[first] < 1e-6 * found[1]


def criterion(net: nn.Module, example: Tensor, data: list[Tensor]) -> dict[str, np.ndarray]:
    groups, obs = groups_of(net, example), sc.obs_with(1e-3, HUGE)
    return dict(sc.score(net, groups, obs, sc.calibrate(net, data, obs, groups)).values)


@pytest.mark.parametrize("bias", [True, False])
def test_the_criterion_is_least_squares_with_the_bias_free(bias: bool) -> None:
    net, data = mlp(4, 6, 3, bias=bias).double(), draws(3, 20, 4, dtype=torch.float64)
    x = torch.relu(net[0](torch.cat(data))).detach()
    w, n = net[2].weight.detach(), len(x)
    energy = float((x @ w.T).square().sum() / n)
    spread = x - x.mean(0) if bias else x
    ridge = 1e-3 * float((spread.T @ spread / n).diagonal().mean())
    scores = criterion(net, torch.zeros(1, 4).double(), data)["0:neuron"]
    gone = int(np.argmin(scores))
    left = [u for u in range(6) if u != gone]
    # ridge regression of the old outputs on what is left and a free constant, by lstsq on stacked rows
    columns = [x[:, left], torch.ones(n, 1).double()] if bias else [x[:, left]]
    a = torch.cat(columns, 1).numpy() / n**0.5
    b = (x @ w.T).numpy() / n**0.5
    pull = np.zeros((len(left), a.shape[1]))
    pull[np.arange(len(left)), np.arange(len(left))] = ridge**0.5
    solution = np.linalg.lstsq(np.vstack([a, pull]), np.vstack([b, ridge**0.5 * w[:, left].T.numpy()]), rcond=None)[0]
    rise = np.square(a @ solution - b).sum()
    rise += ridge * (np.square(solution[: len(left)] - w[:, left].T.numpy()).sum() + float(w[:, gone].square().sum()))
    assert scores[gone] * energy == pytest.approx(rise, rel=1e-6)


def test_dead_and_constant_units_cost_nothing() -> None:
    net, data = mlp(4, 6, 3), draws(3, 20, 4)
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = -1  # never active
    net[0].weight.data[4] = 0
    net[0].bias.data[4] = 2.5  # always the same: the next bias takes it over
    scores = criterion(net, torch.zeros(1, 4), data)["0:neuron"]
    assert scores[1] == scores[4] == 0
    assert (np.delete(scores, [1, 4]) > 0).all()


def test_without_a_bias_a_constant_is_worth_something() -> None:
    net, data = mlp(4, 6, 3), draws(3, 20, 4)
    net[2].bias = None
    net[0].weight.data[4] = 0
    net[0].bias.data[4] = 2.5
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = -1
    scores = criterion(net, torch.zeros(1, 4), data)["0:neuron"]
    assert scores[1] == 0 < scores[4]


def test_heads_are_blocks_of_columns_of_the_output_projection() -> None:
    net, data = attention().double(), draws(3, 4, 5, 16, dtype=torch.float64)
    example = torch.zeros(1, 5, 16).double()
    heads = next(g for g in groups_of(net, example) if g.kind == "head")
    stats = sc.calibrate(net, data, sc.obs)
    m = stats["o.weight"]
    mean = m.first / m.n
    second = m.second / m.n
    w = net.o.weight.detach()
    scale = 1 / float(((w @ second) * w).sum())
    units = torch.arange(16).reshape(4, 4)
    expected = explicit([Consumer(w, second - torch.outer(mean, mean), units, scale)], 1e-3)
    np.testing.assert_allclose(criterion(net, example, data)[heads.name], expected, rtol=1e-6)


def test_taps_of_a_convolution_go_together() -> None:
    net, data = cnn().double(), draws(2, 12, 3, 8, 8, dtype=torch.float64)
    net[1].bias.data.fill_(1.0)  # no dead channel, which would cost nothing
    stats = sc.calibrate(net, data, sc.obs)
    m = stats["3.weight"]
    mean, second, w = m.first / m.n, m.second / m.n, net[3].weight.detach().reshape(12, 72)
    scale = 1 / float(((w @ second) * w).sum())
    expected = explicit([Consumer(w, second - torch.outer(mean, mean), torch.arange(72).reshape(8, 9), scale)], 1e-3)
    found = criterion(net, torch.zeros(1, 3, 8, 8).double(), data)["0:channel"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_that_feed_no_matrix_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), nn.ConvTranspose1d(6, 2, 2))
    with pytest.raises(CoupleError, match="feeds no linear layer or ungrouped convolution"):
        criterion(net, torch.zeros(1, 2, 5), draws(1, 2, 2, 5))


def test_few_rows_are_drawn_to_the_identity_as_the_oracle_would_have_it() -> None:
    """Beside scikit-learn's estimator, which leaves 2 / d out."""
    from sklearn.covariance import oas

    for rows, d in ((40, 200), (150, 400), (300, 200)):
        g = torch.Generator().manual_seed(rows)
        x = torch.randn(rows, d, generator=g, dtype=torch.float64) * torch.linspace(0.1, 2, d, dtype=torch.float64)
        _, share = oas(x.numpy(), assume_centered=True)
        found = firm(x.T @ x / rows, rows, 0.0)
        assert found == pytest.approx(share / (1 - share), rel=0.02)


def test_enough_rows_are_damped_as_asked() -> None:
    _, h = problem(0)
    assert firm(h, 24, 0.01) == 0.01
    assert firm(h, 23, 0.01) >= 0.01
    assert firm(torch.zeros(12, 12).double(), 1, 0.01) == 0.01


def test_units_that_feed_a_weight_with_few_rows_are_not_free() -> None:
    """64 inputs that all matter, seen in 16 rows: the surgeon would take most of them for copies of each other."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(16, 64, generator=g).double(), torch.randn(8, 64, generator=g).double()
    units = torch.arange(64)[:, None]
    blind = removal_order([Consumer(w, x.T @ x / 16, units)], 0.01, HUGE)
    wary = removal_order([Consumer(w, x.T @ x / 16, units, rows=16)], 0.01, HUGE)
    truth = w.square().sum(0).numpy()  # inputs are independent, of variance one
    half = np.argsort(blind)[:32]
    assert blind[half].sum() < 0.2 * truth[half].sum()
    half = np.argsort(wary)[:32]
    assert wary[half].sum() > 0.5 * truth[half].sum()
    assert np.corrcoef(wary, truth)[0, 1] > np.corrcoef(blind, truth)[0, 1]
