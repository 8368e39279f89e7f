"""Patterns: which weights may go together. Each says how many can be kept, and keeps just so many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateur.choose.select import top


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity.

    Attributes:
        name: as it stands in reports and files, such as ``unstructured`` or ``2:4``.
        count: ``(shape, wanted) -> kept``: the nearest count of weights that the pattern can keep of such a tensor.
        select: ``(scores, kept, alive) -> bool mask``: exactly ``kept``, the best by score; ``alive`` (bool or None)
            are the only ones that may be kept. Ties go to the earlier position.
        density: the fraction that the pattern itself keeps, or None where any can be asked for.
    """

    name: str
    count: Callable[[tuple[int, ...], int], int]
    select: Callable[[Tensor, int, Tensor | None], Tensor]
    density: float | None = None


unstructured = Pattern("unstructured", lambda shape, wanted: wanted, top)
"""Any weight of a tensor."""
