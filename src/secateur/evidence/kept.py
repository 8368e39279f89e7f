"""Statistics over the kept positions only: what a model computes whose normalised widths were cut, at full size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import CoupleError, TraceError
from secateur.graph.couple import couple
from secateur.graph.record import trace
from secateur.graph.resize import CHOICES, STATISTICS
from secateur.graph.rules import EXPERT_RULES, RESIDUAL_RULES, RULES, Rule
from secateur.graph.statistics import Masks, kept_in
from secateur.types import Bools, Example, Plan


def kept_under_statistics(
    model: nn.Module, plan: Plan, example: Example, rules: Mapping[str, Rule] | None = None
) -> Masks:
    """Where a model takes statistics over an axis that a plan cuts, and what is kept of it there.

    ``rules`` are those that the plan was made with: the caller's own among them count here too.
    """
    try:
        graph = trace(model, example)
    except TraceError:  # it does not run at all, or has no memory for it: the check that follows says so better
        return {}
    own = {op: rule for op, rule in (rules or {}).items() if RULES.get(op) is not rule}
    try:
        groups = couple(graph, {**RESIDUAL_RULES, **EXPERT_RULES, **own})
    except CoupleError:  # rules of the caller's own made the plan: without them nothing can be followed
        return {}
    return kept_in(groups, plan.axes)


class OverKept(TorchFunctionMode):
    """Runs a masked model with its statistics taken over what a plan keeps; removed positions come out as zero."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks
        self.turns: Counter[str] = Counter()

    def __enter__(self) -> OverKept:
        self.turns.clear()
        super().__enter__()
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in STATISTICS:
            return func(*args, **kwargs)
        turn = self.turns[name]
        self.turns[name] += 1
        masks = self.masks.get((name, turn))
        if not masks:
            return func(*args, **kwargs)
        if name == "batch_norm":
            return _batch_norm(func, masks, *args, **kwargs)
        if name == "group_norm":
            return _group_norm(func, masks[1], *args, **kwargs)
        if name in ("layer_norm", "rms_norm"):
            return _layer_norm(func, masks, *args, **kwargs)
        if name in CHOICES:
            return _choice(func, masks, *args, **kwargs)
        x = args[0] if args else kwargs.pop("input")
        for d, keep in masks.items():
            x = x.index_select(d, torch.from_numpy(np.flatnonzero(keep)).to(x.device))
        return func(x, *args[1:], **kwargs)


def _choice(func: Any, masks: Mapping[int, Bools], input: Tensor, *more: Any, **named: Any) -> Any:
    """What is removed is last in every order: never chosen, of probability zero."""
    gone = torch.zeros(input.shape, dtype=torch.bool, device=input.device)
    for d, keep in masks.items():
        gone.index_fill_(d, torch.from_numpy(np.flatnonzero(~keep)).to(input.device), True)
    last = -torch.inf if input.dtype.is_floating_point else torch.iinfo(input.dtype).min
    if func.__name__ == "topk" and not named.get("largest", more[2] if len(more) > 2 else True):
        last = torch.inf if input.dtype.is_floating_point else torch.iinfo(input.dtype).max
    out = func(input.masked_fill(gone, last), *more, **named)
    return out.masked_fill(gone, 0) if func.__name__ == "log_softmax" else out


def _layer_norm(
    func: Any, masks: Mapping[int, Bools], input: Tensor, normalized_shape: Any, *more: Any, **named: Any
) -> Tensor:
    keep = masks[input.dim() - 1]
    at = torch.from_numpy(keep).to(input.device)
    more = tuple(v[at] if isinstance(v, Tensor) else v for v in more)
    named = {k: v[at] if isinstance(v, Tensor) else v for k, v in named.items()}
    out = torch.zeros_like(input)
    out[..., at] = func(input[..., at], [int(keep.sum())], *more, **named)
    return out


def _batch_norm(func: Any, masks: Mapping[int, Bools], input: Tensor, *more: Any, **named: Any) -> Tensor:
    at = [torch.arange(n, device=input.device) for n in input.shape]
    for d, keep in masks.items():
        at[d] = torch.from_numpy(np.flatnonzero(keep)).to(input.device)
    where = torch.meshgrid(*at, indexing="ij")
    out = torch.zeros_like(input)
    out[where] = func(input[where], *more, **named)
    return out


def _group_norm(
    func: Any, keep: Bools, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    at = torch.from_numpy(keep).to(input.device)
    groups = int(keep.reshape(num_groups, -1).any(1).sum())
    out = torch.zeros_like(input)
    weight, bias = (v if v is None else v[at] for v in (weight, bias))
    out[:, at] = func(input[:, at], groups, weight, bias, eps)
    return out
