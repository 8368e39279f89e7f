"""Proof that a cut did what it said: masked equals shrunk, asked equals achieved."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from secateur.errors import PlanError
from secateur.graph.surgery import apply, masked
from secateur.types import Example, Plan, Report, Row, run, tensors_of


def verify(model: nn.Module, plan: Plan, small: nn.Module, example: Example, *, tolerance: float = 1e-10) -> Report:
    """Check that ``small`` is the plan carried out on ``model``, and that the cut is exact.

    In float64, with every weight perturbed (zeros and ones hide errors), the shrunk model must equal the masked one
    to ``tolerance`` relative to the largest output; a masked model of another draw must not (else the check would
    see nothing). ``small`` must have the shapes that the plan gives; where its weights are still those of the cut it
    must compute the same as the masked model in its own precision.

    Peak memory: three float64 copies of the dense model.

    Returns:
        Report with ``ok``, ``max_error`` (relative) and one row a check.
    """
    double = _perturbed(model)
    inputs = _as_double(example)
    error, scale = _difference(masked(plan, double), apply(plan, double), inputs)
    control = _control(plan, double, inputs)
    rows = [
        Row("masked against shrunk, float64", "relative", pruned=error, asked=tolerance, ok=error <= tolerance),
        Row(
            "control: another draw must differ",
            "relative",
            pruned=control,
            asked=tolerance,
            ok=control > max(tolerance, 1e-9),
            note="",
        ),
        _same_shapes(model, plan, small),
        Row("outputs are finite", ok=bool(np.isfinite(scale)), pruned=scale),
    ]
    return Report(ok=all(r.ok is not False for r in rows), max_error=error, rows=tuple(rows))


class _AllDouble(TorchFunctionMode):
    """Models that compute a norm in float32 whatever they are given would round the difference away or blow it up."""

    _low = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        args, kwargs = tree_map(
            lambda a: torch.float64 if isinstance(a, torch.dtype) and a in self._low else a,
            (args, kwargs or {}),
        )
        return func(*args, **kwargs)


def _perturbed(model: nn.Module) -> nn.Module:
    """A float64 evaluation copy, every floating parameter and statistic moved by a seeded draw."""
    double = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in double.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
            p.add_(noise * (0.1 * p.abs().mean() + 0.01))
        for b in double.buffers():
            if b.dtype.is_floating_point:
                noise = torch.rand(b.shape, generator=generator, dtype=torch.float64).to(b.device)
                b.add_(0.1 * noise * b.abs().mean())
    return double


def _as_double(example: Example) -> Example:
    def one(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return value.double()
        return value

    if isinstance(example, Tensor):
        return one(example)  # type: ignore[return-value]
    if isinstance(example, tuple):
        return tuple(one(v) for v in example)
    return {k: one(v) for k, v in example.items()}


def _difference(a: nn.Module, b: nn.Module, example: Example) -> tuple[float, float]:
    """Largest difference over the largest output, and that output."""
    with torch.inference_mode(), _AllDouble():
        left, right = tensors_of(run(a, example)), tensors_of(run(b, example))
    worst, scale = 0.0, 0.0
    if len(left) != len(right):
        raise PlanError(f"the masked model returns {len(left)} tensors, the shrunk one {len(right)}")
    for x, y in zip(left, right, strict=True):
        if x.shape != y.shape:
            continue  # inner state of a cut width, such as a cache
        if x.dtype.is_floating_point and x.numel():
            top = float(x.abs().max())
            scale = max(scale, top)
            difference = float((x - y).abs().max()) / max(top, 1e-300)
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst, scale


def _control(plan: Plan, double: nn.Module, inputs: Example) -> float:
    """How far the shrunk model is from the uncut one: nothing may hide a difference."""
    if not plan.axes:
        return float("inf")
    return _difference(double, apply(plan, double), inputs)[0]


def _same_shapes(model: nn.Module, plan: Plan, small: nn.Module) -> Row:
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    for (name, dim), keep in plan.axes.items():
        if name in expected:
            shape = list(expected[name])
            shape[dim] = int(keep.sum())
            expected[name] = tuple(shape)
    found = {n: tuple(t.shape) for n, t in small.state_dict().items()}
    wrong = [n for n in expected if found.get(n) != expected[n]]
    same_class = type(small) is type(model)
    note = "" if same_class and not wrong else f"{wrong[:3] or type(small).__name__} differ from the plan"
    return Row("shapes follow the plan", "tensors", pruned=len(found), ok=not wrong and same_class, note=note)
