"""Sparse from the first step or more so with every update: GMP, and fixed densities whose places move (SET, RigL)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.choose.density import Densities, check_fits, check_sparsity, erk, even, select
from secateur.choose.patterns import Pattern, unstructured
from secateur.choose.select import top
from secateur.digest import digest_of
from secateur.errors import ArgumentError
from secateur.score.criteria import magnitude
from secateur.score.weights import saliency
from secateur.train.names import whole
from secateur.train.schedule import Schedule, about
from secateur.train.sparse import Method, Sparse, named
from secateur.types import Criterion


def gmp(
    schedule: Schedule,
    every: int = 1,
    criterion: Criterion = magnitude,
    pattern: Pattern = unstructured,
    density: Densities = even,
) -> Method:
    """Gradual magnitude pruning: every so many steps the least salient weights go for good (arXiv:1710.01878).

    Args:
        schedule: step -> sparsity, such as `cubic`. every: steps between two updates.
        criterion: one that needs no data. pattern, density: as in `sc.sparsify`.

    Raises:
        ArgumentError: every is no whole number of at least 1, or the criterion needs data.
        PlanError: at the start of the run: the pattern does not fit a weight.

    Example:
        >>> gmp(lambda step: 0.9).name
        'gmp'
    """
    if not isinstance(every, int) or every < 1:
        raise ArgumentError(f"every must be a whole number of steps, at least 1, got {every!r}")
    if not isinstance(criterion, Criterion) or criterion.weights is None or criterion.weights.stat is not None:
        raise ArgumentError(
            f"gmp scores single weights while it trains, without data, which {getattr(criterion, 'name', criterion)!r} "
            "does not: take one such as sc.magnitude, or sc.sparsify with batches"
        )

    def start(run: Sparse) -> None:
        check_fits(run.masks.weights, pattern)
        update(run)

    def update(run: Sparse) -> None:
        sparsity = schedule(run.step)
        if run.step % every or sparsity <= (schedule(run.step - every) if run.step else 0.0):
            return
        alive = run.masks.masks
        scores = saliency(run.model, criterion, run.masks.weights)
        run.masks.put(select(scores, sparsity, pattern, density, alive, run.turned))

    told = {"schedule": about(schedule), "criterion": criterion.name, "pattern": pattern.name, "every": every}
    return Method("gmp", start, after=update, about={**told, "density": named(density)})


def fixed(masks: Mapping[str, Tensor]) -> Method:
    """These masks from the first step to the last.

    Args:
        masks: name -> bool tensor, True keeps; weights without one stay dense.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> Sparse(net, optimizer, fixed({"weight": torch.eye(2, dtype=torch.bool)})).masks.sparsity
        0.5
    """
    told = {"masks": digest_of(sorted((name, mask.cpu()) for name, mask in masks.items()))}
    return Method("fixed", lambda run: run.masks.put({**run.masks.masks, **masks}), about=told)


def static(sparsity: float, density: Densities = erk, seed: int = 0) -> Method:
    """Random masks from the first step to the last: the control that SET and RigL must beat.

    Args:
        sparsity: the fraction removed of all weights together. density: how much of it where.
        seed: of the places.

    Example:
        >>> static(0.9).about["seed"]
        0
    """
    sparsity = check_sparsity(sparsity)
    told = {"sparsity": sparsity, "density": named(density), "seed": seed}
    return Method("static", lambda run: _start(run, sparsity, density, seed), about=told)


def cosine(fraction: float, end: int) -> Callable[[int], float]:
    """``f(t) = (fraction / 2) (1 + cos(pi t / end))``: how much moves in an update, and 0 from ``end`` on.

    Example:
        >>> [round(cosine(0.3, 4)(t), 3) for t in range(6)]
        [0.3, 0.256, 0.15, 0.044, 0.0, 0.0]
    """
    return lambda step: 0.5 * fraction * (1 + math.cos(math.pi * min(step, end) / end))


def rigl(
    sparsity: float, end: int, every: int = 100, fraction: float = 0.3, density: Densities = erk, seed: int = 0
) -> Method:
    """RigL: the smallest weights give way to those whose gradient is largest (arXiv:1911.11134).

    From random masks of fixed density. At every update ``k = floor(f(t) nnz)`` of each tensor's weights move, `f` as in
    `cosine`: the k smallest ``|w|`` are dropped, the k largest ``|dL/dw|`` among all that are then not active are
    grown. One that was just dropped may come back and keeps its value; the others start at zero, without momentum. An
    update takes the place of that step for the masked weights; nnz of every tensor stays as it was.

    Args:
        sparsity: the fraction removed of all weights together. end: step from which nothing moves any more; the paper
            takes three quarters of the training. every: steps between two updates. fraction: of the active weights
            that move at first. density: how much is kept where. seed: of the first masks.

    Example:
        >>> rigl(0.9, end=750).name
        'rigl'
    """
    return _dynamic("rigl", lambda run: _gradients(run), sparsity, end, every, fraction, density, seed)


def sparse_evolution(
    sparsity: float, end: int, every: int = 100, fraction: float = 0.3, density: Densities = erk, seed: int = 0
) -> Method:
    """SET: the smallest weights give way to random ones (arXiv:1707.04780); all else as in `rigl`.

    The random generator's state is kept in the run's memory.

    Example:
        >>> sparse_evolution(0.9, end=750).name
        'set'
    """
    return _dynamic("set", _draw, sparsity, end, every, fraction, density, seed)


def regrown(weight: Tensor, growth: Tensor, mask: Tensor, k: int) -> Tensor:
    """The mask in which the ``k`` smallest active weights gave way to the ``k`` of largest ``growth``.

    Args:
        weight, growth, mask: of one shape; the mask is bool, True is active. k: at most the active ones.

    Example:
        >>> w, g = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 1.0, 2.0])
        >>> regrown(w, g, torch.tensor([True, True, False, False]), 1)
        tensor([False,  True, False,  True])
    """
    kept = top(weight.detach().abs(), int(mask.sum()) - k, mask)
    return kept | top(growth, k, ~kept)


def _dynamic(
    name: str,
    growth: Callable[[Sparse], Mapping[str, Tensor]],
    sparsity: float,
    end: int,
    every: int,
    fraction: float,
    density: Densities,
    seed: int,
) -> Method:
    sparsity = check_sparsity(sparsity)
    if not (isinstance(end, int) and isinstance(every, int) and end >= 1 and every >= 1 and 0 <= fraction <= 1):
        raise ArgumentError(
            f"{name} needs whole numbers end >= 1 and every >= 1, and fraction in [0, 1]; got end={end}, "
            f"every={every}, fraction={fraction}"
        )
    moving = cosine(fraction, end)

    def before(run: Sparse) -> bool:
        if not 0 < run.step < end or run.step % every:
            return False
        masks = dict(run.masks.masks)
        for n, g in growth(run).items():
            k = math.floor(moving(run.step) * int(masks[n].sum()))
            masks[n] = regrown(whole(run.masks.weights[n].detach()), g, masks[n], k)
        run.masks.put(masks)
        return True

    settings = {"sparsity": sparsity, "end": end, "every": every, "fraction": fraction, "seed": seed}
    told = {**settings, "density": named(density)}
    return Method(name, lambda run: _start(run, sparsity, density, seed), before, about=told)


def _start(run: Sparse, sparsity: float, density: Densities, seed: int) -> None:
    """Random masks; the generator goes on from here."""
    run.memory["generator"] = torch.Generator().manual_seed(seed).get_state()
    run.masks.put(select(_draw(run), sparsity, unstructured, density))


def _draw(run: Sparse) -> dict[str, Tensor]:
    """A random number for every weight, the same on every device and in every process."""
    generator = torch.Generator()
    generator.set_state(run.memory["generator"].cpu())
    draws = {
        n: torch.rand(w.shape, generator=generator, dtype=torch.float32).to(w.device)
        for n, w in run.masks.weights.items()
    }
    run.memory["generator"] = generator.get_state()
    return draws


def _gradients(run: Sparse) -> dict[str, Tensor]:
    """Of every weight that took part in the step."""
    return {n: whole(w.grad).abs() for n, w in run.masks.weights.items() if w.grad is not None}
