"""SparseGPT: column after column is pruned, and the columns to come make up for it (arXiv:2301.00774)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern, best_of_groups, per_row, unstructured
from secateur.errors import ArgumentError
from secateur.solve.gram import Gram
from secateur.solve.solver import Solved, Solver, columnwise

FINE = 16
"""Columns that are updated one by one; what comes after them is updated by products, which are faster."""

Choose = Callable[[int, Tensor], Tensor]
"""``(first column, scores (columns, outputs)) -> mask``, of the next columns."""


def sparsegpt_with(block: int = 128, damping: float = 0.01) -> Solver:
    """One sweep over the inputs with the factor ``UᵀU = (H + damping * scale * I)⁻¹``.

    Column ``j`` loses what its mask says, ``e = lost W_:j / U_jj``, and later columns take ``W_:k -= e U_jk``: exact
    compensation for the choice so far by the columns that are left. Masks are chosen for ``block`` columns at a time,
    by the largest ``W_ij² / U_jj²`` of the weights as compensated so far, all rows together; n:m for the n best of
    each group as it comes. ``sum e²`` is ``tr ΔW (H + damping * scale * I) ΔWᵀ``, the loss.
    Weights of dead inputs become zero.

    Args:
        block: columns whose mask is chosen together. damping: relative to the mean of the diagonal of ``H``.

    Raises:
        ArgumentError: a block of no columns, or a damping below 0.

    Time: outputs * d² multiplications and the factor, d³, which layers of the same input share.
    Memory: the weight, its transpose and the factor.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # the second input says what the first does
        >>> sparsegpt_with(damping=1e-6)(torch.ones(1, 2), Gram.of(x), unstructured, 1).weight.round(decimals=3)
        tensor([[0., 2.]])
    """
    if block < 1 or not 0 <= damping < float("inf"):
        raise ArgumentError(f"SparseGPT takes a block of 1 column or more and a damping >= 0; got {block}, {damping}")

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        upper = gram.factor(damping).to(weight.dtype)
        w = gram.target(weight, damping).T.clone(memory_format=torch.contiguous_format)  # a column is contiguous
        w[gram.dead] = 0.0
        group = columnwise(pattern)
        if group is not None:
            n, m = group
            lives = None if alive is None else alive.T.contiguous()
            if lives is not None:
                pattern.select(torch.zeros_like(weight), kept, alive)  # refuses groups with fewer alive than n

            def best(at: int, scores: Tensor) -> Tensor:
                if len(scores) < m:  # the end that stays dense
                    return torch.ones_like(scores, dtype=torch.bool)
                return best_of_groups(scores, n, None if lives is None else lives[at : at + m])

            mask = _sweep_(w, upper, best, m, block)
        else:
            width = _width(pattern, block, w.shape[0], alive)
            shares = _shares(pattern, tuple(weight.shape), kept, width, alive)

            def select(at: int, scores: Tensor) -> Tensor:
                lives = None if alive is None else alive[:, at : at + width]
                return pattern.select(scores.T.contiguous(), shares[at // width], lives).T

            mask = _sweep_(w, upper, select, width, min(block, width))
        return Solved(w.mul_(mask).T.contiguous(), mask.T.contiguous())

    return Solver("sparsegpt", solve)


def _sweep_(w: Tensor, upper: Tensor, choose: Choose, width: int, block: int) -> Tensor:
    """The sweep over ``w`` (d, outputs) in place; returns the mask. Lost weights are left to be zeroed.

    What is lost in ``FINE`` columns reaches the rest of the block in one product, and what is lost in a block all
    later ones. The mask of ``width`` columns is chosen when all that comes before them is done.
    """
    d, outputs = w.shape
    fine = width * -(-FINE // width) if width < FINE else FINE if width >= block else width
    if width < block:  # whole groups in a fine step, whole fine steps in a block
        block = fine * max(1, block // fine)
    elif width % block:  # else a mask would be chosen in the middle of a block, whose losses are not yet passed on
        block = width
    diagonal, values = upper.diagonal()[:, None], upper.diagonal().tolist()
    lost = torch.empty(d, outputs, dtype=torch.bool, device=w.device)
    errors = torch.empty(min(block, d), outputs, dtype=w.dtype, device=w.device)
    for at in range(0, d, block):
        stop = min(at + block, d)
        for start in range(at, stop, fine):
            end = min(start + fine, stop)
            for j in range(start, end):
                if j % width == 0:
                    some = slice(j, min(j + width, d))
                    torch.logical_not(choose(j, (w[some] / diagonal[some]).square_()), out=lost[some])
                e = torch.mul(w[j], lost[j], out=errors[j - at]).div_(values[j])
                if j + 1 < end:
                    w[j + 1 : end].addr_(upper[j, j + 1 : end], e, alpha=-1)
            if end < stop:
                w[end:stop].addmm_(upper[start:end, end:stop].T, errors[start - at : end - at], alpha=-1)
        if stop < d:
            w[stop:].addmm_(upper[at:stop, stop:].T, errors[: stop - at], alpha=-1)
    return lost.logical_not_()


def _width(pattern: Pattern, block: int, d: int, alive: Tensor | None) -> int:
    """How many columns get their mask together: all of them where parts of the pattern need not add up to it."""
    if pattern is unstructured or (pattern is per_row and alive is None):
        return min(block, d)
    if pattern.tile is not None and alive is None:
        return min(pattern.tile[1] * max(1, block // pattern.tile[1]), d)
    return d


def _shares(pattern: Pattern, shape: tuple[int, ...], kept: int, width: int, alive: Tensor | None) -> list[int]:
    """How many weights each ``width`` columns keep: in proportion to what they can, and ``kept`` in all."""
    rows, d = shape
    if width == d:
        return [kept]
    sizes = [min(width, d - at) for at in range(0, d, width)]
    least = [pattern.count((rows, size), 0) for size in sizes]
    most = [pattern.count((rows, size), rows * size) for size in sizes]
    if alive is not None:
        most = [int(part.sum()) for part in alive.split(width, 1)]
    free, room = kept - sum(least), sum(most) - sum(least)
    shares: list[int] = []
    low = high = 0
    for size, a, b in zip(sizes, least, most, strict=True):
        low, high = low + a, high + b - a
        wanted = low + (2 * free * high + room) // (2 * room) if room else low
        shares.append(pattern.count((rows, size), wanted - sum(shares)))
    return shares


sparsegpt = sparsegpt_with()
"""`sparsegpt_with` its defaults."""
