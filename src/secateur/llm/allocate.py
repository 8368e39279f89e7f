"""How many weights each matrix of each block keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from secateur.choose.density import outliers_of, owl_densities
from secateur.choose.patterns import Pattern
from secateur.choose.tables import least_error
from secateur.errors import ArgumentError
from secateur.llm import together
from secateur.llm.live import Live
from secateur.llm.moments import Fed
from secateur.llm.walk import Walk
from secateur.solve.gram import Gram
from secateur.solve.solver import Solver

Densities: TypeAlias = Mapping[str, float]
"""Path of a block -> the fraction of the weights of its matrices that stays."""
Chosen: TypeAlias = Callable[[Live, Mapping[str, Fed]], Mapping[str, Tensor]]
"""Which matrices of a block are pruned: key -> (outputs, inputs)."""


@dataclass(frozen=True, eq=False)
class Task:
    """What an allocation is asked for.

    Attributes:
        walk: makes a new way through the dense model. sparsity: of all blocks together.
        chosen: which matrices are pruned. fed: what is known of their inputs. solver, pattern: how they will be.
    """

    walk: Callable[[], Walk]
    sparsity: float
    chosen: Chosen
    fed: Callable[[Live], Mapping[str, Fed]]
    solver: Solver
    pattern: Pattern


Allocation: TypeAlias = Callable[[Task], Densities]
"""Looks at the dense model, if it wants to, and says how dense each block becomes."""


def uniform(task: Task) -> Densities:
    """The same everywhere; no pass over the data."""
    return {}


def outliers(lam: float = 0.08, m: float = 5.0) -> Allocation:
    """OWL: blocks with more outliers among ``|W_ij| ‖X_j‖`` stay denser, within a band of width ``2 lam``.

    One pass of the dense model. See `secateur.owl`; arXiv:2310.05175.

    Args:
        lam: half the width of the band. m: how many means an outlier exceeds.
    """
    if not (0 <= lam <= 0.5 and m > 0):
        raise ArgumentError(f"OWL takes lam in [0, 0.5] and m above 0; got lam={lam!r}, m={m!r}")

    def allocate(task: Task) -> Densities:
        found: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for live, grams in _dense(task, lambda live: live.with_unreached({**live.norms()})):
            matrices = task.chosen(live, grams)
            saliency = [w.abs() * grams[k].square.sqrt().to(w) for k, w in matrices.items()]
            found[live.path] = outliers_of(saliency, m)
            sizes[live.path] = sum(w.numel() for w in matrices.values())
        total = sum(sizes.values())
        return owl_densities(found, sizes, total - round(task.sparsity * total), lam)

    return allocate


def measured(spread: Sequence[float] = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15), states: int = 4096) -> Allocation:
    """Each block is pruned to several sparsities around the asked one; those of least error in all are taken.

    The error is ``‖f(x) - f'(x)‖² / ‖f(x)‖²`` of the block's outputs on the dense model's inputs, summed over the
    blocks; the choice is exact up to ``states`` steps of the cost (dynamic programming).

    Args:
        spread: differences from the sparsity that are tried; 0 is one of them. states: of the program.

    Time: as much as pruning the model once for every level.
    """
    if 0.0 not in spread:
        raise ArgumentError(f"measured takes a spread with 0 in it, so that the sparsity can be met; got {spread}")

    def allocate(task: Task) -> Densities:
        levels = [s for s in (task.sparsity + d for d in spread) if 0 <= s < 1]
        errors, sizes, paths = [], [], []
        for live, grams in _dense(task, lambda live: live.with_unreached({**task.fed(live)})):
            errors.append(_errors(live, grams, task, levels))
            sizes.append(sum(w.numel() for w in task.chosen(live, grams).values()))
            paths.append(live.path)
        costs = [[(1 - s) * n for s in levels] for n in sizes]
        best = least_error(costs, errors, (1 - task.sparsity) * sum(sizes) * (1 + 1e-9), states)
        return {path: 1 - levels[i] for path, i in zip(paths, best, strict=True)}

    return allocate


def _errors(live: Live, grams: Mapping[str, Fed], task: Task, levels: Sequence[float]) -> list[float]:
    """Relative error of the block's outputs at each level; it is left as it was."""
    matrices = task.chosen(live, grams)
    before = {k: w.clone() for k, w in matrices.items()}
    twin, found = copy.deepcopy(live.module), []
    energy = _everywhere(sum(float(live.run(i).double().square().sum()) for i in range(len(live))))
    for s in levels:
        for key, w in before.items():
            kept = task.pattern.count(tuple(w.shape), w.numel() - round(s * w.numel()))
            matrices[key].copy_(task.solver(w.float().contiguous(), cast(Gram, grams[key]), task.pattern, kept).weight)
        apart = (live.run(i) - live.run(i, module=twin) for i in range(len(live)))
        found.append(_everywhere(sum(float(d.double().square().sum()) for d in apart)) / max(energy, math.ulp(0.0)))
    for key, w in before.items():
        matrices[key].copy_(w)
    return found


def _everywhere(value: float) -> float:
    """The sum over the processes: each has batches of its own."""
    return float(sum(together.everyones(value)))


def _dense(task: Task, fed: Callable[[Live], Any]) -> Any:
    """Every block of the dense model with what its matrices are fed."""
    walk = task.walk()
    for index in range(len(walk)):
        live = walk.live(index)
        with torch.no_grad():
            yield live, fed(live)
        if index < len(walk) - 1:
            walk.pass_on(live)
