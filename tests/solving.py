"""Linear layers and what they are fed, for tests of solvers; their oracles, written plainly in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.choose.patterns import Pattern
from secateur.solve.gram import Gram


def inputs(rows: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated inputs of unlike sizes and means."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return ((draw(rows, d) @ draw(d, d) / d**0.5 + 0.3 * draw(d)) * draw(d).exp()).to(dtype)


def layer(
    outputs: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64, rows: int = 0
) -> tuple[Tensor, Gram]:
    """A weight and the moments of its inputs."""
    g = torch.Generator().manual_seed(1000 + seed)
    weight = torch.randn(outputs, d, generator=g, dtype=torch.float64).to(dtype)
    return weight, Gram.of(inputs(rows or 4 * d, d, seed, dtype))


def damped(gram: Gram, damping: float) -> np.ndarray:
    """``H + damping * mean(diag H) I``."""
    h = gram.second.double().numpy()
    return h + damping * h.diagonal().mean() * np.eye(len(h))


def quadratic(change: Tensor, h: np.ndarray) -> float:
    """``tr Δ H Δᵀ``."""
    c = change.double().numpy()
    return float(np.trace(c @ h @ c.T))


def best_values(weight: Tensor, mask: Tensor, h: np.ndarray) -> np.ndarray:
    """Row by row ``w_S = H_SS⁻¹ H_S: w``: the least of ``quadratic`` on a support."""
    out = np.zeros(weight.shape)
    for i, row in enumerate(weight.double().numpy()):
        s = np.flatnonzero(mask[i].numpy())
        out[i, s] = np.linalg.solve(h[np.ix_(s, s)], h[s] @ row)
    return out


def fits(mask: Tensor, pattern: Pattern, kept: int) -> bool:
    """Whether a mask has a pattern's shape: the pattern itself would choose it among ones and zeros."""
    return int(mask.sum()) == kept and torch.equal(pattern.select(mask.double(), kept, None), mask)
