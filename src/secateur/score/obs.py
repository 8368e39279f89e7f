"""Structured optimal brain surgeon: which units can go at the least cost when the others make up for them.

ZipLM (arXiv:2302.04089), OBC (arXiv:2208.11580).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.types import Floats

MOST = 0.99
"""Largest share of the identity that few rows are drawn to."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A weight that the units feed.

    Attributes:
        weight: (outputs, d) float64. second: E x xᵀ, (d, d) float64. units: (units, k) columns each unit owns.
        scale: what its error is worth. rows: that ``second`` was taken over; None: enough.
    """

    weight: Tensor
    second: Tensor
    units: Tensor
    scale: float = 1.0
    rows: int | None = None


def damped(second: Tensor, damping: float, rows: int | None = None) -> Tensor:
    """``H + damping * mean(diag H) I``, more where ``rows`` are few (`firm`); plus I where no input is ever active."""
    mean = float(second.diagonal().mean())
    damping = damping if rows is None else firm(second, rows, damping)
    out = second.clone()
    out.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return out


def firm(second: Tensor, rows: int, damping: float) -> float:
    """The damping, or more where rows are too few to tell inputs apart: fewer than twice as many as inputs.

    What so few rows say of correlations is mostly chance, and units would seem to cost nothing. More damping gives
    ``H`` the proportions of the oracle approximating shrinkage ``(1 - r) H + r mean(diag H) I`` (Chen, Wiesel, Eldar
    and Hero, Shrinkage algorithms for MMSE covariance estimation, arXiv:0907.4698), whose ``r`` is told by ``H`` and
    the number of rows alone.

    Args:
        second: ``H``, mean of ``x xᵀ``, (d, d). rows: that it was taken over.

    Example:
        >>> x = torch.randn(20, 200, generator=torch.Generator().manual_seed(0)).double()
        >>> firm(x.T @ x / 20, 20, 0.01) > 1, firm(x.T @ x / 20, 400, 0.01)
        (True, 0.01)
    """
    d = len(second)
    trace, square = float(second.diagonal().sum()), float(second.square().sum())
    if rows >= 2 * d or trace <= 0:
        return damping
    apart = (rows + 1 - 2 / d) * (square - trace * trace / d)
    share = ((1 - 2 / d) * square + trace * trace) / apart if apart > 0 else 1.0
    share = min(share, MOST)
    return max(damping, share / (1 - share))


def removal_order(consumers: Sequence[Consumer], damping: float = 1e-2, chunk: int = 32) -> Floats:
    """Score of each unit: the rise in error at the step at which it went, never below an earlier one.

    With ``chunk`` large enough one unit goes a step and the rise is exactly that of the least-squares optimum on the
    survivors: ``|| (W - W') X ||²`` plus the damping term, which is larger where rows are few (`firm`).

    Example:
        >>> w, h = torch.tensor([[3.0, 1.0, 2.0]]).double(), torch.eye(3).double()
        >>> removal_order([Consumer(w, h, torch.tensor([[0], [1], [2]]))], damping=1e-12).round(6)
        array([9., 1., 4.])
    """
    states = [
        [c.weight.clone(), torch.linalg.inv(damped(c.second, damping, c.rows)), c.units, c.scale] for c in consumers
    ]
    n = len(consumers[0].units)
    alive = torch.arange(n)
    out = np.zeros(n)
    floor = 0.0
    while len(alive) > 1:
        cost = sum(scale * _cost(w, inverse, units) for w, inverse, units, scale in states)
        gone = torch.argsort(torch.as_tensor(cost), stable=True)[: max(1, len(alive) // chunk)]
        for i, value in zip(gone.tolist(), torch.as_tensor(cost)[gone].tolist(), strict=True):
            floor = max(floor, value)
            out[int(alive[i])] = floor
        left = torch.ones(len(alive), dtype=torch.bool)
        left[gone] = False
        states = [[*_remove(w, inverse, units, gone, left), scale] for w, inverse, units, scale in states]
        alive = alive[left]
    last = sum(float(scale * _cost(w, inverse, units)) for w, inverse, units, scale in states)
    out[int(alive[0])] = max(floor, last)
    return out


def _cost(weight: Tensor, inverse: Tensor, units: Tensor) -> Tensor:
    """Tr W_P ([H⁻¹]_PP)⁻¹ W_Pᵀ of every unit, shape (units,)."""
    if units.shape[1] == 1:
        at = units[:, 0]
        single: Tensor = weight[:, at].square().sum(0) / inverse.diagonal()[at]
        return single
    blocks = inverse[units[:, :, None], units[:, None, :]]  # (u, k, k)
    mine = weight[:, units].permute(1, 2, 0)  # (u, k, outputs)
    several: Tensor = (mine * torch.linalg.solve(blocks, mine)).sum((1, 2))
    return several


def _remove(
    weight: Tensor, inverse: Tensor, units: Tensor, gone: Tensor, left: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove units together, the others making up for them; the removed columns are dropped from the state."""
    p = units[gone].reshape(-1)
    step = torch.linalg.solve(inverse[p][:, p], inverse[p])  # (P, d)
    weight = weight - weight[:, p] @ step
    inverse = inverse - inverse[:, p] @ step
    keep = torch.ones(inverse.shape[0], dtype=torch.bool)
    keep[p] = False
    renumber = torch.cumsum(keep, 0) - 1
    return weight[:, keep], inverse[keep][:, keep], renumber[units[left]]
