"""Weights that go on learning while they are masked: the model holds the masked ones, the run's memory all of them.

Between two steps every parameter is what the forward pass shall see, ``W' = W M``, and its gradient is ``dL/dW'``,
dense. Before the optimizer steps, ``W`` is put back: that the same gradient then moves ``W`` is the straight-through
estimator. After the step ``W`` is remembered again and the parameter masked. No wrappers, the same ``state_dict``; the
cost is one more copy of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.train.sparse import Sparse


def remember(run: Sparse) -> None:
    """Keep the weights as they are now, before they are masked."""
    for name, w in run.masks.weights.items():
        run.memory[f"dense.{name}"] = w.detach().clone()


def remembered(run: Sparse) -> dict[str, Tensor]:
    """The dense weights, by name."""
    return {name: run.memory[f"dense.{name}"] for name in run.masks.masks}


def put_back_(run: Sparse) -> None:
    """The dense weights into the model: for the optimizer's step."""
    with torch.no_grad():
        for name, w in run.masks.weights.items():
            w.copy_(run.memory[f"dense.{name}"])
