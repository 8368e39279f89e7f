"""Movement pruning against autograd's straight-through estimator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from secateur.choose.density import ranked
from secateur.errors import ArgumentError
from secateur.train.movement import movement, soft_movement
from secateur.train.schedule import cubic
from secateur.train.sparse import Method, Sparse

BATCHES = list(zip(tiny.draws(8, 16, 6), tiny.draws(8, 16, 3, seed=1), strict=True))
NAMES = ("0.weight", "2.weight")


class Straight(torch.autograd.Function):
    """``W M`` forward; the gradient goes to W as it is, and to S times W: the paper's equation."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w * mask

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return g, g * ctx.saved_tensors[0], None


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01, foreach=False)


def trained(method: Method, steps: int) -> Any:
    model = tiny.mlp(6, 16, 3)
    run = Sparse(model, optimizer_of(model.parameters()), method)
    for t in range(steps):
        x, y = BATCHES[t % 8]
        run.optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        run.optimizer.step()
        yield run


def top(s: Tensor, keep: int) -> Tensor:
    values = s.flatten().tolist()
    kept = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    return torch.zeros(len(values)).index_fill(0, torch.tensor(kept), 1.0).view_as(s)


def reference(choose: Any, rate: float, penalty: float, steps: int) -> Any:
    """The paper's: dense weights and scores are leaves, the model sees ``W M(S)``."""
    model = tiny.mlp(6, 16, 3)
    scores = {n: torch.zeros_like(model.get_parameter(n), requires_grad=True) for n in NAMES}
    optimizer = optimizer_of(model.parameters())
    score_optimizer = torch.optim.SGD(scores.values(), lr=rate, foreach=False)
    for t in range(steps):
        masks = {n: choose(s.detach(), t) for n, s in scores.items()}
        seen = {n: Straight.apply(model.get_parameter(n), s, masks[n]) for n, s in scores.items()}
        x, y = BATCHES[t % 8]
        loss = (torch.func.functional_call(model, seen, (x,)) - y).square().mean()
        loss = loss + penalty * sum(s.sigmoid().sum() for s in scores.values())
        optimizer.zero_grad()
        score_optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        score_optimizer.step()
        yield (
            model,
            {n: s.detach() for n, s in scores.items()},
            {n: choose(s.detach(), t + 1) for n, s in scores.items()},
        )


def assert_same_runs(run: Sparse, model: nn.Module, scores: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    for n, mask in masks.items():
        torch.testing.assert_close(run.memory[f"score.{n}"], scores[n], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(run.memory[f"dense.{n}"], model.get_parameter(n).detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(run.masks.masks[n], mask.bool())
        assert torch.equal(run.masks.weights[n].detach(), run.memory[f"dense.{n}"] * run.masks.masks[n])


def test_hard_movement_is_the_papers_loop() -> None:
    schedule = cubic(0.8, 5, 50)

    def choose(s: Tensor, t: int) -> Tensor:
        return top(s, s.numel() - round(schedule(t) * s.numel()))

    for run, ours in zip(trained(movement(schedule, rate=0.5), 70), reference(choose, 0.5, 0, 70), strict=True):
        assert_same_runs(run, *ours)
    assert run.masks.sparsity == pytest.approx(0.8, abs=0.01)


def test_soft_movement_is_the_papers_loop() -> None:
    for run, ours in zip(
        trained(soft_movement(0.02, rate=2.0, threshold=-0.5), 80),
        reference(lambda s, t: (s > -0.5).float(), 2.0, 0.02, 80),
        strict=True,
    ):
        assert_same_runs(run, *ours)
    assert 0.1 < run.masks.sparsity < 0.95


def test_counts_are_exact_and_masked_weights_come_back() -> None:
    returned = 0
    before: dict[str, Tensor] = {}
    for run in trained(movement(lambda step: 0.6 if step > 5 else 0.0, density=ranked), 200):
        total = sum(m.numel() for m in run.masks.masks.values())
        if run.step > 5:
            assert sum(int(m.sum()) for m in run.masks.masks.values()) == total - round(0.6 * total)
        for n, m in run.masks.masks.items():
            assert not run.masks.weights[n][~m].any()
            returned += int((m & ~before.get(n, m)).sum())
        before = {n: m.clone() for n, m in run.masks.masks.items()}
    assert returned > 0


def test_strip_leaves_plain_masked_weights() -> None:
    for run in trained(movement(cubic(0.5, 0, 10)), 20):
        keys = list(run.model.state_dict())
    held = {n: w.detach().clone() for n, w in run.masks.weights.items()}
    model = run.strip()
    assert list(model.state_dict()) == keys == list(tiny.mlp(6, 16, 3).state_dict())
    for n, w in held.items():
        assert torch.equal(model.get_parameter(n), w)
        assert (w == 0).float().mean() >= 0.48


@pytest.mark.parametrize("bad", [lambda: movement(cubic(0.5, 0, 1), rate=0), lambda: soft_movement(0.1, threshold=0.0)])
def test_settings_that_leave_nothing(bad: Any) -> None:
    with pytest.raises(ArgumentError):
        bad()
