"""Masks and values found together by splitting: one copy fits the data, one is sparse, and they are made to agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.choose.patterns import Pattern
from secateur.errors import ArgumentError
from secateur.solve.gram import Gram, precise
from secateur.solve.solver import Solved, Solver, loosened


@dataclass(frozen=True, eq=False)
class Scaled:
    """A layer in units in which each input has a second moment of 1: a magnitude there is a Wanda score.

    Attributes:
        weight: ``W_ij n_j``, ``n_j = sqrt(E x_j²)``, (outputs, d); zero for dead inputs.
        second: ``G = E x_i x_j / (n_i n_j) + damping I``. right: ``E y x_j / n_j + damping W n``, what G is to yield.
        norm: ``n``, 1 for dead inputs.
    """

    weight: Tensor
    second: Tensor
    right: Tensor
    norm: Tensor

    @classmethod
    def of(cls, weight: Tensor, gram: Gram, damping: float) -> Scaled:
        """The moments in the weight's precision; dead inputs stand for themselves alone."""
        norm = torch.where(gram.dead, 1.0, gram.second.diagonal().to(weight.dtype).clamp_min(0)).sqrt()
        second = gram.once(("scaled", damping, weight.dtype), lambda: _scaled(gram, norm, damping))
        scaled = (weight * norm).masked_fill_(gram.dead, 0.0)
        right = (gram.moved(weight) / norm).masked_fill_(gram.dead, 0.0) + damping * scaled
        return cls(scaled, second, right, norm)


def _scaled(gram: Gram, norm: Tensor, damping: float) -> Tensor:
    second = gram.second.to(norm.dtype) / norm / norm[:, None]
    second.diagonal().fill_(1.0 + damping)
    return second


def admm_with(
    iterations: int = 20, ramp: int = 15, rho: float = 1.0, damping: float = 0.1, start: Solver | None = None
) -> Solver:
    """Alternating directions with a mask that grows sparse as it goes (arXiv:2401.02938).

    In units of `Scaled`: ``Z = (W + U) ⊙ M``, ``U += W - Z``, ``W = (G + ρI)⁻¹ (G W_0 + ρ (Z - U))``; for the first
    ``ramp`` steps ``M`` keeps the largest ``|W + U|`` at the cubic density ``1 - s + s (1 - t/ramp)³``. The result is
    ``(W + U) ⊙ M`` in the original units. The damping pulls towards the dense weight, in proportion to ``E x_j²``.

    Args:
        iterations: in all. ramp: of them, those that choose the mask. rho: weight of agreement.
        damping: relative to each input's second moment. start: a solver whose mask is kept instead of choosing one.

    Raises:
        ArgumentError: a count below 1, ``rho`` not above 0, or a damping below 0.

    Time: outputs * d² multiplications a step, and an inverse, d³, which layers of the same input share.
    Memory: five matrices of the weight's shape, three of the moment's.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # the second input says what the first does
        >>> how = admm_with(iterations=100, damping=1e-4)
        >>> how(torch.tensor([[2.0, 1.0]]), Gram.of(x), unstructured, 1).weight.round(decimals=2)
        tensor([[3., 0.]])
    """
    if iterations < 1 or ramp < 1 or not 0 < rho < float("inf") or not 0 <= damping < float("inf"):
        raise ArgumentError(
            f"ADMM takes iterations >= 1, ramp >= 1, rho > 0, damping >= 0; got {iterations}, {ramp}, {rho}, {damping}"
        )

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        at = Scaled.of(weight, gram, damping)
        inverse = gram.once(("admm", damping, rho, weight.dtype), lambda: _inverse(at.second, rho))
        fixed = None if start is None else start.solve(weight, gram, pattern, kept, alive).mask
        w, u = at.weight.clone(), torch.zeros_like(weight)
        pull = at.right @ inverse
        mask = fixed
        for step in range(1, iterations + 1):
            u += w  # now W + U
            if fixed is None and step <= ramp:
                part = 1 - (1 - step / ramp) ** 3
                mask = _on_the_way(u.abs(), pattern, kept, part, alive)
            assert mask is not None
            z = u * mask
            u -= z
            w = torch.addmm(pull, z - u, inverse, alpha=rho)
        if fixed is None and iterations < ramp:
            mask = pattern.select((w + u).abs(), kept, alive)
        assert mask is not None
        return Solved(((w + u) / at.norm).masked_fill_(~mask, 0.0), mask)

    return Solver("admm" if start is None else f"{start.name}+admm", solve)


def _inverse(second: Tensor, rho: float) -> Tensor:
    shifted = precise(second).clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(second.dtype)


def _on_the_way(scores: Tensor, pattern: Pattern, kept: int, part: float, alive: Tensor | None) -> Tensor:
    """A mask between dense and what is asked for; what is dead is not in it."""
    if part == 1:
        return pattern.select(scores, kept, alive)
    now, count = loosened(pattern, tuple(scores.shape), kept, part)
    mask = now.select(scores if alive is None else scores * alive, count, None)
    return mask if alive is None else mask & alive


def alps_with(damping: float = 0.1, rho: float = 0.1, every: int = 3, limit: int = 300, polish: int = 10) -> Solver:
    """Alternating directions until the support stands still, then conjugate gradients on it (ALPS, arXiv:2406.07831).

    In units of `Scaled`: ``W = (G + ρI)⁻¹ (G W_0 - V + ρD)``, ``D`` the best ``kept`` of ``W + V/ρ``,
    ``V += ρ (W - D)``. Every few steps ``ρ`` grows by 1.3, 1.2 or 1.1 as the support moved by a tenth of what is kept,
    half a percent, or less; it ends when it did not move. ``G`` is decomposed once, so that a new ``ρ`` is free.

    Args:
        damping: pulls towards the dense weight, relative to each input's second moment. rho: the first ``ρ``.
        every: steps between changes of ``ρ``. limit: steps at most. polish: steps of conjugate gradients.

    Raises:
        ArgumentError: a count below 1 (``polish`` below 0), ``rho`` not above 0, or a damping below 0.

    Time: 2 outputs * d² multiplications a step, and an eigendecomposition, which layers of the same input share.
    Memory: six matrices of the weight's shape, three of the moment's.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # the second input says what the first does
        >>> alps_with(damping=1e-4)(torch.tensor([[2.0, 1.0]]), Gram.of(x), unstructured, 1).weight.round(decimals=2)
        tensor([[3., 0.]])
    """
    if every < 1 or limit < 1 or polish < 0 or not 0 < rho < float("inf") or not 0 <= damping < float("inf"):
        raise ArgumentError(
            f"ALPS takes every >= 1, limit >= 1, polish >= 0, rho > 0, damping >= 0; "
            f"got {every}, {limit}, {polish}, {rho}, {damping}"
        )

    def solve(weight: Tensor, gram: Gram, pattern: Pattern, kept: int, alive: Tensor | None) -> Solved:
        at = Scaled.of(weight, gram, damping)
        values, vectors = gram.once(("alps", damping, weight.dtype), lambda: _decomposed(at.second))
        mask = pattern.select(at.weight.abs(), kept, alive)
        d, dual, strength = at.weight * mask, torch.zeros_like(weight), rho
        before, moved = mask, mask
        for step in range(1, limit + 1):
            right = (at.right - dual).add_(d, alpha=strength)
            w = ((right @ vectors) / (values + strength)) @ vectors.T
            d = w + dual / strength
            mask = pattern.select(d.abs(), kept, alive)
            d.masked_fill_(~mask, 0.0)
            dual.add_(w - d, alpha=strength)
            if step % every == 0:
                moved = before ^ mask
                changed = int(moved.sum())
                if not changed:
                    break
                strength *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
                before = mask
        return Solved(conjugate(at, d, mask, polish) / at.norm, mask)

    return Solver("alps", solve)


def _decomposed(second: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(precise(second))
    return values.to(second.dtype), vectors.to(second.dtype)


def conjugate(at: Scaled, start: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Conjugate gradients on a support, every row on its own; ``G`` has an even diagonal: no preconditioner is left.

    Args:
        at: the layer. start: values, zero off the mask. mask: the support. steps: each lowers the loss of every row.
    """
    x = start.clone()
    residual = (at.right - x @ at.second).masked_fill_(~mask, 0.0)
    along, energy = residual.clone(), residual.square().sum(1, keepdim=True)
    floor = energy * torch.finfo(x.dtype).eps ** 2  # a row that is solved stands still
    for _ in range(steps):
        image = (along @ at.second).masked_fill_(~mask, 0.0)
        bend = (along * image).sum(1, keepdim=True)
        stride = torch.where((bend > 0) & (energy > floor), energy / torch.where(bend > 0, bend, 1.0), 0.0)
        x += stride * along
        residual -= stride * image
        new = residual.square().sum(1, keepdim=True)
        along = residual + torch.where(energy > 0, new / torch.where(energy > 0, energy, 1.0), 0.0) * along
        energy = new
    return x


admm = admm_with()
"""`admm_with` its defaults."""

alps = alps_with()
"""`alps_with` its defaults."""
