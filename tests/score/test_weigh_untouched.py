"""What every criterion of single weights has to hold to: the model stays as it was, frozen or not, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError
from secateur.score.weigh_fisher import obert, woodfisher
from secateur.score.weigh_flow import synflow
from secateur.score.weigh_gradient import fisher, grasp, obd, snip, taylor_second
from secateur.score.weigh_inputs import ria, wanda
from secateur.score.weigh_plain import lamp
from secateur.score.weights import prunable
from secateur.types import Criterion
from tiny import Attention, cnn
from weighing import weighed

NO_DATA = [sc.magnitude, sc.random(0), lamp]
BY_GRADIENT = [sc.taylor, sc.taylor_abs, snip, grasp, fisher, obd, taylor_second, woodfisher, obert]
BY_DATA = [*BY_GRADIENT, wanda, ria, synflow]
names = lambda c: c.name  # noqa: E731

IMAGES = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(2)]


class Counts(nn.Module):
    """A model with buffers that it writes to, one in place and one anew."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))
        self.extra = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = self.mean * 0.9 + 0.1 * x.detach().mean((0, 2, 3))
        return self.net(x) * self.extra


def state(net: nn.Module) -> Any:
    return (
        {n: (id(t), t.clone()) for n, t in [*net.named_parameters(), *net.named_buffers()]},
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    )


def same(a: Any, b: Any) -> bool:
    tensors = all(a[0][n][0] == b[0][n][0] and torch.equal(a[0][n][1], b[0][n][1]) for n in a[0])
    grads = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in zip(a[3], b[3], strict=True)
    )
    return tensors and a[1:3] == b[1:3] and grads and a[0].keys() == b[0].keys()


@pytest.mark.parametrize("criterion", [*NO_DATA, *BY_DATA], ids=names)
def test_the_model_is_left_as_it_was(criterion: Criterion) -> None:
    net = Counts().train()
    net.net[3].eval()
    net.net[0].weight.requires_grad_(False)
    net.net[8].weight.grad = torch.ones(4, 12)
    before = state(net)
    seed = torch.get_rng_state()
    found = weighed(net, criterion, IMAGES)
    assert same(before, state(net))
    assert torch.equal(seed, torch.get_rng_state())
    assert set(found) == {"net.0.weight", "net.3.weight", "net.8.weight"}
    for n, s in found.items():
        assert s.shape == net.get_parameter(n).shape
        assert s.dtype in (torch.float32, torch.float64)
        assert not s.requires_grad
        assert float(s.abs().max()) > 0
    again = weighed(net, criterion, IMAGES)
    assert all(torch.equal(found[n], again[n]) for n in found)


@pytest.mark.parametrize("criterion", BY_GRADIENT, ids=names)
def test_frozen_weights_are_scored_like_others(criterion: Criterion) -> None:
    net = cnn()
    found = weighed(net, criterion, IMAGES)
    net.requires_grad_(False)
    with torch.no_grad():
        again = weighed(net, criterion, IMAGES)
    assert all(torch.equal(found[n], again[n]) for n in found)


@pytest.mark.parametrize("criterion", BY_DATA, ids=names)
def test_a_failure_leaves_the_model_as_it_was(criterion: Criterion) -> None:
    net = Counts().train()
    before = state(net)
    with pytest.raises(DataError, match="refuses calibration batch"):
        weighed(net, criterion, [torch.ones(1, 5, 8, 8)])
    assert same(before, state(net))
    with pytest.raises(DataError, match="calibration data is empty"):
        weighed(net, criterion, [])
    with pytest.raises(DataError, match="calibration batch 0 has NaN or inf"):
        weighed(net, criterion, [torch.full((1, 3, 8, 8), float("nan"))])
    with pytest.raises(DataError, match="needs calibration data"):
        weighed(net, criterion)
    assert same(before, state(net))


@pytest.mark.parametrize("criterion", BY_DATA, ids=names)
def test_attention_is_scored(criterion: Criterion) -> None:
    """Fused attention has no second derivative: it is left for the plain one where that is needed."""
    torch.manual_seed(0)
    net = Attention()
    found = weighed(net, criterion, [torch.randn(2, 5, 16)])
    assert all(float(found[f"{n}.weight"].abs().max()) > 0 for n in "q k v o up down".split())


@pytest.mark.parametrize("criterion", BY_GRADIENT, ids=names)
def test_recurrent_weights_are_scored(criterion: Criterion) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    found = weighed(Net(), criterion, [torch.randn(2, 5, 3)])
    assert set(found) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "out.weight"}
    assert all(float(s.abs().max()) > 0 for s in found.values())


# grasp needs logits: see test_grasp_and_models_that_hold_their_loss
@pytest.mark.parametrize("criterion", [c for c in [*NO_DATA, *BY_DATA] if c is not grasp], ids=names)
def test_a_language_model_with_transposed_weights_is_scored(criterion: Criterion) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8)).eval()
    ids = torch.randint(0, 11, (2, 6))
    weights = prunable(net)
    found = weighed(net, criterion, [{"input_ids": ids, "labels": ids}], weights)
    assert found["transformer.h.0.mlp.c_fc.weight"].shape == (8, 32)
    assert float(found["transformer.h.0.mlp.c_fc.weight"].abs().max()) > 0


@pytest.mark.parametrize("criterion", BY_DATA, ids=names)
def test_half_precision_is_summed_in_double(criterion: Criterion) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16()
    found = weighed(net, criterion, [torch.randn(5, 4).bfloat16()])
    assert all(s.dtype == torch.float64 for s in found.values())
