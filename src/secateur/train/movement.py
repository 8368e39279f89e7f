"""Movement pruning: weights that move away from zero while a model is fine-tuned stay (arXiv:2005.07683)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.choose.density import Densities, even, select
from secateur.choose.patterns import Pattern, unstructured
from secateur.errors import ArgumentError
from secateur.train.schedule import Schedule, about
from secateur.train.shadow import put_back_, remember, remembered
from secateur.train.sparse import Method, Sparse, named


def movement(
    schedule: Schedule, rate: float = 1.0, pattern: Pattern = unstructured, density: Densities = even
) -> Method:
    """Hard movement pruning: the weights of largest accumulated movement are kept.

    ``S <- S - rate dL/dW' W`` at every step, from zero, and ``W' = W top(S)`` in the forward pass. What is masked goes
    on learning by the straight-through estimator and may come back.

    Args:
        schedule: step -> sparsity, such as `cubic`; start dense, as at first all scores are equal.
        rate: of the scores; on its own it changes nothing here, as only their order counts.
        pattern, density: as in `sc.sparsify`; `ranked` compares all weights with one another.

    Example:
        >>> movement(lambda step: 0.9).name
        'movement'
    """
    if rate <= 0:
        raise ArgumentError(f"movement needs a rate above 0, got {rate}")

    def choose(run: Sparse) -> None:
        run.masks.put(select(_scores(run), schedule(run.step), pattern, density, turned=run.turned))

    told = {"schedule": about(schedule), "pattern": pattern.name, "density": named(density), "rate": rate}
    return _moving("movement", choose, lambda run: _learn(run, rate, None), told)


def soft_movement(penalty: float, rate: float = 1.0, threshold: float = -2.2) -> Method:
    """Soft movement pruning: what has a score above a threshold is kept, and a penalty pulls all scores down.

    ``S <- S - rate (dL/dW' W + penalty s(S) (1 - s(S)))`` with the sigmoid ``s``, the gradient of ``penalty |s(S)|_1``,
    and ``W' = W [S > threshold]``. The sparsity is not set but found: a larger penalty makes it higher.

    Args:
        penalty: on the scores. rate: of the scores. threshold: below zero, where the scores start; the default is
            the paper's 0.1 on ``s(S)``.

    Example:
        >>> soft_movement(1e-3).about["penalty"]
        0.001
    """
    if rate <= 0 or penalty < 0 or threshold >= 0:
        raise ArgumentError(
            f"soft_movement needs rate > 0, penalty >= 0 and threshold < 0 (all scores start at 0); got rate={rate}, "
            f"penalty={penalty}, threshold={threshold}"
        )

    def choose(run: Sparse) -> None:
        run.masks.put({n: s > threshold for n, s in _scores(run).items()})

    told = {"penalty": penalty, "rate": rate, "threshold": threshold}
    return _moving("soft_movement", choose, lambda run: _learn(run, rate, penalty), told)


def _moving(
    name: str, choose: Callable[[Sparse], None], learn: Callable[[Sparse], None], told: Mapping[str, Any]
) -> Method:
    def start(run: Sparse) -> None:
        run.memory |= {f"score.{n}": torch.zeros_like(w, dtype=torch.float32) for n, w in run.masks.weights.items()}
        after(run)

    def before(run: Sparse) -> bool:
        learn(run)
        put_back_(run)
        return False

    def after(run: Sparse) -> None:
        remember(run)
        choose(run)

    return Method(name, start, before, after, told, shadowed=True)


def _scores(run: Sparse) -> dict[str, Tensor]:
    return {n: run.memory[f"score.{n}"] for n in run.masks.masks}


def _learn(run: Sparse, rate: float, penalty: float | None) -> None:
    dense, weights = remembered(run), run.masks.weights
    with torch.no_grad():
        for n, score in _scores(run).items():
            gradient = weights[n].grad
            step = torch.zeros_like(score) if gradient is None else (gradient * dense[n]).float()
            if penalty:
                s = score.sigmoid()
                step += penalty * s * (1 - s)
            run.memory[f"score.{n}"] = score - rate * step
