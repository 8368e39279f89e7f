"""SR-STE, ASP and learned thresholds against autograd on the papers' equations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from secateur.choose.patterns import Pattern, nm
from secateur.errors import ArgumentError
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import asp, srste
from secateur.train.threshold import learned_threshold

BATCHES = list(zip(tiny.draws(8, 16, 8), tiny.draws(8, 16, 4, seed=1), strict=True))
NAMES = ("0.weight", "2.weight")


def two_of_four(scores: Tensor, keep: int, alive: Tensor | None) -> Tensor:
    """The two largest of every four along the rows, ties to the earlier."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for i, row in enumerate(scores.tolist()):
        for j in range(0, len(row), 4):
            for k in sorted(range(j, j + 4), key=lambda k: (-row[k], k))[:2]:
                mask[i, k] = True
    return mask


PATTERN = Pattern("2:4", lambda shape, wanted: shape[0] * shape[1] // 2, two_of_four, density=0.5)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=False)


def trained(method: Method, steps: int) -> Iterator[Sparse]:
    model = tiny.mlp(8, 16, 4)
    run = Sparse(model, sgd(model.parameters()), method)
    for t in range(steps):
        x, y = BATCHES[t % 8]
        run.optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        run.optimizer.step()
        yield run


def loss_with(model: nn.Module, seen: dict[str, Tensor], t: int) -> Tensor:
    x, y = BATCHES[t % 8]
    return (torch.func.functional_call(model, seen, (x,)) - y).square().mean()


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_srste_is_the_papers_loop(decay: float) -> None:
    model = tiny.mlp(8, 16, 4)
    optimizer = sgd(model.parameters())
    changed, before = 0, {}
    for t, run in enumerate(trained(srste(PATTERN, decay), 60)):
        weights = {n: model.get_parameter(n) for n in NAMES}
        masks = {n: two_of_four(w.detach().abs(), 0, None) for n, w in weights.items()}
        # forward W M, backward as if it were W; the penalty's gradient is decay (1 - M) W
        seen = {n: w + (w * masks[n] - w).detach() for n, w in weights.items()}
        loss = loss_with(model, seen, t)
        loss = loss + decay / 2 * sum((w * ~masks[n]).square().sum() for n, w in weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for n, w in weights.items():
            torch.testing.assert_close(run.memory[f"dense.{n}"], w.detach(), rtol=1e-4, atol=1e-6)
            mask = two_of_four(w.detach().abs(), 0, None)
            assert torch.equal(run.masks.masks[n], mask)
            assert torch.equal(run.masks.weights[n].detach(), run.memory[f"dense.{n}"] * mask)
            changed += int((mask != before.get(n, mask)).sum())
            before[n] = mask
    assert changed > 0


def test_the_decay_shrinks_what_is_masked() -> None:
    sizes = {}
    for decay in (0.0, 0.5):
        *_, run = trained(srste(PATTERN, decay), 100)
        sizes[decay] = sum(float((run.memory[f"dense.{n}"] * ~m).abs().sum()) for n, m in run.masks.masks.items())
    assert sizes[0.5] < 0.5 * sizes[0.0]


def test_asp_keeps_one_magnitude_mask() -> None:
    first = tiny.mlp(8, 16, 4)
    masks = {n: two_of_four(first.get_parameter(n).abs(), 0, None) for n in NAMES}
    for run in trained(asp(PATTERN), 50):
        tiny.assert_same(run.masks.masks, masks)
        for n, w in run.masks.weights.items():
            assert not w[~masks[n]].any()
            assert not run.optimizer.state[w]["momentum_buffer"][~masks[n]].any()


def test_learned_thresholds_are_autograd_on_the_papers_equation() -> None:
    model, initial, decay = tiny.mlp(8, 16, 4), -4.0, 0.02
    s = {n: torch.tensor(initial, requires_grad=True) for n in NAMES}
    optimizer = sgd(model.parameters())
    thresholds = torch.optim.SGD(s.values(), lr=0.05, momentum=0.9, weight_decay=decay, foreach=False)
    for t, run in enumerate(trained(learned_threshold(decay, initial, 0.9), 80)):
        weights = {n: model.get_parameter(n) for n in NAMES}
        seen = {n: w.sign() * torch.relu(w.abs() - s[n].sigmoid()) for n, w in weights.items()}
        for o in (optimizer, thresholds):
            o.zero_grad()
        loss_with(model, seen, t).backward()
        for o in (optimizer, thresholds):
            o.step()
        for n, w in weights.items():
            torch.testing.assert_close(run.memory[f"s.{n}"], s[n].detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(run.memory[f"dense.{n}"], w.detach(), rtol=1e-4, atol=1e-5)
            thresholded = (w.sign() * torch.relu(w.abs() - s[n].sigmoid())).detach()
            torch.testing.assert_close(run.masks.weights[n].detach(), thresholded, rtol=1e-4, atol=1e-5)
    assert 0.1 < run.masks.sparsity < 1
    held = {n: w.detach().clone() for n, w in run.masks.weights.items()}
    stripped = run.strip()
    assert list(stripped.state_dict()) == list(model.state_dict())
    assert all(torch.equal(stripped.get_parameter(n), w) for n, w in held.items())


@pytest.mark.parametrize(
    "bad",
    [
        lambda: srste(PATTERN, decay=-1),
        lambda: srste(PATTERN, decay=float("nan")),
        lambda: learned_threshold(-1),
        lambda: learned_threshold(0, momentum=1),
    ],
)
def test_settings_that_make_no_sense_here(bad: Any) -> None:
    with pytest.raises(ArgumentError):
        bad()


def test_groups_run_along_the_inputs_of_transposed_weights() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(8, 3, 3))  # weight (8 inputs, 3 outputs, 3, 3)
    run = Sparse(net, torch.optim.SGD(net.parameters(), lr=0.1), asp(nm(2, 4)))
    assert (run.masks.masks["0.weight"].unflatten(0, (2, 4)).sum(1) == 2).all()
