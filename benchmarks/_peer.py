"""Torch-Pruning (github.com/VainF/Torch-Pruning), used as its README says, brought to a given number of parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DISTRIBUTION = "torch-pruning"
STEPS, NEAR = 14, 0.02
ROUND_TO = (8, 4, 2, 1)

Options = Callable[[nn.Module, float], Mapping[str, Any]]
"""``(copy of the model, ratio) -> further arguments of BasePruner``."""
Finish = Callable[[nn.Module, Any], None]
"""``(pruned model, pruner)``: sets the constants in the code that its user has to set."""


def importance(name: str) -> Any:
    """One of its importances: ``GroupMagnitudeImportance``, ``GroupTaylorImportance``..."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        return getattr(torch_pruning.importance, name)()


def cut_to(
    model: nn.Module,
    example: Any,
    parameters: int,
    rank: Any,
    loss: Callable[[nn.Module], Tensor] | None = None,
    options: Options = lambda model, ratio: {},
    finish: Finish = lambda model, pruner: None,
) -> nn.Module:
    """A pruned copy with a given number of parameters, or as near to it as its pruner comes.

    Its ``pruning_ratio`` is a ratio of channels, so the one that gives this number is searched by bisection. Channels
    are rounded to multiples of 8, as its README recommends; where that misses the number by more than 2 %, to
    multiples of 4, 2 or 1.

    Args:
        model: the dense model.
        example: what it is recorded on.
        parameters: how many to come to.
        rank: the importance.
        loss: differentiated before, where the importance needs gradients.
        options: further arguments, such as ``ignored_layers``. finish: sets what it leaves to its user.
    """
    gradients = None if loss is None else torch.autograd.grad(loss(model), list(model.parameters()))
    best, best_off = None, float("inf")
    for multiple in ROUND_TO:
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            ratio = (low + high) / 2
            small = copy.deepcopy(model)
            further = {"round_to": multiple, **options(small, ratio)}
            found = cut(small, example, ratio, rank, gradients, further, finish)
            count = sum(p.numel() for p in found.parameters())
            if abs(count - parameters) < best_off:
                best, best_off = found, abs(count - parameters)
            low, high = (ratio, high) if count > parameters else (low, ratio)
            if count == parameters:
                break
        if best_off <= NEAR * parameters:
            break
    assert best is not None
    return best


def cut(
    model: nn.Module,
    example: Any,
    ratio: float,
    rank: Any,
    gradients: Sequence[Tensor] | None,
    options: Mapping[str, Any],
    finish: Finish = lambda model, pruner: None,
) -> nn.Module:
    """Prune the model that is given by a ratio of channels."""
    for p, gradient in zip(model.parameters(), gradients or (), strict=gradients is not None):
        p.grad = gradient.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        pruner = torch_pruning.pruner.BasePruner(model, example, importance=rank, pruning_ratio=ratio, **options)
        pruner.step()
        finish(model, pruner)
    for p in model.parameters():
        p.grad = None
    return model.eval()


def classifiers(model: nn.Module) -> list[nn.Module]:
    """Linear layers, which are all classifiers in a convolutional network: they stay whole."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def build_graph(model: nn.Module, example: Any) -> int:
    """Its dependency graph and all of its groups; how many these are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
        return sum(1 for _ in graph.get_all_groups())
