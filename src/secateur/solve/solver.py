"""A solver: which weights of one linear layer stay, and what value they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern, nm
from secateur.errors import ArgumentError, DataError, PlanError
from secateur.solve.gram import Gram


@dataclass(frozen=True, eq=False)
class Solved:
    """A pruned weight.

    Attributes:
        weight: (outputs, d), zero wherever the mask is False. mask: bool, the same shape, True keeps.
    """

    weight: Tensor
    mask: Tensor


Solve: TypeAlias = Callable[[Tensor, Gram, Pattern, int, Tensor | None], Solved]
"""``(weight, gram, pattern, kept, alive) -> Solved``: exactly ``kept`` in the pattern's shape, all of them alive."""


@dataclass(frozen=True)
class Solver:
    """A method that prunes one weight by what it is fed: a value that is called.

    Attributes:
        name: as it stands in reports. solve: the method; `__call__` checks what it is given first.
        norms: it looks at ``square`` and ``mean`` of the inputs alone, so that `Norms` will do in place of a `Gram`.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> first = Solver("first", lambda w, gram, pattern, kept, alive: Solved(w, w == w))
        >>> first(torch.ones(1, 2), Gram.of(torch.eye(2)), unstructured, 2).mask
        tensor([[True, True]])
    """

    name: str
    solve: Solve
    norms: bool = False

    def __call__(self, weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None = None) -> Solved:
        """Prune.

        Args:
            weight: (outputs, d), float32 or float64. gram: of its inputs. pattern: the shape of the sparsity.
            kept: how many weights stay, a count that the pattern can keep. alive: bool; only these may stay.

        Raises:
            ArgumentError: the weight is not a float32 or float64 matrix of as many columns as there are inputs.
            DataError: the weight has NaN or inf.
            PlanError: the pattern cannot keep so many, or too few are alive.
        """
        shape, of = tuple(weight.shape), f" {gram.name}" if gram.name else ""
        if len(shape) != 2 or weight.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"weight{of} is {weight.dtype} {shape}: give a matrix, weight.float()")
        if shape[1] != len(gram.mean):
            raise ArgumentError(f"weight{of} has shape {shape}; expected {len(gram.mean)} columns, one for each input")
        if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):  # a finite sum has finite terms
            raise DataError(
                f"weight{of} has {int((~weight.isfinite()).sum())} entries that are NaN or inf: mend it first"
            )
        if alive is not None and (tuple(alive.shape) != shape or alive.dtype != torch.bool):
            raise ArgumentError(
                f"the mask of what is alive is {alive.dtype} {tuple(alive.shape)}; expected bool {shape}"
            )
        there = weight.numel() if alive is None else int(alive.sum())
        if pattern.count(shape, kept) != kept or not 0 <= kept <= there:
            near = min(pattern.count(shape, kept), there)
            raise PlanError(f"pattern {pattern.name} cannot keep {kept} of {there} weights{of}: the nearest is {near}")
        with torch.no_grad():
            return self.solve(weight.detach(), gram, pattern, kept, alive)


def columnwise(pattern: Pattern) -> tuple[int, int] | None:
    """``(n, m)`` of a pattern that keeps n of every m inputs that follow each other, else None."""
    if pattern.window is None or pattern.window[2] not in (1, -1):
        return None
    return pattern.window[:2]


def loosened(pattern: Pattern, shape: tuple[int, ...], kept: int, part: float) -> tuple[Pattern, int]:
    """A pattern and a count on the way from dense (``part`` = 0) to ``kept`` (1).

    Example:
        >>> loosened(nm(2, 4), (1, 8), 4, 0.5)[0].name
        '3:4'
    """
    if pattern.window is not None:
        n, m, dim = pattern.window
        now = nm(m - int((m - n) * part), m, dim, remainder="dense")
        return now, now.count(shape, 0)
    total = shape[0] * shape[1]
    return pattern, max(kept, pattern.count(shape, total - int((total - kept) * part)))
