"""Norms over the kept positions only: what a model with cut residual width computes, at full size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.types import Bools, Plan

_MEANS = (torch.Tensor.mean, torch.mean)


class OverKept(TorchFunctionMode):
    """Runs a masked model with the statistics of its layer and RMS norms taken over what a plan keeps.

    A norm is told by its weight; a mean of squares written out by hand by the width it runs over. Removed positions
    come out as zero. A plan that cuts no residual width changes nothing.
    """

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        super().__init__()
        named = dict(model.named_parameters(remove_duplicate=False))
        wide = {name for name, kind in plan.kinds.items() if kind == "width" and not plan.keep[name].all()}
        self.norms: Mapping[int, Bools] = {
            id(named[n]): keep for (n, d), keep in plan.axes.items() if wide and n in named and named[n].dim() == 1 + d
        }
        counts = {(plan.keep[n].size, int(plan.keep[n].sum())) for n in wide}
        self.widths = {n: k for n, k in counts if sum(n == m for m, _ in counts) == 1}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, F.rms_norm):
            return self._norm(func, *args, **kwargs)
        if func in _MEANS and args and isinstance(args[0], Tensor):
            return self._mean(func, args, kwargs)
        return func(*args, **kwargs)

    def _norm(self, func: Any, x: Tensor, shape: Any, weight: Any = None, *more: Any, **named: Any) -> Tensor:
        keep = self.norms.get(id(weight))
        if keep is None or tuple(shape) != (keep.size,):
            result: Tensor = func(x, shape, weight, *more, **named)
            return result
        at = torch.from_numpy(keep).to(x.device)
        cut = [v[at] if isinstance(v, Tensor) else v for v in more]
        named = {k: v[at] if isinstance(v, Tensor) else v for k, v in named.items()}
        out = torch.zeros_like(x)
        out[..., at] = func(x[..., at], [int(keep.sum())], weight[at], *cut, **named)
        return out

    def _mean(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
        result: Tensor = func(*args, **kwargs)
        last = dim in (-1, [-1], (-1,), x.dim() - 1)
        if last and x.shape[-1] in self.widths and bool((x >= 0).all()):  # squares, zero where removed
            result = result * (x.shape[-1] / self.widths[x.shape[-1]])
        return result
