"""Criteria of single weights that need no data: chance, and magnitude made comparable between layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.types import Criterion, Weighing


def uniform_weights(seed: int) -> Weighing:
    """Uniform random scores in [0, 1), a function of the seed, the weight's name and its shape alone."""

    def of(model: nn.Module, weights: Mapping[str, Tensor], stats: Any) -> dict[str, Tensor]:
        drawn = {n: np.random.default_rng([seed, *n.encode()]).random(tuple(w.shape)) for n, w in weights.items()}
        return {n: torch.from_numpy(d).to(weights[n].device) for n, d in drawn.items()}

    return Weighing(of)


def lamp_scores(weight: Tensor) -> Tensor:
    """``w_u² / sum of w_v² over v at least as large`` within one tensor, float64, of its shape.

    Sums run from the largest down, so nothing cancels; of equals the earlier position has the larger score.

    Example:
        >>> lamp_scores(torch.tensor([1.0, -2.0, 1.0]))
        tensor([0.2000, 1.0000, 0.1667], dtype=torch.float64)
    """
    size = weight.detach().double().abs().reshape(-1)
    most = size.max()
    if float(most) == 0.0:
        return torch.zeros_like(size).reshape(weight.shape)
    squares, order = (size / most).square().sort(descending=True, stable=True)
    scores = torch.empty_like(squares)
    scores[order] = squares / squares.cumsum(0)
    return scores.reshape(weight.shape)


def _lamp(model: nn.Module, weights: Mapping[str, Tensor], stats: Any) -> dict[str, Tensor]:
    return {name: lamp_scores(w) for name, w in weights.items()}


lamp = Criterion("lamp", weights=Weighing(_lamp))
"""``w_u² / sum_{v >= u} w_v²`` within each tensor, for one ranking of all weights: LAMP (arXiv:2010.07611).

The largest weight of every tensor has score 1, so none is emptied; scaling a tensor changes nothing.
"""
