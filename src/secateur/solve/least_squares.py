"""The best values for a mask: least squares on the weights that stay, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern
from secateur.errors import ArgumentError, DataError
from secateur.solve.gram import Gram
from secateur.solve.scores import wanda_mask
from secateur.solve.solver import Solved, Solver

CHUNK = 2e8
"""Bytes of systems that are solved together."""


def least_squares_with(start: Solver = wanda_mask, damping: float = 0.01, shrink: bool = False) -> Solver:
    """Exact masked least squares: the mask of another solver, the best values for it.

    Row i with support S minimises ``E |w x - y_i|² + λ ||w - w_i||²``, ``λ = damping * scale``, over the ``w`` that
    are zero off S: ``w_S = (H_SS + λI)⁻¹ (E y_i x_S + λ w_i,S)``, where ``w_i`` is the dense row: the damping pulls
    towards the dense weight. Without damping it fits the calibration data as well as can be done, and text that was
    not calibrated on can come out worse than with no update at all.

    Args:
        start: whose mask. damping: relative to the mean of the diagonal of ``H``.
        shrink: the ridge is relative to each input's own second moment instead, ``λ_j = damping * H_jj``.

    Raises:
        ArgumentError: a damping below 0.

    Time: outputs * |S|³ / 3 multiplications: for up to one or two thousand inputs; `alps` is for more.
    Memory: 0.2 GB of systems at a time, or one.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # the second input says what the first does
        >>> least_squares_with(damping=0.0)(torch.ones(1, 2), Gram.of(x), unstructured, 1).weight
        tensor([[2., 0.]])
    """
    if not 0 <= damping < float("inf"):
        raise ArgumentError(f"least squares takes a damping of at least 0, got {damping}")

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        mask = start.solve(weight, gram, pattern, kept, alive).mask
        return Solved(fitted(weight, gram, mask, damping, shrink=shrink), mask)

    return Solver(f"{start.name}+least_squares", solve)


def refit_with(
    start: Solver, dampings: Sequence[float] = (0.01, 0.1, 1.0), from_start: bool = False, shrink: bool = False
) -> Solver:
    """Regularised least squares on a solver's mask, as far as data kept aside agrees.

    The candidates are what the solver gave and `least_squares_with` each damping on its mask; the least
    `Gram.loss` on ``gram.held`` stays, the earlier of equals. Without held data it is the first damping's.

    Args:
        start: whose mask and values. dampings: tried in turn.
        from_start: pull towards the values of ``start`` rather than the dense ones.
        shrink: as of `least_squares_with`.

    Raises:
        ArgumentError: no damping, or one below 0.

    Time and memory: of `least_squares_with`, for each damping.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> one, other = Gram.of(torch.tensor([[1.0, 1.0]])), Gram.of(torch.tensor([[1.0, 0.0]]))
        >>> gram = Gram(one.second, one.mean, 1, held=other)  # there, the second input stands alone
        >>> refit_with(wanda_mask)(torch.ones(1, 2), gram, unstructured, 1).weight
        tensor([[1., 0.]])
    """
    if not dampings or not all(0 <= d < float("inf") for d in dampings):
        raise ArgumentError(f"a refit takes dampings of at least 0, one or more; got {tuple(dampings)}")

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        first = start.solve(weight, gram, pattern, kept, alive)
        towards = first.weight if from_start else weight
        if gram.held is None:
            return Solved(fitted(weight, gram, first.mask, dampings[0], towards, shrink), first.mask)
        tried = [first.weight, *(fitted(weight, gram, first.mask, d, towards, shrink) for d in dampings)]
        return Solved(min(tried, key=lambda w: gram.held.loss(w, weight) if gram.held else 0.0), first.mask)

    return Solver(f"{start.name}+refit", solve)


def best_of(*solvers: Solver) -> Solver:
    """Whichever solver's result has the least `Gram.loss` on ``gram.held``, or without it on the data itself.

    Raises:
        ArgumentError: no solver.
    """
    if not solvers:
        raise ArgumentError("best_of takes solvers to choose from; got none")

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        judge = gram if gram.held is None else gram.held
        tried = (s.solve(weight, gram, pattern, kept, alive) for s in solvers)
        return min(tried, key=lambda solved: judge.loss(solved.weight, weight))

    return Solver(f"best_of({','.join(s.name for s in solvers)})", solve)


def fitted(
    weight: Tensor,
    gram: Gram,
    mask: Tensor,
    damping: float,
    towards: Tensor | None = None,
    shrink: bool = False,
) -> Tensor:
    """The values that `least_squares_with` gives on a mask, pulled ``towards`` the dense weight or another.

    Raises:
        DataError: the second moment of some row's inputs is singular with this damping.
    """
    diagonal = gram.second.diagonal().to(weight.dtype)
    ridge = damping * (diagonal if shrink else torch.full_like(diagonal, gram.scale))
    system = gram.second.to(weight.dtype) + torch.diag(ridge + gram.dead * gram.scale)
    right = gram.moved(weight) + (weight if towards is None else towards) * ridge
    right[:, gram.dead] = 0.0
    out = torch.zeros_like(weight)
    for rows, size in _alike(mask, weight.element_size()):
        # columns of the support first, in order; what pads a shorter one stands for itself alone
        columns = torch.argsort((~mask[rows]).to(torch.int8), dim=1, stable=True)[:, :size]
        real = torch.gather(mask[rows], 1, columns)
        a = system[columns[:, :, None], columns[:, None, :]]
        a.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0.0)
        a.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1.0)
        b = torch.gather(right[rows], 1, columns).masked_fill_(~real, 0.0)
        lower, info = torch.linalg.cholesky_ex(a)
        if bool(info.any()):
            raise DataError(
                f"least squares{gram.name and f' of {gram.name}'}: the second moment is singular on the inputs of "
                f"output {int(rows[int(info.argmax())])} with damping {damping:g}: give more text, or more damping"
            )
        found = torch.cholesky_solve(b[:, :, None], lower)[:, :, 0]
        out[rows] = torch.zeros_like(out[rows]).scatter_(1, columns, found)
    return out


def _alike(mask: Tensor, element: int) -> Iterator[tuple[Tensor, int]]:
    """Rows in chunks, those with supports of like size together, and the largest size of each chunk."""
    sizes = mask.sum(1)
    order = torch.argsort(sizes, descending=True, stable=True)
    at = 0
    while at < len(order):
        size = int(sizes[order[at]])
        if not size:
            return
        step = max(1, int(CHUNK / (3 * element * size * size)))
        yield order[at : at + step], size
        at += step


least_squares = least_squares_with()
"""`least_squares_with` its defaults: on Wanda's mask."""
