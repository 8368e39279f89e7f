"""Sparsity by layer, to whatever keeps curves."""

from __future__ import annotations

from typing import Any

from secateur.errors import ArgumentError
from secateur.train.masks import Masks


def log_sparsity(to: Any, masks: Masks, step: int, prefix: str = "sparsity") -> dict[str, float]:
    """Log the sparsity of all masked weights together and of each; returns what was logged.

    Args:
        to: with ``add_scalar(name, value, step)``, such as TensorBoard's `SummaryWriter`, or with
            ``log_metrics(values, step=step)``, such as the module `mlflow` or a Lightning logger.
        masks: their sparsity. step: of the training. prefix: names are ``PREFIX`` and ``PREFIX/WEIGHT``.

    Raises:
        ArgumentError: it can do neither.

    Example:
        >>> import torch
        >>> class Printer:
        ...     def add_scalar(self, name, value, step):
        ...         print(step, name, value)
        >>> masks = Masks(torch.nn.Linear(2, 2), {"weight": torch.eye(2, dtype=torch.bool)})
        >>> _ = log_sparsity(Printer(), masks, step=7)
        7 sparsity 0.5
        7 sparsity/weight 0.5
    """
    values = {prefix: masks.sparsity, **{f"{prefix}/{name}": s for name, s in masks.sparsities.items()}}
    if hasattr(to, "add_scalar"):
        for name, value in values.items():
            to.add_scalar(name, value, step)
    elif hasattr(to, "log_metrics"):
        to.log_metrics(values, step=step)
    else:
        raise ArgumentError(
            f"cannot log to {type(to).__name__}: give a SummaryWriter (pip install 'secateur[tensorboard]') or "
            "something with log_metrics, such as the module mlflow"
        )
    return values
