"""AC/DC: sparse and dense phases take turns, and the last one is sparse (arXiv:2106.12379)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secateur.choose.density import Densities, check_fits, check_sparsity, ranked, select
from secateur.choose.patterns import Pattern, unstructured
from secateur.errors import ArgumentError
from secateur.score.criteria import magnitude
from secateur.score.weights import saliency
from secateur.train.schedule import about
from secateur.train.sparse import Method, Sparse, named


@dataclass(frozen=True)
class Phases:
    """``step -> whether it is trained sparse``, from `alternating`."""

    warmup: int
    compressed: int
    decompressed: int
    final: int

    def __call__(self, step: int) -> bool:
        """Whether this step is trained sparse."""
        turn = (step - self.warmup) % (self.compressed + self.decompressed)
        return step >= self.final or (step >= self.warmup and turn < self.compressed)


def alternating(warmup: int, compressed: int, decompressed: int, final: int) -> Phases:
    """``step -> whether it is trained sparse``: dense, then by turns sparse and dense, sparse from ``final`` on.

    Args:
        warmup: dense steps at first. compressed, decompressed: steps of each phase. final: where the last one begins.

    Raises:
        ArgumentError: a phase has no steps.

    Example:
        >>> "".join("DC"[alternating(2, 3, 2, 9)(step)] for step in range(12))
        'DDCCCDDCCCCC'
    """
    if compressed < 1 or decompressed < 1 or not 0 <= warmup <= final:
        raise ArgumentError(
            f"phases need at least one step each and 0 <= warmup <= final; got warmup={warmup}, "
            f"compressed={compressed}, decompressed={decompressed}, final={final}"
        )

    return Phases(warmup, compressed, decompressed, final)


def acdc(
    sparsity: float, phase: Callable[[int], bool], pattern: Pattern = unstructured, density: Densities = ranked
) -> Method:
    """AC/DC: a magnitude mask at the start of every sparse phase, lifted at its end.

    What a sparse phase masked comes back at zero and without momentum. The last dense phase gives a dense model too.

    Args:
        sparsity: of the sparse phases. phase: step -> whether it is trained sparse, such as `alternating`.
        pattern, density: as in `sc.sparsify`.

    Example:
        >>> acdc(0.9, alternating(100, 50, 50, 400)).name
        'acdc'
    """
    sparsity = check_sparsity(sparsity)

    def compress(run: Sparse) -> None:
        scores = saliency(run.model, magnitude, run.masks.weights)
        run.masks.put(select(scores, sparsity, pattern, density, turned=run.turned))

    def start(run: Sparse) -> None:
        check_fits(run.masks.weights, pattern)
        if phase(0):
            compress(run)

    def after(run: Sparse) -> None:
        was, now = phase(run.step - 1), phase(run.step)
        if now and not was:
            compress(run)
        elif was and not now:
            run.masks.apply_()  # this step's gradient has moved the masked weights and their momentum
            run.masks.quiet_(run.optimizer)
            run.masks.put({n: m.new_ones(m.shape) for n, m in run.masks.masks.items()})

    told = {"sparsity": sparsity, "phase": about(phase), "pattern": pattern.name, "density": named(density)}
    return Method("acdc", start, after=after, about=told)
