"""From sums over a table to whole models: how much of each kind of layer a model feels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.types import Floats

RIDGE = 0.03
"""How firmly the shares of kinds are held together, in relative error of the whole."""


@dataclass(frozen=True, eq=False)
class Fit:
    r"""$T = c + \sum_k a_k S_k$, in seconds; ``c`` the constant, ``a`` by kind, none negative."""

    constant: float
    shares: Floats

    def __call__(self, sums: Floats) -> float:
        """Seconds, of sums by kind."""
        return float(self.constant + self.shares @ sums)


def fit(sums: Floats, seconds: Floats, weights: Floats | None = None) -> Fit:
    r"""Fit a constant and a share of every kind, none negative, to models that were measured.

    First one share $s$ of all kinds together and a constant, by least squares of relative errors; then a share of
    each kind, drawn to $s$: $\min \sum_i w_i^2 (T_i - c - \sum_k a_k S_{ik})^2 / T_i^2 + \lambda^2 \sum_k (a_k - s)^2
    / s^2$.

    Args:
        sums: (models, kinds). seconds: (models,), the dense model first. weights: (models,) of the errors.

    Example:
        >>> sums = np.array([[2.0, 1.0], [1.0, 1.0], [1.0, 0.5], [0.5, 0.25]])
        >>> bool(np.isclose(fit(sums, 3 + 1.5 * sums.sum(1))(np.array([1.0, 2.0])), 7.5))
        True
    """
    from scipy.optimize import nnls  # slow to import

    weights = np.ones(len(seconds)) if weights is None else weights
    scale = weights / seconds
    total = sums.sum(1)
    (constant, share), _ = nnls(np.stack([scale, total * scale], 1), seconds * scale)
    if share <= 0:  # nothing that was cut was faster: the table is the only guide left
        return _anchored(Fit(0.0, np.ones(sums.shape[1])), sums[0], seconds[0])
    kinds = sums.shape[1]
    whole = max(float(seconds[0]), 1e-30)
    left = np.concatenate([np.stack([scale * whole], 1), sums * share * scale[:, None]], 1)
    drawn = RIDGE * np.eye(kinds + 1)
    drawn[0] *= 0.1
    a = np.concatenate([left, drawn])
    b = np.concatenate([seconds * scale, RIDGE * np.ones(kinds + 1)])
    b[len(seconds)] = drawn[0, 0] * constant / whole
    x, _ = nnls(a, b)
    return _anchored(Fit(float(x[0] * whole), x[1:] * share), sums[0], seconds[0])


def _anchored(found: Fit, sums: Floats, seconds: float) -> Fit:
    """The same proportions, and exactly what the dense model took: every other figure is a ratio to it."""
    known = found(sums)
    by = seconds / known if known > 0 else 1.0
    return Fit(found.constant * by, found.shares * by)


def left_out(sums: Floats, seconds: Floats, weights: Floats | None = None) -> list[tuple[float, float]]:
    """(predicted, measured) of each model but the first, by a fit that has not seen it."""
    found = []
    for i in range(1, len(seconds)):
        rest = np.arange(len(seconds)) != i
        one = fit(sums[rest], seconds[rest], None if weights is None else weights[rest])
        found.append((one(sums[i]), float(seconds[i])))
    return found
