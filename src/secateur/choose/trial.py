"""What a cut costs a model's outputs: carried out, made up for by what is left, and run beside the dense model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import run, tensors_of
from secateur.choose.plan import make_plan
from secateur.errors import DataError
from secateur.graph.surgery import apply
from secateur.products import fast_for
from secateur.score.calibrate import Moment, checked, quiet_eval, used_otherwise
from secateur.score.capture import columns, from_matrix, matrix
from secateur.score.obs import damped
from secateur.types import Batches, Bools, Ints, Keep, Plan, Scores

Distance: TypeAlias = Callable[[Any, Any, Any], Tensor]
"""``(cut model's output, dense model's output, batch) -> scalar``; zero where they are equal."""

REMEMBERED = 2
"""Fits of each weight that are kept: plans that are compared differ in one group from one that all begin with."""


class Trial:
    """A model of which plans are tried: ``trial(keep)`` is what the outputs lose, on the mean over the batches.

    Where the scores come from ``sc.obs``, the weights that the cut units fed are refitted by least squares first, each
    by itself, from the dense model's moments; not one that is an embedding too.

    Args:
        model: the dense model, left as it is. scores: their statistics say what makes up for a cut.
        batches: a few examples; labels are ignored.
        distance: by default `relative_error`.
        damping: of the least squares, relative to the mean of the inputs' second moment.

    Raises:
        DataError: no batches; when called, outputs that are not finite.

    Time: a forward pass over the batches a plan, and a solve a weight and count. Memory: one more model, and twice the
    weights that are refitted.
    """

    def __init__(
        self, model: nn.Module, scores: Scores, batches: Batches, distance: Distance | None, damping: float
    ) -> None:
        self.model, self.scores, self.damping = model, scores, damping
        self.far = distance or relative_error
        self.data = examples_of(model, batches)
        with quiet_eval(model), torch.no_grad(), fast_for(model):
            elsewhere = used_otherwise(model, self.data[0][0])
            self.fed = {name: fed for name, fed in _fed(scores).items() if name not in elsewhere}
            self.fits = {name: OrderedDict[bytes, _Fit]() for name in self.fed}
            self.dense = [run(model, example) for example, _ in self.data]

    def __call__(self, keep: Keep) -> float:
        """What the outputs lose with only these units of the groups named kept."""
        plan = make_plan(self.scores.groups, keep)
        with quiet_eval(self.model), torch.no_grad(), fast_for(self.model):
            small = apply(plan, self.model).eval()
            self._make_up_(small, plan)
            pairs = zip(self.data, self.dense, strict=True)
            found = float(np.mean([float(self.far(run(small, e), dense, b)) for (e, b), dense in pairs]))
        if not np.isfinite(found):
            cut = [n for n, m in keep.items() if not m.all()]
            raise DataError(f"outputs are not finite with a part of {', '.join(cut[:5])} cut: check the data")
        return max(found, 0.0)

    def _make_up_(self, small: nn.Module, plan: Plan) -> None:
        dense, cut = (dict(m.named_parameters(remove_duplicate=False)) for m in (self.model, small))
        for name, (moment, units) in self.fed.items():
            rest = torch.ones(len(moment.second), dtype=torch.bool)
            for group, index in units:
                if (mask := plan.keep.get(group)) is not None and not mask.all():
                    rest[columns(index[~mask], moment.taps).reshape(-1)] = False
            if rest.all():
                continue
            fit = self._fitted(name, dense[name], moment, rest)
            rows = plan.axes.get((name, 1 - moment.in_dim))
            left = slice(None) if rows is None else torch.from_numpy(np.asarray(rows)).to(fit.weight.device)
            cut[name].copy_(from_matrix(fit.weight[left], cut[name], moment.in_dim))
            if moment.bias is not None:
                cut[moment.bias].copy_((dense[moment.bias].double() + fit.shift)[left])

    def _fitted(self, name: str, weight: Tensor, moment: Moment, rest: Tensor) -> _Fit:
        known, key = self.fits[name], rest.numpy().tobytes()
        if key not in known:
            known[key] = _fit(weight, moment, rest.to(moment.second.device), self.damping)
        known.move_to_end(key)
        while len(known) > REMEMBERED:
            known.popitem(last=False)
        return known[key]


@dataclass(frozen=True, eq=False)
class _Fit:
    """A weight (outputs, inputs left) and what its bias gains."""

    weight: Tensor
    shift: Tensor


def _fit(weight: Tensor, moment: Moment, rest: Tensor, damping: float) -> _Fit:
    """Least squares of what the dense weight gives, on the inputs that are left."""
    w = matrix(weight.detach().double(), moment.in_dim)
    mean = moment.first / moment.n if moment.bias is not None else torch.zeros_like(moment.first)
    spread = damped(moment.second / moment.n - torch.outer(mean, mean), damping, moment.n)
    fitted = torch.linalg.solve(spread[rest][:, rest], (w @ spread[:, rest]).T).T
    return _Fit(fitted.to(weight.dtype), w @ mean - fitted @ mean[rest])


def _fed(scores: Scores) -> dict[str, tuple[Moment, list[tuple[str, Ints]]]]:
    """Weights whose inputs groups cut and whose moments are known: the moment, and each group's places in it."""
    found: dict[str, tuple[Moment, list[tuple[str, Ints]]]] = {}
    for g in scores.groups:
        for s in g.slices:
            m = scores.stats.get(s.name) if isinstance(scores.stats, Mapping) else None
            if s.role == "in" and isinstance(m, Moment) and m.in_dim == s.dim:
                found.setdefault(s.name, (m, []))[1].append((g.name, s.index))
    return found


def relative_error(output: Any, dense: Any, batch: Any = None) -> Tensor:
    """Squared error of all floating outputs over their energy.

    Example:
        >>> relative_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(0.2000)
    """
    pairs = [
        (a, b)
        for a, b in zip(tensors_of(output), tensors_of(dense), strict=True)
        if b.dtype.is_floating_point and a.shape == b.shape
    ]
    error = torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).sum()
    return error / torch.stack([b.float().square().sum() for _, b in pairs]).sum().clamp_min(1e-30)


def examples_of(model: nn.Module, batches: Batches) -> list[tuple[Any, Any]]:
    """Each batch as the model's arguments, and as it was given.

    Raises:
        DataError: there is none, or it is not what a model takes.
    """
    data = all_of(batches)
    return [(example, batch) for (_, example, _), batch in zip(checked(model, data), data, strict=True)]


def all_of(batches: Batches) -> Batches:
    """Batches that can be looked at again; what is a single one stays, to be refused as such."""
    return batches if isinstance(batches, (Tensor, Mapping, str)) else list(batches)


def lowest(scores: Scores, name: str, fraction: float) -> Bools:
    """What stays when the lowest-scored part of one group goes: at least one unit goes, and at least one stays."""
    values = scores.values[name]
    keep = np.ones(len(values), bool)
    keep[np.argsort(values, kind="stable")[: min(max(round(fraction * len(values)), 1), len(values) - 1)]] = False
    return keep
