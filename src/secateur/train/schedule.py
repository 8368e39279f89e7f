"""Schedules: the sparsity at each step of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from secateur.choose.density import check_sparsity

Schedule: TypeAlias = Callable[[int], float]
"""``step -> sparsity``, the fraction removed, in [0, 1)."""


def cubic(final: float, start: int, end: int, initial: float = 0.0) -> Schedule:
    """``s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))³`` between the two steps (Zhu and Gupta, arXiv:1710.01878).

    Example:
        >>> [round(cubic(0.9, 0, 4)(t), 3) for t in range(6)]
        [0.0, 0.52, 0.787, 0.886, 0.9, 0.9]
    """
    check_sparsity(final)
    check_sparsity(initial)

    def sparsity(step: int) -> float:
        done = min(max((step - start) / max(end - start, 1), 0.0), 1.0)
        return final + (initial - final) * (1 - done) ** 3

    return sparsity
