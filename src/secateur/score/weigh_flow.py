"""A criterion of single weights that needs neither data nor labels: the flow through the network's absolute values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.calling import tensors_of
from secateur.errors import DataError
from secateur.score.calibrate import checked, forward
from secateur.score.gradients import parameters_of
from secateur.types import Batches, Criterion, Example, Weighing


def _ones(model: nn.Module, batches: Batches, weights: Mapping[str, Tensor]) -> Example:
    """The first example with ones for its floating-point values, float64."""

    def one(leaf: Any) -> Any:
        flows = isinstance(leaf, Tensor) and leaf.dtype.is_floating_point
        return torch.ones_like(leaf, dtype=torch.float64) if flows else leaf

    _, example, _ = next(iter(checked(model, batches)))
    ones: Example = tree_map(one, example)
    return ones


def _synflow(model: nn.Module, weights: Mapping[str, Tensor], stats: Example) -> dict[str, Tensor]:
    twin = copy.deepcopy(model).double().eval()
    mine = parameters_of(twin, weights)
    for name, w in weights.items():
        mine[name].data.copy_(w.detach())  # they may be masked, where the model's are not
    for parameter in twin.parameters():
        parameter.requires_grad_(False).abs_()
    for w in mine.values():
        w.requires_grad_(True)
    with torch.enable_grad():
        output = forward(twin, stats, 0)
        own = getattr(output, "loss", None)
        flow = next((t for t in tensors_of(output) if t.dtype.is_floating_point and t is not own), None)
        if flow is None or not flow.requires_grad:
            raise DataError(f"nothing flows from the weights to the output of {type(model).__name__}: synflow needs it")
        grads = torch.autograd.grad(flow.sum(), list(mine.values()), allow_unused=True)
    scores = {}
    for (name, p), g in zip(mine.items(), grads, strict=True):
        scores[name] = torch.zeros_like(p, requires_grad=False) if g is None else p.detach() * g
        if not bool(torch.isfinite(scores[name]).all()):
            raise DataError(
                f"the flow through {name} is not finite, even in float64: check the weights for NaN and inf"
            )
    return scores


synflow = Criterion("synflow", weights=Weighing(_synflow, _ones))
"""``θ ∂R/∂θ`` at the absolute values of all parameters, ``R`` the sum of the outputs on ones (arXiv:2006.05467).

Evaluation mode, float64, on a copy: the model is not touched. The first example gives the shapes; its integers
(token ids) stay. Over each layer of a network without biases the scores add up to ``R``. It is to be iterated: scored
a hundred times, the density falling as ``κ^(k/n)``, with what is left of the weights given as ``weights`` or in the
model; a single step can empty a layer.
"""
