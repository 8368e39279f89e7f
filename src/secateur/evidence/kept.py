"""Statistics over the kept positions only: what a model computes whose normalised widths were cut, at full size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import CoupleError, TraceError
from secateur.graph.couple import couple
from secateur.graph.record import trace
from secateur.graph.recorded import Call
from secateur.graph.resize import CHOICES, STATISTICS
from secateur.graph.rules import EXPERT_RULES, RESIDUAL_RULES, RULES, Rule
from secateur.graph.rules._table import dims_of
from secateur.types import Bools, Example, Plan

Masks: TypeAlias = Mapping[tuple[str, int], Mapping[int, Bools]]
"""(torch function, which call of it in the pass) -> dim -> bool, True where the plan keeps."""


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
    axes, root = groups._axes, groups._solution.root
    gone = np.zeros(axes.n, bool)
    for (name, dim), keep in plan.axes.items():
        ids = axes.ids[groups.graph.tensors[name].index][dim]
        if ids is not None:
            gone[root[ids[~keep]]] = True
    for cells, rows, columns in axes.cells:  # a row goes when all of its cells do
        for part in (rows, columns):
            whole = np.ones(axes.n, bool)
            np.logical_and.at(whole, root[part], gone[root[cells]])
            gone[root[part]] |= whole[root[part]]
    masks: dict[tuple[str, int], dict[int, Bools]] = {}
    for call in groups.graph.calls:
        if call.turn is not None and call.api in STATISTICS and call.inputs:
            for d in _dims(call):
                axis = axes[call.inputs[0]][d]
                if axis is not None and gone[root[axis]].any():
                    masks.setdefault((call.api, call.turn), {})[d] = ~gone[root[axis]]
    return masks


_CHOOSES = CHOICES | {"_softmax", "_log_softmax", "_safe_softmax"}


def _dims(call: Call) -> list[int]:
    """The dims of its input that a call takes statistics over."""
    n = call.inputs[0].ndim
    if "normalized_shape" in call.args:
        return list(range(n - len(call["normalized_shape"]), n))
    if call.api in CHOICES:
        return dims_of(call.args.get("dim"), n) if call.op.removeprefix("aten::") in _CHOOSES else []
    if call.op == "aten::native_group_norm":
        return [1]
    if call.api == "batch_norm":
        return [d for d in range(n) if d != 1] if call.args.get("training") else []
    return dims_of(call.args.get("dim"), n) if call.op.split("::")[1] in STATISTICS else []


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
