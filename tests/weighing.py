"""What the tests of single weights' criteria share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.score.weights import calibrate_weights, prunable, saliency
from secateur.types import Criterion


def weighed(
    net: nn.Module, criterion: Criterion, data: Any = None, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Saliency of a model's weights, its statistics gathered from the data."""
    chosen = prunable(net) if weights is None else weights
    return saliency(net, criterion, chosen, calibrate_weights(net, data, criterion, chosen))


def cross_entropy(output: Tensor, targets: Tensor, generator: Any) -> Tensor:
    return F.cross_entropy(output, targets)


def labelled(seed: int, batches: int, rows: int, width: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of float64 inputs and classes."""
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, width, generator=g).double(), torch.randint(0, classes, (rows,), generator=g))
        for _ in range(batches)
    ]


def smooth(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with tanh between them, float64: derivatives of every order."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors.values()])


def close(found: Tensor, expected: Tensor, to: float = 1e-10) -> None:
    """Equal to a relative error, in the norm of the expected."""
    found, expected = found.detach(), expected.detach()
    error = float((found - expected).abs().max()) / float(expected.abs().max())
    assert error <= to, error
