"""Torch-Pruning (github.com/VainF/Torch-Pruning), used as its README says, brought to a given number of parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

DISTRIBUTION = "torch-pruning"
STEPS = 14


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
    keep: Callable[[nn.Module], list[nn.Module]],
    loss: Callable[[nn.Module], Tensor] | None = None,
    options: Callable[[nn.Module], Mapping[str, Any]] = lambda model: {},
) -> nn.Module:
    """A pruned copy whose number of parameters is the nearest to a given one that its pruner reaches.

    Its ``pruning_ratio`` is a ratio of channels, so the one that gives this number is searched by bisection.

    Args:
        model: the dense model.
        example: what it is recorded on.
        parameters: how many to come to.
        rank: the importance.
        keep: layers that stay whole, such as the classifier.
        loss: run and differentiated before, where the importance needs gradients.
        options: further arguments of ``BasePruner``.
    """
    low, high = 0.0, 1.0
    best, best_off = None, float("inf")
    for _ in range(STEPS):
        ratio = (low + high) / 2
        found = cut(model, example, ratio, rank, keep, loss, options)
        count = sum(p.numel() for p in found.parameters())
        if abs(count - parameters) < best_off:
            best, best_off = found, abs(count - parameters)
        low, high = (ratio, high) if count > parameters else (low, ratio)
        if count == parameters:
            break
    assert best is not None
    return best


def cut(
    model: nn.Module,
    example: Any,
    ratio: float,
    rank: Any,
    keep: Callable[[nn.Module], list[nn.Module]],
    loss: Callable[[nn.Module], Tensor] | None = None,
    options: Callable[[nn.Module], Mapping[str, Any]] = lambda model: {},
) -> nn.Module:
    """A copy pruned by a ratio of channels."""
    small = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        pruner = torch_pruning.pruner.BasePruner(
            small, example, importance=rank, pruning_ratio=ratio, ignored_layers=keep(small), **options(small)
        )
        if loss is not None:
            loss(small).backward()
        pruner.step()
    for p in small.parameters():
        p.grad = None
    return small.eval()


def build_graph(model: nn.Module, example: Any) -> int:
    """Its dependency graph and all of its groups; how many these are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
        return sum(1 for _ in graph.get_all_groups())
