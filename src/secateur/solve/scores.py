"""Solvers that choose by a score and leave the values as they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern, unstructured
from secateur.choose.select import top, top_per_row
from secateur.errors import ArgumentError
from secateur.solve.gram import Gram
from secateur.solve.solver import Solved, Solver


def by_score(name: str, score: Callable[[Tensor, Gram], Tensor], rows: bool = False, norms: bool = False) -> Solver:
    """Keep the largest scores; the values stay.

    Args:
        name: in reports. score: ``(weight, gram) -> scores``, of the weight's shape, at least 0.
        norms: the score looks at ``gram.square`` and ``gram.mean`` alone.
        rows: with the unstructured pattern, compare within each output row only (see `even_rows`).

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> plain = by_score("plain", lambda w, gram: w.abs())
        >>> plain(torch.tensor([[1.0, -2.0]]), Gram.of(torch.eye(2)), unstructured, 1).weight
        tensor([[ 0., -2.]])
    """

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        scores = score(weight, gram)
        select = even_rows if rows and pattern is unstructured else pattern.select
        mask = select(scores, kept, alive)
        return Solved(zeroed(weight, mask), mask)

    return Solver(name, solve, norms)


def zeroed(weight: Tensor, mask: Tensor) -> Tensor:
    """The weights that a mask keeps, finite, and zeros elsewhere: by a product with 0 and 1, in a tenth of the time.

    Example:
        >>> zeroed(torch.tensor([1.0, -2.0]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return (weight * mask.view(torch.int8)).add_(0.0)  # no zero keeps its sign


def even_rows(scores: Tensor, kept: int, alive: Tensor | None = None) -> Tensor:
    """Mask of exactly ``kept``, as evenly over the rows as can be: the best of each; ties to the earlier column.

    Rows differ by one at most, unless a row has fewer alive: then it keeps all of them. Where some rows keep one more,
    they are those whose next weight scores highest.

    Example:
        >>> even_rows(torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]), 3)
        tensor([[ True,  True, False],
                [False, False,  True]])
    """
    rows, columns = scores.shape
    if alive is None or bool(alive.all()):
        each, more = divmod(kept, max(rows, 1))
        mask = top_per_row(scores, each)
        return mask | _best_next(scores, top_per_row(scores, each + 1) & ~mask, more) if more else mask
    room = alive.sum(1)
    level = torch.arange(columns + 1, device=scores.device)
    reached = torch.minimum(room[:, None], level).sum(0)  # so many are kept when every row keeps up to a level
    each = int((reached <= kept).nonzero()[-1])
    order = torch.sort(scores.masked_fill(~alive, -torch.inf), dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, level[:-1].expand(rows, -1))
    mask = alive & (rank < each)
    return mask | _best_next(scores, alive & (rank == each), kept - int(mask.sum()))


def _best_next(scores: Tensor, candidates: Tensor, more: int) -> Tensor:
    return top(scores, more, candidates) if more else torch.zeros_like(candidates)


def _wanda(weight: Tensor, gram: Gram) -> Tensor:
    return weight.abs().mul_(gram.square.to(weight.dtype).sqrt())  # in place: fresh memory costs more than the product


def _ria(power: float) -> Callable[[Tensor, Gram], Tensor]:
    def score(weight: Tensor, gram: Gram) -> Tensor:
        size = weight.abs()
        share = size / _sums(size, 0) + size / _sums(size, 1)
        return share * gram.square.to(weight.dtype) ** (power / 2)

    return score


def _sums(size: Tensor, dim: int) -> Tensor:
    total = size.sum(dim, keepdim=True)
    return torch.where(total > 0, total, 1.0)


def ria_mask_with(power: float = 0.5) -> Solver:
    """``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) (E x_j²)^(power/2)``, over the whole layer (RIA).

    Raises:
        ArgumentError: the power is negative or not finite.
    """
    if not 0 <= power < float("inf"):
        raise ArgumentError(f"RIA takes a power of at least 0, got {power}; the paper has 0.5")
    return by_score("ria", _ria(power), norms=True)


magnitude_mask = by_score("magnitude", lambda weight, gram: weight.abs(), norms=True)
"""``|W_ij|``, over the whole layer; looks at no data."""

wanda_mask = by_score("wanda", _wanda, rows=True, norms=True)
"""``|W_ij| sqrt(E x_j²)`` within each output row (Wanda, arXiv:2306.11695)."""

ria_mask = ria_mask_with()
"""`ria_mask_with` its defaults (ICLR 2024, openreview Tr0lPx9woF)."""
