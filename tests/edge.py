"""Small models for runtimes of edge devices, and what every such runtime must do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import TargetError
from secateur.types import Artefact, Target


class Transformer(nn.Module):
    """An embedding, attention under a mask, a feed-forward; called by keyword, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.table(ids) * scale
        q, k, v = (t.view(*ids.shape, 2, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        x = x + self.out(heard.transpose(1, 2).flatten(2))
        return {"hidden": x + self.narrow(F.gelu(self.wide(x))), "length": mask.sum(-1)}


class Bessel(nn.Module):
    """What no edge runtime has a kernel for."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        return torch.special.bessel_j0(doubled)


class Branch(nn.Module):
    """What no exporter captures."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def words(batch: int = 2, seed: int = 0) -> dict[str, Tensor | float]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (batch, 6), generator=generator)
    return {"mask": (torch.arange(6) < 4).long().expand(batch, -1), "ids": ids, "scale": 0.5}


def assert_same_outputs(artefact: Artefact, model: nn.Module, example: Tensor | dict) -> None:
    with torch.no_grad():
        want = model(**example) if isinstance(example, dict) else model(example)
    want = list(want.values()) if isinstance(want, dict) else [want]
    for got, expected in zip(artefact.call(example), want, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def assert_runs_a_transformer(target: Target) -> None:
    """By keyword, in any order of the keywords, on values that it was not written with."""
    torch.manual_seed(0)
    model = Transformer().eval()
    artefact = target.build(model, words(), 1)
    assert artefact.batch == 2
    for seed in (0, 1):
        example = words(seed=seed)
        assert_same_outputs(artefact, model, example)
        assert_same_outputs(artefact, model, dict(reversed(example.items())))
    with pytest.raises(TargetError, match="export it for these"):
        artefact.call(words(batch=3))


def assert_names_op_and_line(target: Target, folder: Path) -> None:
    with pytest.raises(TargetError, match=r"Bessel .* for aten\.special_bessel_j0\.default at edge\.py:\d+: .*;"):
        target.export(Bessel(), torch.ones(2, 3), folder)
    with pytest.raises(TargetError, match=r"Branch .* for edge\.py:\d+: .*data-dependent"):
        target.export(Branch(), torch.ones(2, 3), folder)
    with pytest.raises(TargetError, match="Linear does not run on the example given"):
        target.export(nn.Linear(3, 2), torch.ones(1, 4), folder)
    assert list(folder.iterdir()) == []
