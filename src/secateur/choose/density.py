"""How sparse each weight tensor becomes when all of them together have a given sparsity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from secateur.choose.patterns import Pattern, unstructured
from secateur.choose.select import top_counts
from secateur.errors import ArgumentError

Densities: TypeAlias = Callable[[Mapping[str, Tensor], float], Mapping[str, int]]
"""``(saliency by weight, sparsity of all together) -> weights kept of each``, before the pattern rounds them."""


def check_sparsity(sparsity: float) -> float:
    """The fraction removed, in [0, 1).

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ArgumentError(f"sparsity is the fraction removed, in [0, 1); got {sparsity!r} (0.9 removes nine in ten)")
    return float(sparsity)


def even(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """The same sparsity everywhere: ``n - round(sparsity n)`` of every tensor."""
    return {name: s.numel() - round(sparsity * s.numel()) for name, s in saliency.items()}


def ranked(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """One ranking of all weights."""
    total = sum(s.numel() for s in saliency.values())
    counts = top_counts(list(saliency.values()), total - round(sparsity * total))
    return dict(zip(saliency, counts, strict=True))


def select(
    saliency: Mapping[str, Tensor],
    sparsity: float,
    pattern: Pattern = unstructured,
    density: Densities = even,
    alive: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks, True keeps: exact counts, ties by position.

    Args:
        saliency: from `sc.saliency`. sparsity: the fraction removed of all these weights together.
        pattern: which weights go together. density: how much goes where; not asked where the pattern fixes it.
        alive: masks of what is left; what is gone stays gone.
    """
    check_sparsity(sparsity)
    if pattern.density is None:
        wanted = density(saliency, sparsity)
    else:
        wanted = {n: round(pattern.density * s.numel()) for n, s in saliency.items()}
    masks = {}
    for name, s in saliency.items():
        mine = None if alive is None else alive[name]
        masks[name] = pattern.select(s, pattern.count(tuple(s.shape), wanted[name]), mine)
    return masks
