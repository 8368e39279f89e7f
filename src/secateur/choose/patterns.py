"""Patterns: which weights may go together. Each says how many can be kept, and keeps just so many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from secateur.choose.select import check_scores, top, top_per_row
from secateur.errors import PlanError

Remainder: TypeAlias = Literal["dense"] | None
"""What becomes of an axis that the pattern does not divide: its incomplete end stays dense, or it is refused."""


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity.

    Attributes:
        name: as it stands in reports and files, such as ``unstructured`` or ``2:4``.
        count: ``(shape, wanted) -> kept``: the nearest count of weights that the pattern can keep of such a tensor.
        select: ``(scores, kept, alive) -> bool mask``: exactly ``kept``, the best by score; ``alive`` (bool or None)
            are the only ones that may be kept. Ties go to the earlier position.
        density: the fraction that the pattern itself keeps, or None where any can be asked for.
        window: of N:M alone: ``(n, m, dim)``, n kept in every m along an axis; else None.
        tile: of blocks alone: their ``(rows, columns)``; else None.
    """

    name: str
    count: Callable[[tuple[int, ...], int], int]
    select: Callable[[Tensor, int, Tensor | None], Tensor]
    density: float | None = None
    window: tuple[int, int, int] | None = None
    tile: tuple[int, int] | None = None


unstructured = Pattern("unstructured", lambda shape, wanted: wanted, top)
"""Any weight of a tensor."""


def balanced(dim: int = 0) -> Pattern:
    """The same count in every slice along an axis: of every output row for ``dim=0``, the comparison group of Wanda.

    A slice of ``k`` weights keeps ``floor(wanted / slices + 1/2)`` of them: half a weight is kept.

    Args:
        dim: the axis whose slices are balanced; of a convolution, 0 are its filters and 1 its input channels.

    Raises:
        PlanError: on use: the tensor has no such axis, or a slice has fewer alive than it is to keep.

    The rows are those of arXiv:2306.11695.

    Example:
        >>> per_row.select(torch.tensor([[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]]), 2, None)
        tensor([[False, False,  True],
                [ True, False, False]])
    """

    def count(shape: tuple[int, ...], wanted: int) -> int:
        slices = shape[_axis(shape, dim, name)]
        return slices * ((2 * wanted + slices) // (2 * slices)) if slices else 0

    def select(scores: Tensor, kept: int, alive: Tensor | None) -> Tensor:
        at = _axis(scores.shape, dim, name)
        slices = scores.shape[at]
        _check_count(name, kept, count(tuple(scores.shape), kept))
        moved = scores.movedim(at, 0)
        rows = moved.reshape(slices, -1)
        lives = None if alive is None else alive.movedim(at, 0).reshape(slices, -1)
        mask = top_per_row(rows, kept // max(slices, 1), lives)
        return mask.reshape(moved.shape).movedim(0, at).contiguous()

    name = "per_row" if dim == 0 else f"balanced({dim})"
    return Pattern(name, count, select)


per_row = balanced(0)
"""The same count in every output row."""


def nm(n: int, m: int, dim: int = 1, remainder: Remainder = None) -> Pattern:
    """N:M: ``n`` weights are kept of every ``m`` that follow each other along an axis (arXiv:2104.08378).

    Hardware and formats want the groups along the axis that a product sums over: the inputs of a linear layer, the
    input channels of a convolution (``dim=1`` of both), or the taps of a 1 x k kernel (``dim=3``). Nested over ``n``.

    Args:
        n, m: 0 <= n <= m. dim: the axis of the groups; negative ones count from the last.
        remainder: ``"dense"`` leaves the last, incomplete group of an axis that m does not divide dense; by default
            such an axis is refused.

    Raises:
        PlanError: n and m do not fit each other; on use: the tensor has no such axis, m does not divide it, or a
            group has fewer alive than n.

    Example:
        >>> nm(2, 4).select(torch.tensor([[1.0, 4.0, 4.0, 4.0]]), 2, None)
        tensor([[False,  True,  True, False]])
        >>> nm(2, 4).count((3, 6), 9)
        Traceback (most recent call last):
        secateur.errors.PlanError: axis 1 of shape (3, 6) has 6 positions, which groups of 4 do not divide: ...
    """
    if not (isinstance(n, int) and isinstance(m, int) and m >= 1 and 0 <= n <= m):
        raise PlanError(f"{n}:{m} is no pattern: it keeps n of every m, whole numbers with 0 <= n <= m and m >= 1")
    _check_remainder(remainder)

    def count(shape: tuple[int, ...], wanted: int) -> int:
        at = _axis(shape, dim, name)
        whole, rest = _divided(shape, at, m, remainder)
        return math.prod(shape[:at] + shape[at + 1 :]) * (whole * n + rest)

    def select(scores: Tensor, kept: int, alive: Tensor | None) -> Tensor:
        check_scores(scores)
        _check_count(name, kept, count(tuple(scores.shape), kept))
        at = _axis(scores.shape, dim, name)
        whole, rest = _divided(tuple(scores.shape), at, m, remainder)
        mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
        groups = scores.detach().narrow(at, 0, whole * m).unflatten(at, (whole, m)).movedim(at + 1, 0)
        lives = None
        if alive is not None:
            _check_dense(name, alive.narrow(at, whole * m, rest))
            lives = alive.narrow(at, 0, whole * m).unflatten(at, (whole, m)).movedim(at + 1, 0)
            if lives.numel() and int((fewest := lives.sum(0)).min()) < n:
                raise PlanError(f"{name}: a group of {m} has only {int(fewest.min())} weights alive; expected {n}")
        mask.narrow(at, 0, whole * m).unflatten(at, (whole, m)).movedim(at + 1, 0).copy_(
            best_of_groups(groups, n, lives)
        )
        return mask

    name = f"{n}:{m}" if dim == 1 else f"{n}:{m} along {dim}"
    return Pattern(name, count, select, n / m, (n, m, dim))


def block(rows: int, columns: int, remainder: Remainder = None) -> Pattern:
    """Whole blocks of a matrix: those with the largest summed scores (arXiv:1711.02782).

    A kernel is the matrix of its outputs by all the rest, ``(out, in * taps)``, as products over patches see it.
    As many blocks are kept as come nearest to what is wanted, half a block up.

    Args:
        rows, columns: of a block. remainder: ``"dense"`` leaves what whole blocks do not cover, at the end of an
            axis, dense; by default such an axis is refused.

    Raises:
        PlanError: a size is not positive; on use: blocks do not divide an axis, or too few are wholly alive.

    Example:
        >>> block(1, 2).select(torch.tensor([[3.0, 0.0, 2.0, 2.0]]), 2, None)
        tensor([[False, False,  True,  True]])
    """
    if not (isinstance(rows, int) and isinstance(columns, int) and rows >= 1 and columns >= 1):
        raise PlanError(f"block({rows}, {columns}): expected two whole numbers, at least 1")
    _check_remainder(remainder)
    name, size = f"block({rows},{columns})", rows * columns

    def grid(shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], int]:
        """The matrix, how many blocks it has each way, and how many weights lie outside of them."""
        _axis(shape, 0, name)
        matrix = shape[0], math.prod(shape[1:])
        down, right = _divided(matrix, 0, rows, remainder)[0], _divided(matrix, 1, columns, remainder)[0]
        return matrix, (down, right), math.prod(matrix) - down * right * size

    def count(shape: tuple[int, ...], wanted: int) -> int:
        _, (down, right), rest = grid(shape)
        return rest + size * min(max((2 * (wanted - rest) + size) // (2 * size), 0), down * right)

    def select(scores: Tensor, kept: int, alive: Tensor | None) -> Tensor:
        check_scores(scores)
        _check_count(name, kept, count(tuple(scores.shape), kept))
        matrix, (down, right), rest = grid(tuple(scores.shape))

        def blocks(whole: Tensor) -> Tensor:
            return _blocks(whole.reshape(matrix), (down, rows), (right, columns))

        sums = blocks(scores.detach()).sum((1, 3), dtype=torch.float64)
        lives = None if alive is None else blocks(alive).all(3).all(1)
        for edge in (
            () if alive is None else (alive.reshape(matrix)[down * rows :], alive.reshape(matrix)[:, right * columns :])
        ):
            _check_dense(name, edge)
        mask = torch.ones(matrix, dtype=torch.bool, device=scores.device)
        blocks(mask).copy_(top(sums, (kept - rest) // size, lives)[:, None, :, None])
        return mask.reshape(scores.shape)

    return Pattern(name, count, select, tile=(rows, columns))


def _blocks(matrix: Tensor, down: tuple[int, int], right: tuple[int, int]) -> Tensor:
    """A view of the whole blocks of a matrix, (blocks down, rows, blocks right, columns)."""
    inner = matrix[: math.prod(down), : math.prod(right)]
    view: Tensor = inner.unflatten(1, right).unflatten(0, down)
    return view


def best_of_groups(groups: Tensor, n: int, alive: Tensor | None) -> Tensor:
    """Mask of the ``n`` best along the first axis, ties to the earlier; dead ones are last.

    Small groups are ranked by comparing every two members, which needs no sorting of millions of short rows.
    """
    m = len(groups)
    if alive is not None:
        groups = groups.masked_fill(~alive, -torch.inf)
    if m > 16:
        order = torch.sort(groups, dim=0, descending=True, stable=True).indices[:n]
        return torch.zeros(groups.shape, dtype=torch.bool, device=groups.device).scatter_(0, order, True)
    better = torch.zeros(groups.shape, dtype=torch.int8, device=groups.device)  # how many come before it
    for j in range(m):
        better[j] += m - 1 - j  # all later ones, less those that it comes before
        for i in range(j):
            first = (groups[i] >= groups[j]).view(torch.int8)
            better[j] += first
            better[i] -= first
    out: Tensor = better < n
    return out


def _axis(shape: tuple[int, ...], dim: int, name: str) -> int:
    if not -len(shape) <= dim < len(shape) or len(shape) < 2:
        raise PlanError(
            f"pattern {name} goes along axis {dim} of weights with two axes or more; got shape {tuple(shape)}: leave "
            "this weight out, or choose another axis"
        )
    return dim % len(shape)


def _divided(shape: tuple[int, ...], at: int, size: int, remainder: Remainder) -> tuple[int, int]:
    """How many whole groups of an axis there are, and how many positions are left over."""
    whole, rest = divmod(shape[at], size)
    if rest and remainder is None:
        raise PlanError(
            f"axis {at} of shape {tuple(shape)} has {shape[at]} positions, which groups of {size} do not divide: "
            f'leave the last {rest} dense with remainder="dense", or leave this weight out'
        )
    return whole, rest


def _check_remainder(remainder: Remainder) -> None:
    if remainder not in (None, "dense"):
        raise PlanError(f'remainder is "dense" or None (an axis that is not divided is refused); got {remainder!r}')


def _check_count(name: str, kept: int, can: int) -> None:
    if kept != can:
        raise PlanError(f"pattern {name} cannot keep {kept} weights here; ask `count`: the nearest is {can}")


def _check_dense(name: str, alive: Tensor) -> None:
    if not bool(alive.all()):
        raise PlanError(f"{name}: {int((~alive).sum())} weights of the remainder that stays dense are gone already")
