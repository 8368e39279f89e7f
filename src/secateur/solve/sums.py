"""Least squares by sums over rows, their damping chosen on rows that are kept aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.errors import ArgumentError
from secateur.score.obs import firm

DAMPINGS = (1e-2, 1e-1, 1.0)
"""Dampings of which each weight takes the one that does best on batches kept aside."""
ASIDE = 4
"""Of so many batches one is kept aside."""


@dataclass(eq=False)
class Sums:
    """Sums for ``min || Y - W X ||²``; ``inner`` inputs, with a constant behind them where the bias is fitted too.

    Of several weights that share their inputs, one below the other.
    """

    inner: int
    gram: Tensor  # sum [x; 1][x; 1]ᵀ
    cross: Tensor  # sum y [x; 1]ᵀ
    energy: Tensor  # sum y², by output
    rows: int = 0

    @classmethod
    def zeros(cls, old: Tensor, inner: int) -> Sums:
        """Of no rows, for a weight like this one (and its bias, as the last column)."""
        return cls(inner, old.new_zeros(old.shape[1], old.shape[1]), torch.zeros_like(old), old.new_zeros(len(old)))

    def add_(self, x: Tensor, y: Tensor) -> None:
        """More rows: inputs and targets."""
        if self.inner < len(self.gram):
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.gram += (x.T @ x).double()
        self.cross += (y.T @ x).double()
        self.energy += y.double().square().sum(0)
        self.rows += len(x)

    def __iadd__(self, other: Sums) -> Sums:
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        self.rows += other.rows
        return self

    def error(self, weight: Tensor) -> Tensor:
        """``|| Y - W X ||²`` by output; infinite where it is not finite."""
        found = self.energy - 2 * (weight * self.cross).sum(1) + ((weight @ self.gram) * weight).sum(1)
        return torch.where(torch.isfinite(found), found, torch.inf)

    def fitted(self, old: Tensor, damping: float) -> Tensor:
        """The least error, with so much pull towards the weight as it was; hardly any on the bias."""
        ridge = self._ridge(damping)
        penalty = torch.full((len(self.gram),), ridge + 1e-12, dtype=torch.float64, device=old.device)
        penalty[self.inner :] = 1e-8 * ridge + 1e-12
        system = self.gram.clone()
        system.diagonal().add_(penalty)
        solved: Tensor = torch.linalg.solve(system, (self.cross + old * penalty).T)
        return solved.T

    def _ridge(self, damping: float) -> float:
        """What is added to the diagonal of the inputs' sums, more where rows are few."""
        inner, rows = self.inner, max(self.rows, 1)
        mean = float(self.gram.diagonal()[:inner].mean())
        if rows >= 2 * inner:
            return damping * mean
        spread = self.gram[:inner, :inner] / rows
        if inner < len(self.gram):  # the constant takes the means over
            means = self.gram[:inner, -1] / rows
            spread = spread - torch.outer(means, means)
        few = firm(spread, rows, damping) * float(spread.diagonal().mean())
        return max(damping * mean, rows * few)


def chosen(
    sums: Sums, aside: Sums, old: Tensor, dampings: Sequence[float], outputs: Sequence[int] | None = None
) -> list[float | None]:
    """By weight the damping that loses least on what was kept aside, the first of equals; None: less than any loses.

    Args:
        sums: of all rows but those aside. old, outputs: as in `fit`.

    Time: a solve a damping, inputs cubed. Memory: inputs squared, twice.
    """
    tried = [_errors(aside, sums.fitted(old, d), outputs) for d in dampings]
    found = []
    for errors, stays in zip(zip(*tried, strict=True), _errors(aside, old, outputs), strict=True):
        error, damping = min(zip(errors, dampings, strict=True), key=lambda pair: pair[0])
        found.append(damping if error <= stays and error < np.inf else None)
    return found


def fit(
    sums: Sums, old: Tensor, dampings: Sequence[float | None], outputs: Sequence[int] | None = None
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Least squares towards ``old``; and errors before and after by weight, over the energy of its targets.

    A weight that is no better for it stays.

    Args:
        old: weights, one below the other, float64 (sum of outputs, inputs). outputs: of each; None: there is one.
        dampings: by weight; None: it stays.

    Time: a solve for each damping that occurs, inputs cubed. Memory: inputs squared, twice.
    """
    outputs = [len(old)] if outputs is None else list(outputs)
    before, energy = _errors(sums, old, outputs), [float(e.sum()) for e in sums.energy.split(outputs)]
    parts, after = list(old.split(outputs)), list(before)
    for damping in sorted({d for d in dampings if d is not None}):
        fitted = sums.fitted(old, damping)
        errors = _errors(sums, fitted, outputs)
        for i, part in enumerate(fitted.split(outputs)):
            if dampings[i] == damping and errors[i] <= before[i] and errors[i] < np.inf:
                parts[i], after[i] = part, errors[i]
    told = zip(before, after, energy, strict=True)
    return torch.cat(parts), [(max(b, 0.0) / max(e, 1e-300), max(a, 0.0) / max(e, 1e-300)) for b, a, e in told]


def _errors(sums: Sums, weight: Tensor, outputs: Sequence[int] | None) -> list[float]:
    """By weight."""
    error = sums.error(weight)
    return [float(part.sum()) for part in error.split([len(weight)] if outputs is None else list(outputs))]


def checked_dampings(damping: float | Sequence[float]) -> tuple[float, ...]:
    """One or more, as given.

    Raises:
        ArgumentError: none, or one that is negative or not finite.
    """
    dampings = (damping,) if isinstance(damping, (int, float)) else tuple(damping)
    if not dampings or not all(0 <= d < np.inf for d in dampings):
        raise ArgumentError(f"a refit takes dampings of at least 0, one or more, such as 0.01; got {damping}")
    return dampings
