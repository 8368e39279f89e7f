"""Layers of recorded models, against the cut models themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.targets.calibrate import fit, left_out
from secateur.targets.layers import Layer, layers_in, layers_of
from secateur.targets.micro import inputs_of, module_of, onnx_bytes
from secateur.targets.onnxruntime import load
from tiny import attention, cnn, cut_evenly, groups_of, mlp


class Mobile(nn.Module):
    """An inverted bottleneck, a strided convolution, and a row-wise product."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False)
        self.down, self.norm = nn.Conv2d(24, 10, 1), nn.BatchNorm2d(10)
        self.out = nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.down(torch.relu(self.deep(torch.relu(self.up(x))))))
        return self.out(h.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


CASES = [
    (mlp(16, 32, 24, 8), torch.zeros(3, 16)),
    (cnn(), torch.zeros(2, 3, 8, 8)),
    (attention(), torch.zeros(2, 5, 16)),
    (Mobile().eval(), torch.zeros(1, 3, 8, 8)),
]


@pytest.mark.parametrize(("model", "example"), CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_layers_under_a_keep_are_those_of_the_cut_model(model: nn.Module, example: Tensor, seed: int) -> None:
    groups = groups_of(model, example)
    layers, under = layers_of(groups)
    plan, small = cut_evenly(model, example, 0.3 + 0.2 * seed)
    sizes = under(plan.keep)
    found = [(s.kind, s.settings, s.at(sizes.tolist())) for s in layers.sites]
    cut, cut_sizes = layers_in(sc.trace(small, example))
    assert found == [(s.kind, s.settings, s.at(cut_sizes.tolist())) for s in cut.sites]
    assert layers.elements(sizes) == cut.elements(cut_sizes)
    assert layers.macs(sizes.tolist()) == groups.macs(plan.keep)


LAYERS = [
    Layer("linear", (7, 1), (5, 6)),
    Layer("linear", (7, 0), (5, 6)),
    Layer("conv", (2, (9, 8), (3, 5), (2, 1), (1, 2), (1, 1), 1), (3, 4)),
    Layer("conv", (2, (9,), (3,), (1,), (0,), (2,), 0), (3, 4)),
    Layer("depthwise", (1, (6, 6), (3, 3), (2, 2), (1, 1), (1, 1), 1), (5, 5)),
    Layer("matmul", (6, 0, 7), (3, 4)),
    Layer("matmul", (6, 7, 0), (3, 4)),
    Layer("attention", (2, 6, 7), (3, 4)),
    Layer("elements", (), (11, 1)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda n: n.key)
def test_a_layer_is_alike_as_a_model_and_as_onnx(layer: Layer, tmp_path: Path) -> None:
    model, example = module_of(layer)
    assert [tuple(t.shape) for t in example] == list(inputs_of(layer))
    assert isinstance(example, tuple)
    with torch.no_grad():
        ours = model(*example)
    file = tmp_path / "layer.onnx"
    file.write_bytes(onnx_bytes(layer))
    theirs = load(file, dict(zip("xyz", example, strict=False))).run()[0]
    assert theirs.shape == tuple(ours.shape)
    if layer.kind in ("matmul", "attention", "elements"):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    by_hand = {"matmul": 6 * 7 * 3 * 4, "attention": 2 * 2 * 3 * 6 * 7 * 4, "elements": 0}.get(layer.kind)
    assert layer.macs == (sc.macs(model, example).dense if by_hand is None else by_hand)


@pytest.mark.parametrize("target", [sc.onnxruntime, sc.openvino], ids=lambda t: t.name)
@pytest.mark.parametrize("layer", LAYERS[:-1], ids=lambda n: n.key)
def test_kernels_tell_what_they_take(layer: Layer, target: sc.Target) -> None:
    wide = replace(layer, widths=tuple((400 if layer.kind == "depthwise" else 40) * w for w in layer.widths))
    assert target.layer is not None
    assert 0 <= min(target.layer(layer, 1) for _ in range(3)) < min(target.layer(wide, 1) for _ in range(3))


def test_unknown_products_are_left_to_the_count() -> None:
    net: Any = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 4, 1))
    groups = groups_of(net, torch.zeros(1, 4, 6, 6))
    layers, under = layers_of(groups)
    assert [s.kind for s in layers.sites] == ["conv", "conv"]
    assert 0 < layers.macs(under(groups.all_kept()).tolist()) < groups.macs(groups.all_kept())


def test_a_fit_finds_what_made_the_times() -> None:
    rng = np.random.default_rng(0)
    sums = np.concatenate([[[4.0, 2.0, 1.0]], rng.uniform(0.2, 1, (6, 1)) * [4, 2, 1] * rng.uniform(0.5, 1, (6, 3))])
    seconds = 0.5 + sums @ [1.2, 0.8, 1.0]
    found = fit(sums, seconds)
    assert found(sums[0]) == pytest.approx(seconds[0])
    assert all(found(s) == pytest.approx(t, rel=0.02) for s, t in zip(sums, seconds, strict=True))
    pairs = left_out(sums, seconds)
    assert len(pairs) == 6
    assert all(p == pytest.approx(t, rel=0.05) for p, t in pairs)
    noisy = fit(sums, seconds * rng.uniform(0.97, 1.03, 7))
    assert (noisy.shares >= 0).all()
    assert noisy.constant >= 0
