"""Exact costs: what a model weighs and computes, counted from shapes."""

from __future__ import annotations

from torch import nn

from secateur.graph.couple import macs_of
from secateur.graph.record import trace
from secateur.types import Cost, Example


def params(model: nn.Module) -> Cost:
    """Number of parameters, shared ones once.

    Example:
        >>> params(nn.Linear(4, 2)).dense
        10.0
    """
    return Cost("params", "", float(sum(p.numel() for p in model.parameters())), lambda g, keep: g.params(keep))


def nbytes(model: nn.Module) -> Cost:
    """Bytes of parameters and buffers, shared ones once.

    Example:
        >>> nbytes(nn.Linear(4, 2)).dense
        40.0
    """
    tensors = [*model.parameters(), *model.buffers()]
    dense = sum(t.numel() * t.element_size() for t in tensors)
    return Cost("nbytes", "B", float(dense), lambda g, keep: g.nbytes(keep))


def macs(model: nn.Module, example: Example) -> Cost:
    """Multiply-accumulates of matrix products, convolutions and attention on the example (1 MAC = 2 FLOPs).

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> macs(net, torch.zeros(3, 4)).dense
        144.0
    """
    return Cost("macs", "MAC", float(macs_of(trace(model, example))), lambda g, keep: g.macs(keep))
