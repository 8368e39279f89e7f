"""DSnoT: pruned weights come back for kept ones while that brings the mean output nearer (arXiv:2310.08915)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern, unstructured
from secateur.errors import ArgumentError, PlanError
from secateur.solve.gram import Gram
from secateur.solve.scores import wanda_mask
from secateur.solve.solver import Solved, Solver, columnwise


def dsnot_with(start: Solver = wanda_mask, cycles: int = 50, tolerance: float = 0.1) -> Solver:
    """Swap weights in the rows of another solver's mask; values stay.

    A row's expected error is ``δ = sum of W_j E x_j`` over what is pruned. While ``|δ|`` is above the tolerance, the
    pruned weight whose ``W_j E x_j / Var x_j`` lowers ``|δ|`` most comes back, and the kept weight of the smallest
    Wanda score goes whose loss lowers ``|δ|`` too; of n:m in the same group. A swap that would change the sign of
    ``δ`` ends the row. Every row keeps its count.

    Args:
        start: whose mask and values; its values are those that are swapped in (dense ones where it gives zero).
        cycles: swaps a row at most. tolerance: in units of the output.

    Raises:
        ArgumentError: no cycle, or a tolerance below 0.
        PlanError: on use: swaps of single weights break the pattern, as of blocks.

    Time: cycles * outputs * d. Memory: six matrices of the weight's shape.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> gram = Gram(torch.eye(4) * 4, torch.tensor([1.0, 1.0, 1.0, -1.0]), 8)
        >>> w = torch.tensor([[1.5, 1.5, 1.0, 2.0]])
        >>> wanda_mask(w, gram, unstructured, 1).mask, dsnot_with()(w, gram, unstructured, 1).mask
        (tensor([[False, False, False,  True]]), tensor([[ True, False, False, False]]))
    """
    if cycles < 1 or not 0 <= tolerance < float("inf"):
        raise ArgumentError(f"DSnoT takes cycles >= 1 and a tolerance >= 0; got {cycles}, {tolerance}")

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        group = columnwise(pattern)
        if pattern.window is not None and group is None:
            raise PlanError(f"DSnoT swaps within an output row; the groups of {pattern.name} go along another axis")
        first = start.solve(weight, gram, pattern, kept, alive)
        values = torch.where(first.mask, first.weight, weight)
        mask = swapped(values, gram, first.mask, alive, group and group[1], cycles, tolerance)
        if pattern is not unstructured and not torch.equal(pattern.select(mask.to(weight.dtype), kept, alive), mask):
            raise PlanError(
                f"DSnoT swaps single weights, which breaks pattern {pattern.name}: use per_row, n:m or none"
            )
        return Solved(values.masked_fill(~mask, 0.0), mask)

    return Solver("dsnot" if start is wanda_mask else f"{start.name}+dsnot", solve, start.norms)


def swapped(
    weight: Tensor,
    gram: Gram,
    mask: Tensor,
    alive: Tensor | None = None,
    group: int | None = None,
    cycles: int = 50,
    tolerance: float = 0.1,
) -> Tensor:
    """The mask after the swaps of `dsnot_with`; ``group``: the m of n:m."""
    mean, square = gram.mean.to(weight.dtype), gram.square.to(weight.dtype)
    variance = (square - mean.square()).clamp_min(0)
    effect = weight * mean  # what a weight adds to the mean output
    gain = effect / torch.where(variance > 0, variance, 1.0)
    score = weight.abs() * square.sqrt()
    mask, delta = mask.clone(), effect.masked_fill(mask, 0.0).sum(1)
    rows = torch.arange(len(weight), device=weight.device)
    for _ in range(cycles):
        rows = rows[delta[rows].abs() > tolerance]
        if not len(rows):
            break
        sign = delta[rows].sign()[:, None]
        m = mask[rows]
        helps = effect[rows] * sign
        goes = m & (helps < 0)
        comes = ~m & (helps > 0)
        if alive is not None:
            comes &= alive[rows]
        if group is not None:
            comes &= _in_groups(goes, group)
        into = (gain[rows] * sign).masked_fill(~comes, -torch.inf).argmax(1)
        if group is not None:
            goes = goes & (torch.arange(m.shape[1], device=m.device) // group == (into // group)[:, None])
        out = score[rows].masked_fill(~goes, torch.inf).argmin(1)
        at = torch.arange(len(rows), device=rows.device)
        after = delta[rows] - effect[rows, into] + effect[rows, out]
        swap = comes[at, into] & goes[at, out] & (after * sign[:, 0] >= 0)
        rows, into, out = rows[swap], into[swap], out[swap]
        mask[rows, into] = True
        mask[rows, out] = False
        delta[rows] = after[swap]
    return mask


def _in_groups(some: Tensor, m: int) -> Tensor:
    """Where a group of ``m`` columns has any; a last, incomplete group counts as one."""
    padded = torch.nn.functional.pad(some, (0, -some.shape[1] % m))
    any_of: Tensor = padded.unflatten(1, (-1, m)).any(2, keepdim=True).expand(-1, -1, m)
    return any_of.flatten(1).narrow(1, 0, some.shape[1])


dsnot = dsnot_with()
"""`dsnot_with` its defaults: from Wanda's mask."""
