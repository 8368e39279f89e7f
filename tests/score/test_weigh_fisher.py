"""WoodFisher: its inverse, its score and its update, against dense matrices and the recursion of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ArgumentError, DataError, PlanError
from secateur.score.weigh_fisher import BlockFisher, obert, woodfisher, woodfisher_update, woodfisher_with
from secateur.score.weights import calibrate_weights, prunable
from weighing import close, cross_entropy, labelled, smooth, weighed

DATA = labelled(1, 12, 2, 4, 3)


def gradients(net: nn.Module, name: str) -> Tensor:
    """(batches, weights of one tensor)."""
    w = net.get_parameter(name)
    return torch.stack([torch.autograd.grad(F.cross_entropy(net(x), y), w)[0].reshape(-1) for x, y in DATA])


def dense(grads: Tensor, damping: float, block: int) -> Tensor:
    """Damped empirical Fisher matrix, zero off its diagonal blocks."""
    n, d = grads.shape
    at = torch.arange(d) // block
    return (grads.T @ grads / n) * (at[:, None] == at) + damping * torch.eye(d, dtype=torch.float64)


def by_recursion(grads: Tensor, damping: float) -> Tensor:
    """Sherman and Morrison, one gradient after another (arXiv:2004.14340)."""
    m, inverse = len(grads), torch.eye(grads.shape[1], dtype=torch.float64) / damping
    for g in grads:
        inverse = inverse - torch.outer(inverse @ g, g @ inverse) / (m + g @ inverse @ g)
    return inverse


@pytest.mark.parametrize("block", [1, 5, 7, 24, 1000])
def test_score_is_by_the_dense_inverse_and_the_recursion(block: int) -> None:
    net = smooth(4, 6, 3)
    found = weighed(net, woodfisher_with(1e-2, block, loss=cross_entropy), DATA)
    for n, w in prunable(net).items():
        grads = gradients(net, n)
        inverse = torch.linalg.inv(dense(grads, 1e-2, block))
        close(found[n].reshape(-1), w.detach().reshape(-1) ** 2 / (2 * inverse.diagonal()))
        parts = [by_recursion(grads[:, a : a + block], 1e-2).diagonal() for a in range(0, w.numel(), block)]
        close(found[n].reshape(-1), w.detach().reshape(-1) ** 2 / (2 * torch.cat(parts)))


def test_blocks_taken_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = torch.randn(5, 3, 3, 9).double()
    outer = outer.flatten(2) @ outer.flatten(2).mT
    fisher = BlockFisher(outer, 2, 0.1)
    ((whole, blocks),) = fisher.parts()
    assert (whole.start, blocks.shape) == (0, (5, 3, 3))
    close(blocks, outer / 2 + 0.1 * torch.eye(3).double())
    assert torch.equal(fisher.outer, outer)
    big = BlockFisher(torch.zeros(3, 4096, 1).expand(3, 4096, 4096), 1, 1.0)
    assert [s.start for s, _ in big.parts()] == [0, 2]


@settings(max_examples=30)
@given(st.integers(1, 14), st.integers(1, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_update_is_constrained_least_squares(size: int, block: int, part: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.normal(size=size))
    keep = torch.from_numpy(rng.random(size) >= part)
    grads = torch.from_numpy(rng.normal(size=(9, size)))
    block = min(block, size)
    padded = F.pad(grads, (0, -size % block)).reshape(9, -1, block)
    stats = {"w": BlockFisher(torch.einsum("nbi,nbj->bij", padded, padded), 9, 0.05)}
    found = woodfisher_update({"w": w}, {"w": keep}, stats)["w"]
    fisher = dense(grads, 0.05, block)
    inverse = torch.linalg.inv(fisher)
    gone = ~keep
    rule = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
    root = torch.linalg.cholesky(fisher).mT  # the loss is |root (v - w)|²
    fitted = torch.zeros_like(w)
    if keep.any():
        fitted[keep] = torch.linalg.lstsq(root[:, keep], root @ w, driver="gelsd").solution
    assert float(found[gone].abs().sum()) == 0
    if keep.any():
        close(found, fitted)
        close(found[keep], rule[keep])


def test_update_of_one_weight_costs_its_score() -> None:
    net = smooth(4, 6, 3)
    weights = prunable(net)
    criterion = woodfisher_with(1e-2, 8, loss=cross_entropy)
    stats = calibrate_weights(net, DATA, criterion, weights)
    scores = criterion.weights.score(net, weights, stats)["0.weight"].reshape(-1)
    w = weights["0.weight"].detach().reshape(-1)
    fisher = dense(gradients(net, "0.weight"), 1e-2, 8)
    for q in range(len(w)):
        keep = torch.ones(6, 4, dtype=torch.bool)
        keep.view(-1)[q] = False
        new = woodfisher_update({"0.weight": weights["0.weight"]}, {"0.weight": keep}, stats)["0.weight"]
        change = new.reshape(-1) - w
        assert float(change @ fisher @ change) / 2 == pytest.approx(float(scores[q]), rel=1e-9)


def test_update_keeps_type_and_leaves_the_whole_alone() -> None:
    net = nn.Linear(3, 2).bfloat16()
    stats = {"weight": BlockFisher(torch.eye(4).expand(2, 4, 4).double(), 1, 1e-3)}
    everything = {"weight": torch.ones(2, 3, dtype=torch.bool)}
    new = woodfisher_update(prunable(net), everything, stats)["weight"]
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, net.weight)
    with pytest.raises(PlanError, match=r"weight of shape \(2, 3\) has no mask"):
        woodfisher_update(prunable(net), {}, stats)


def test_samples_are_batches_and_no_more_are_taken() -> None:
    net = smooth(4, 6, 3)
    some = woodfisher_with(1e-2, 8, 5, cross_entropy)
    weights = prunable(net)
    stats = calibrate_weights(net, DATA, some, weights)
    assert {f.n for f in stats.values()} == {5}
    everything = woodfisher_with(1e-2, 8, None, cross_entropy)
    assert torch.equal(stats["0.weight"].outer, calibrate_weights(net, DATA[:5], everything, weights)["0.weight"].outer)
    drawn = iter(DATA)
    calibrate_weights(net, drawn, some, weights)
    assert len(list(drawn)) == len(DATA) - 5


def test_settings_are_checked_and_have_names() -> None:
    assert (woodfisher.name, obert.name) == ("woodfisher", "obert")
    for bad in (dict(damping=0), dict(damping=float("nan")), dict(block=0), dict(samples=0)):
        with pytest.raises(ArgumentError, match="woodfisher_with takes"):
            woodfisher_with(**bad)
    net = nn.Linear(2, 1, bias=False)
    huge = woodfisher_with(1e-30, 2, loss=lambda o, t, g: 1e6 * o.sum())
    with pytest.raises(DataError, match="Fisher matrix of weight is singular"):
        weighed(net, huge, [torch.ones(1, 2)])
