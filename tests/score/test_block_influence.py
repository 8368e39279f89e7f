"""Block influence against the formula, written out over the hidden states that a model returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

import secateur as sc


class Scales(nn.Module):
    """Works in place on what it gets by name, and returns more than the stream."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.f = nn.Linear(len(matrix), len(matrix), bias=False)
        self.f.weight.data.copy_(matrix)

    def forward(self, *, hidden: Tensor) -> tuple[Tensor, int]:
        hidden.copy_(self.f(hidden))
        return hidden, 1


class Chain(nn.Module):
    def __init__(self, *matrices: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Scales, matrices))

    def forward(self, x: Tensor, many: bool = True) -> Tensor:
        h = x.clone()
        for layer in self.layers if many else self.layers[:1]:
            h, _ = layer(hidden=h)
        return h


def test_it_is_one_minus_the_mean_cosine_over_all_positions() -> None:
    torch.manual_seed(0)
    sizes: Any = {
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 24, "num_key_value_heads": 2, "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaModel(LlamaConfig(**sizes))
    model.norm = nn.Identity()
    batches = [torch.randint(0, 30, (2, 7)), torch.randint(0, 30, (1, 3))]  # every position weighs the same
    layers = sc.layers(model, batches[0])
    found = sc.block_influence(model, batches, layers)
    assert list(found) == [f"layers.{i}" for i in range(4)]
    cosines: list[list[float]] = [[] for _ in range(4)]
    model.eval()
    for batch in batches:
        with torch.no_grad():
            states = [h.double().numpy() for h in model(batch, output_hidden_states=True).hidden_states]
        for i in range(4):
            for a, b in zip(states[i].reshape(-1, 16), states[i + 1].reshape(-1, 16), strict=True):
                cosines[i].append(a @ b / np.sqrt((a @ a) * (b @ b)))
    for i in range(4):
        assert found[f"layers.{i}"] == pytest.approx(1 - np.mean(cosines[i]), abs=1e-6)
    assert len(cosines[0]) == 17


def test_scaling_is_no_influence_and_turning_is() -> None:
    one = torch.eye(4, dtype=torch.float64)
    quarter = torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)
    net = Chain(3 * one, torch.block_diag(quarter, quarter), -one).double()
    net.train()
    found = sc.block_influence(net, [torch.randn(5, 3, 4, dtype=torch.float64)], [f"layers.{i}" for i in range(3)])
    assert found == {"layers.0": pytest.approx(0), "layers.1": pytest.approx(1), "layers.2": pytest.approx(2)}
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_features_of_images_are_in_dim_1() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 5, 6)
    found = sc.block_influence(net, [x], sc.layers(net, x), dim=1)
    with torch.no_grad():
        rows = [t.movedim(1, -1).reshape(-1, 4) for t in (x, net[0](x), net(x))]
    for i in range(2):
        cosine = (rows[i] * rows[i + 1]).sum(1) / rows[i].norm(dim=1) / rows[i + 1].norm(dim=1)
        assert found[str(i)] == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_what_cannot_be_told_is_refused() -> None:
    net = Chain(torch.eye(3), torch.eye(3))
    with pytest.raises(sc.DataError, match="Chain has no layer 'layers.7'"):
        sc.block_influence(net, [torch.ones(2, 3)], ["layers.0", "layers.7"])
    with pytest.raises(sc.DataError, match="calibration data is empty"):
        sc.block_influence(net, [], ["layers.0"])
    with pytest.raises(sc.DataError, match=r"layers.1 is not called on calibration batch 1"):
        sc.block_influence(net, [torch.ones(2, 3), {"x": torch.ones(2, 3), "many": False}], ["layers.1"])
    with pytest.raises(sc.DataError, match="0 does not make a tensor like its first input"):
        sc.block_influence(nn.Sequential(nn.Linear(3, 4)), [torch.ones(2, 3)], ["0"])
    net.layers[0].f.weight.data.fill_(torch.inf)
    with pytest.raises(sc.DataError, match=r"the stream through layers.0 is not finite"):
        sc.block_influence(net, [torch.ones(2, 3)], ["layers.0"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_dropping_what_does_least_does_least() -> None:
    """Of three residual blocks the one with small weights turns the stream least, and is missed least."""

    class Residual(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.f = nn.Linear(16, 16)
            self.f.weight.data.mul_(scale)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.f(x))

    torch.manual_seed(0)
    net, x = nn.Sequential(Residual(4.0), Residual(0.1), Residual(2.0)), torch.randn(64, 16)
    found = sc.block_influence(net, [x], sc.layers(net, x))
    with torch.no_grad():
        lost = {p: float((sc.apply(sc.drop_layers(net, x, [p]), net)(x) - net(x)).norm()) for p in found}
    assert min(found, key=found.__getitem__) == min(lost, key=lost.__getitem__) == "1"
