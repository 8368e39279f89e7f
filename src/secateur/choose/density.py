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


def erk(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """Erdős–Rényi kernels: density ``min(1, eps sum(shape) / prod(shape))``, one ``eps`` for all (arXiv:1911.11134).

    Of a matrix this is ``eps (n_in + n_out) / (n_in n_out)`` (SET, arXiv:1707.04780).

    Example:
        >>> import torch
        >>> erk({"a": torch.zeros(10, 10), "b": torch.zeros(40, 40)}, 0.5)
        {'a': 100, 'b': 750}
    """
    size = {n: s.numel() for n, s in saliency.items()}
    shape_sum = {n: float(sum(s.shape)) for n, s in saliency.items()}  # density times size, over eps
    left = sum(size.values()) - round(sparsity * sum(size.values()))
    counts: dict[str, int] = {}
    while open_ := [n for n in size if n not in counts]:
        budget = left - sum(counts.values())
        eps = budget / sum(shape_sum[n] for n in open_)
        largest = max(shape_sum[n] / size[n] for n in open_)
        if eps * largest <= 1:
            counts |= _shared({n: eps * shape_sum[n] for n in open_}, budget, size)
            break
        counts |= {n: size[n] for n in open_ if shape_sum[n] / size[n] == largest}
    return {n: counts[n] for n in size}


def _shared(wanted: Mapping[str, float], total: int, size: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers next to these that sum to the total: the largest remainders are rounded up."""
    counts = {n: min(int(w), size[n]) for n, w in wanted.items()}
    by_remainder = sorted(wanted, key=lambda n: counts[n] - wanted[n])
    for n in by_remainder[: total - sum(counts.values())]:
        counts[n] += 1
    return counts
