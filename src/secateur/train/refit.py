"""Least-squares refit as a stage of recovery."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from secateur.errors import PlanError
from secateur.progress import progress
from secateur.solve.refit import refit_
from secateur.solve.sums import DAMPINGS, checked_dampings
from secateur.train.recovery import History, Recovery
from secateur.types import Batches, Plan


def refit(batches: Batches, damping: float | Sequence[float] = DAMPINGS) -> Recovery:
    """Refit the weights that lost inputs to the dense model's outputs, layer after layer: no labels, no gradient.

    Batch norms must still have the dense model's statistics, which fit these outputs: refit before `sc.recalibrate_bn`.

    Args:
        batches: examples; a few thousand rows (tokens, pixels) are enough, and several of them: one in four is kept
            aside to tell what damping a weight needs. damping: see `secateur.solve.refit.refit_`.

    Raises:
        ArgumentError: no damping, or one that is negative or not finite.

    Example:
        >>> import torch, secateur as sc
        >>> refit([torch.randn(8, 4)]).name
        'refit'
    """
    data, damping = list(batches), checked_dampings(damping)

    def run(small: nn.Module, dense: nn.Module, plan: Plan | None) -> History:
        if plan is None:
            raise PlanError("refit: no plan was given; it solves for what was cut, so pass the plan that made small")
        start = time.perf_counter()
        with progress("refit", 1) as tell:
            errors = refit_(
                small, dense, plan, data, damping, progress=lambda i, n: tell(1 if i == n else 0, f"{i}/{n} layers")
            )
        before = [b for b, _ in errors.values()]
        after = [a for _, a in errors.values()]
        words = f"relative error of {len(errors)} layers {_mean(before):.4f} -> {_mean(after):.4f}"
        return History(seconds=time.perf_counter() - start, stopped=words)

    return Recovery("refit", run)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
