"""The largest of many, by count: exact, stable, and no copy of what is chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import PlanError


def top(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """Mask of the ``keep`` largest scores, ties to the earlier position: nested over ``keep``.

    Args:
        scores: any shape. keep: how many. alive: bool, the same shape; only these can be kept.

    Raises:
        PlanError: a score is NaN or inf, or there are fewer alive than are to be kept.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 3.0, 0.0]), 2)
        tensor([False,  True,  True, False])
    """
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    flat = scores.detach().reshape(-1)
    if not bool(torch.isfinite(flat).all()):
        raise PlanError(f"{int((~torch.isfinite(flat)).sum())} of {flat.numel()} scores are NaN or inf")
    choice = torch.arange(flat.numel(), device=flat.device) if alive is None else alive.reshape(-1).nonzero()[:, 0]
    if not 0 <= keep <= choice.numel():
        raise PlanError(f"cannot keep {keep} of {choice.numel()} weights")
    order = torch.sort(flat[choice], descending=True, stable=True).indices[:keep]
    mask[choice[order]] = True
    return mask.reshape(scores.shape)


def top_counts(scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None = None) -> list[int]:
    """How many of each tensor are among the ``keep`` largest of all; ties to the earlier tensor and position.

    Example:
        >>> top_counts([torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])], 3)
        [1, 2]
    """
    flat = torch.cat([s.detach().reshape(-1) for s in scores])
    lives = None if alive is None else torch.cat([a.reshape(-1) for a in alive])
    parts = top(flat, keep, lives).split([s.numel() for s in scores])
    return [int(p.sum()) for p in parts]
