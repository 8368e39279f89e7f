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


@dataclass(frozen=True, eq=False)
class Consumer:
    """A weight that the units feed.

    Attributes:
        weight: (outputs, d) float64. second: E x xᵀ, (d, d) float64. units: (units, k) columns each unit owns.
        scale: what its error is worth.
    """

    weight: Tensor
    second: Tensor
    units: Tensor
    scale: float = 1.0


def damped(second: Tensor, damping: float) -> Tensor:
    """``H + damping * mean(diag H) I``; the identity where no input is ever active."""
    mean = float(second.diagonal().mean())
    out = second.clone()
    out.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return out


def removal_order(consumers: Sequence[Consumer], damping: float = 1e-2, chunk: int = 32) -> Floats:
    """Score of each unit: the rise in error at the step at which it went, never below an earlier one.

    With ``chunk`` large enough one unit goes a step and the rise is exactly that of the least-squares optimum on the
    survivors: ``|| (W - W') X ||²`` plus the damping term.

    Example:
        >>> w, h = torch.tensor([[3.0, 1.0, 2.0]]).double(), torch.eye(3).double()
        >>> removal_order([Consumer(w, h, torch.tensor([[0], [1], [2]]))], damping=1e-12).round(6)
        array([9., 1., 4.])
    """
    states = [[c.weight.clone(), torch.linalg.inv(damped(c.second, damping)), c.units, c.scale] for c in consumers]
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
