"""How sparse each weight tensor becomes when all of them together have a given sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern, unstructured
from secateur.choose.select import check_scores, top_counts
from secateur.errors import ArgumentError, PlanError
from secateur.score.weigh_plain import lamp_scores

Densities: TypeAlias = Callable[[Mapping[str, Tensor], float], Mapping[str, int]]
"""``(saliency by weight, sparsity of all together) -> weights kept of each``, before the pattern rounds them.

Where some weights are gone already, `select` hands their saliency over as one value below all others.
"""


def check_sparsity(sparsity: float) -> float:
    """The fraction removed, in [0, 1).

    Raises:
        ArgumentError: it is not.
    """
    given: Any = sparsity
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= sparsity < 1:
        raise ArgumentError(f"sparsity is the fraction removed, in [0, 1); got {sparsity!r} (0.9 removes nine in ten)")
    return float(sparsity)


def even(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """The same sparsity everywhere: ``n - round(sparsity n)`` of every tensor."""
    return {name: s.numel() - round(sparsity * s.numel()) for name, s in saliency.items()}


def ranked(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """One ranking of all weights: ``n - round(sparsity n)`` of all together."""
    counts = top_counts(list(saliency.values()), total_kept(saliency, sparsity))
    return dict(zip(saliency, counts, strict=True))


def uniform_plus(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """The first convolution stays dense, the last fully connected layer keeps a fifth, the rest is even.

    The total is ``n - round(sparsity n)``. First and last are told by order and shape: a kernel has more than two axes.

    Raises:
        PlanError: what has to stay is more than may be kept.

    The rule of arXiv:1902.09574, "uniform+".

    Example:
        >>> net = {"conv": torch.ones(4, 3, 3, 3), "mid": torch.ones(10, 36), "head": torch.ones(10, 10)}
        >>> uniform_plus(net, 0.5)
        {'conv': 108, 'mid': 138, 'head': 38}
    """
    total, sizes = total_kept(saliency, sparsity), {n: s.numel() for n, s in saliency.items()}
    first = next((n for n, s in saliency.items() if s.dim() > 2), None)
    last = next((n for n, s in reversed(list(saliency.items())) if s.dim() == 2), None)
    shares: dict[str, float] = {} if first is None else {first: float(sizes[first])}
    free = [n for n in sizes if n not in shares]
    density = (total - sum(shares.values())) / max(sum(sizes[n] for n in free), 1)
    if last is not None and density < 0.2:
        shares[last] = 0.2 * sizes[last]
        free = [n for n in free if n != last]
        density = (total - sum(shares.values())) / max(sum(sizes[n] for n in free), 1)
    if density < 0:
        most = 1 - sum(shares.values()) / sum(sizes.values())
        parts = [f"{first} whole"] * (first is not None) + [f"a fifth of {last}"] * (last in shares)
        raise PlanError(
            f"uniform_plus keeps {' and '.join(parts)}: {sum(shares.values()):.0f} weights, more than the {total} that "
            f"sparsity {sparsity} leaves. Ask for {most:.3f} at most, or leave that out of the weights"
        )
    return whole_counts({n: shares.get(n, density * size) for n, size in sizes.items()}, sizes, total)


def erk(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """Erdős–Rényi kernel: density ``min(1, ε r)``, ``r = (sum of the shape) / (product of the shape)``.

    A matrix has ``r = (in + out) / (in out)``, a kernel ``(in + out + kh + kw) / (in out kh kw)``. ε follows from the
    total, ``n - round(sparsity n)``: whatever would have to be denser than 1 is dense, and ε is found again.

    arXiv:1911.11134; for matrices the rule of SET, arXiv:1707.04780.

    Example:
        >>> erk({"wide": torch.ones(100, 100), "narrow": torch.ones(10, 10)}, 0.5)
        {'wide': 4950, 'narrow': 100}
    """
    total, sizes = total_kept(saliency, sparsity), {n: s.numel() for n, s in saliency.items()}
    weight = {n: float(sum(s.shape)) for n, s in saliency.items()}  # r times the size
    dense: set[str] = set()
    epsilon = 0.0
    while len(dense) < len(sizes):
        free = [n for n in sizes if n not in dense]
        epsilon = (total - sum(sizes[n] for n in dense)) / sum(weight[n] for n in free)
        over = {n for n in free if epsilon * weight[n] > sizes[n]}
        if not over:
            break
        dense |= over
    shares = {n: float(sizes[n]) if n in dense else epsilon * weight[n] for n in sizes}
    return whole_counts(shares, sizes, total)


def lamp(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """One ranking by ``w² / Σ v²``, the sum over the weight itself and all that are as large or larger of its tensor.

    The saliency must be like magnitudes: it is what is squared. The largest weight of a tensor has score 1, so none
    is emptied while there are as many weights kept as tensors. Scores only say how many of a tensor are kept:
    within it their order is that of the saliency. Memory: five times the saliency in float64, of one tensor, and
    once of all.

    Raises:
        PlanError: a saliency is not finite.

    arXiv:2010.07611.

    Example:
        >>> lamp({"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[0.2, 0.4, 0.0]])}, 0.4)
        {'a': 2, 'b': 1}
    """
    scores = [_lamp_scores(s) for s in saliency.values()]
    return dict(zip(saliency, top_counts(scores, total_kept(saliency, sparsity)), strict=True))


def _lamp_scores(magnitudes: Tensor) -> Tensor:
    """Scores of a tensor, float64 (entries,); 1 of the largest even if it is 0, -1 of what is below 0: that is gone."""
    check_scores(magnitudes)
    w = magnitudes.detach().reshape(-1)
    if not w.numel():
        return w.double()
    scores = lamp_scores(w.clamp_min(0))
    scores[w.argmax()] = 1.0
    return scores.masked_fill_(w < 0, -1.0)


def block_of(name: str) -> str:
    """The block that a weight is in: its path up to the first number, or else its module.

    Example:
        >>> block_of("model.layers.3.mlp.up.weight"), block_of("features.0.weight"), block_of("head.weight")
        ('model.layers.3', 'features.0', 'head')
    """
    parts = name.split(".")
    numbers = [i for i, p in enumerate(parts) if p.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def owl(lam: float = 0.08, m: float = 5.0, blocks: Callable[[str], str] = block_of) -> Densities:
    """The more outliers a block has, the denser it is: all stay within a band of width ``2 lam``.

    ``D = 100 #{A > m mean(A)} / #A`` over all saliencies A of a block (those of ``sc.wanda`` in the paper), and
    ``density = 2 lam (D - min D) / (max D - min D) + shift``. The shift makes the total ``n - round(sparsity n)``: the
    mean is weighted by the blocks' sizes, which the paper takes to be equal. Densities that would leave [0, 1]
    are held there and the shift makes up for it. Where all blocks have the same D, all have the same density.

    Args:
        lam: half the width of the band. m: how many means an outlier exceeds. blocks: name of a weight -> its block.

    Raises:
        ArgumentError: ``lam`` or ``m`` is negative.
        PlanError: a saliency is not finite.

    arXiv:2310.05175.

    Example:
        >>> a, b = torch.ones(10, 10), torch.ones(10, 10)
        >>> a[0, 0] = 100.0
        >>> owl()({"layers.0.w": a, "layers.1.w": b}, 0.5)
        {'layers.0.w': 58, 'layers.1.w': 42}
    """
    if not (0 <= lam <= 0.5 and m > 0):
        raise ArgumentError(f"owl takes lam in [0, 0.5] and m above 0; got lam={lam!r}, m={m!r}")

    return Owl(lam, m, blocks)


@dataclass(frozen=True)
class Owl:
    """What `owl` gives: its settings tell it from another."""

    lam: float
    m: float
    blocks: Callable[[str], str]

    def __repr__(self) -> str:
        blocks = getattr(self.blocks, "__qualname__", None) or type(self.blocks).__qualname__  # no address
        return f"owl({self.lam}, {self.m}, {blocks})"

    def __call__(self, saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Weights kept of each."""
        total, sizes = total_kept(saliency, sparsity), {n: s.numel() for n, s in saliency.items()}
        members: dict[str, list[str]] = {}
        for name in saliency:
            members.setdefault(self.blocks(name), []).append(name)
        outliers = {b: outliers_of([saliency[n] for n in names], self.m) for b, names in members.items()}
        held = owl_densities(
            outliers, {b: sum(sizes[n] for n in names) for b, names in members.items()}, total, self.lam
        )
        return whole_counts({n: held[self.blocks(n)] * size for n, size in sizes.items()}, sizes, total)


def owl_densities(outliers: Mapping[str, float], sizes: Mapping[str, int], total: int, lam: float) -> dict[str, float]:
    """Densities of blocks by their outliers, in a band of width ``2 lam``, such that ``total`` weights stay.

    Args:
        outliers: block -> per cent, from `outliers_of`. sizes: block -> its weights.

    Example:
        >>> {b: round(d, 2) for b, d in owl_densities({"a": 1.0, "b": 0.0}, {"a": 10, "b": 10}, 10, 0.08).items()}
        {'a': 0.58, 'b': 0.42}
    """
    low, high = min(outliers.values()), max(outliers.values())
    band = {b: 2 * lam * (d - low) / (high - low) if high > low else 0.0 for b, d in outliers.items()}
    return _shifted(band, sizes, total)


def outliers_of(parts: list[Tensor], m: float) -> float:
    """Per cent of all entries that exceed ``m`` times their mean; what is below 0 is gone."""
    for s in parts:
        check_scores(s)
    size = sum(s.numel() for s in parts)
    mean = sum(float(s.clamp_min(0).sum(dtype=torch.float64)) for s in parts) / size
    return 100 * sum(int((s.double() > m * mean).sum()) for s in parts) / size


def _shifted(band: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, float]:
    """The same shift of all, such that the total is right; held in [0, 1]."""

    def moved(shift: float) -> dict[str, float]:
        return {b: min(max(x + shift, 0.0), 1.0) for b, x in band.items()}

    shift = (total - sum(band[b] * n for b, n in sizes.items())) / sum(sizes.values())
    if all(0 <= x + shift <= 1 for x in band.values()):
        return moved(shift)
    low, high = -1.0, 1.0
    for _ in range(100):
        shift = (low + high) / 2
        short = sum(x * sizes[b] for b, x in moved(shift).items()) < total
        low, high = (shift, high) if short else (low, shift)
    return moved(high)


def total_kept(saliency: Mapping[str, Tensor], sparsity: float) -> int:
    """How many of all weights a sparsity leaves: ``n - round(sparsity n)``."""
    total = sum(s.numel() for s in saliency.values())
    return total - round(check_sparsity(sparsity) * total)


def whole_counts(shares: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers nearest to shares of a total, which they sum to: the largest remainders are rounded up.

    Example:
        >>> whole_counts({"a": 1.5, "b": 1.5, "c": 2.0}, {"a": 3, "b": 3, "c": 3}, 5)
        {'a': 2, 'b': 1, 'c': 2}
    """
    counts = {n: min(max(math.floor(x + 1e-6), 0), sizes[n]) for n, x in shares.items()}
    order = sorted(counts, key=lambda n: counts[n] - shares[n])
    left = total - sum(counts.values())
    while left:
        step = 1 if left > 0 else -1
        able = [n for n in order[::step] if 0 <= counts[n] + step <= sizes[n]]
        if not able:
            raise PlanError(f"cannot keep {total} of {sum(sizes.values())} weights")
        for n in able[: abs(left)]:
            counts[n] += step
            left -= step
    return counts


def select(
    saliency: Mapping[str, Tensor],
    sparsity: float,
    pattern: Pattern = unstructured,
    density: Densities = even,
    alive: Mapping[str, Tensor] | None = None,
    turned: Collection[str] = (),
) -> dict[str, Tensor]:
    """Masks, True keeps: exact counts, ties by position.

    Args:
        saliency: from `sc.saliency`. sparsity: the fraction removed of all these weights together.
        pattern: which weights go together. density: how much goes where; not asked where the pattern fixes it.
        alive: masks of what is left; what is gone stays gone.
        turned: names of weights that lie (inputs, outputs), from `turned`: patterns see them the other way.

    Raises:
        ArgumentError: the sparsity is not in [0, 1).
        PlanError: of a weight, named, more would be kept than is alive, the pattern does not fit its shape, or its
            saliency is not finite.

    Example:
        >>> masks = select({"a": torch.tensor([[1.0, 9.0], [8.0, 7.0]])}, 0.5)
        >>> masks["a"]
        tensor([[False,  True],
                [ True, False]])
    """
    check_sparsity(sparsity)
    if alive is not None and (lacking := [n for n in saliency if n not in alive]):
        raise PlanError(f"alive has no masks for {lacking[:5]}; give one for every weight that is scored")
    if pattern.density is None:
        wanted = density(saliency if alive is None else _buried(saliency, alive), sparsity)
    else:
        wanted = {n: round(pattern.density * s.numel()) for n, s in saliency.items()}
    _check_counts(wanted, saliency)
    if alive is not None and pattern.density is None:
        wanted = _within(wanted, {n: int(alive[n].sum()) for n in saliency})
    masks = {}
    for name, s in saliency.items():
        if not 0 <= wanted[name] <= s.numel():
            raise PlanError(f"{name}: the densities keep {wanted[name]} of its {s.numel()} weights")
        mine = None if alive is None else alive[name]
        if name in turned:
            s, mine = s.transpose(0, 1).contiguous(), None if mine is None else mine.transpose(0, 1).contiguous()
        try:
            mask = pattern.select(s, pattern.count(tuple(s.shape), wanted[name]), mine)
            masks[name] = mask.transpose(0, 1).contiguous() if name in turned else mask
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error
    return masks


def _check_counts(wanted: Any, saliency: Mapping[str, Tensor]) -> None:
    whole = isinstance(wanted, Mapping) and set(wanted) == set(saliency)
    if not whole or not all(isinstance(k, Integral) for k in wanted.values()):
        raise PlanError(
            f"the densities gave {wanted!r}; expected a whole number for each of {list(saliency)[:5]}: a function that "
            "makes one is called first, such as sc.owl()"
        )


def _within(wanted: Mapping[str, int], alive: Mapping[str, int]) -> Mapping[str, int]:
    """The same total with no more than is alive of each: what is over goes to the others, by their room."""
    over = sum(max(wanted[n] - alive[n], 0) for n in wanted)
    room = {n: max(alive[n] - wanted[n], 0) for n in wanted}
    if not over or sum(room.values()) < over:
        return wanted
    part = over / sum(room.values())
    shares = {n: min(wanted[n], alive[n]) + part * room[n] for n in wanted}
    return whole_counts(shares, alive, sum(wanted.values()))


def check_fits(shapes: Mapping[str, Tensor], pattern: Pattern) -> None:
    """Refuse a pattern that some of these tensors cannot have, before anything is ranked by it.

    Raises:
        PlanError: names the tensor.
    """
    for name, t in shapes.items():
        try:
            pattern.count(tuple(t.shape), t.numel())
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error


def _buried(saliency: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What is gone has a saliency below all that is alive, and below 0."""
    gone = {n for n in saliency if not bool(alive[n].all())}
    lowest = [float(s[alive[n]].min()) for n, s in saliency.items() if bool(alive[n].any())]
    below = min([0.0, *lowest]) * 2 - 1
    return {n: s.masked_fill(~alive[n], below) if n in gone else s for n, s in saliency.items()}
