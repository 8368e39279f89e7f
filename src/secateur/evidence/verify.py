"""Proof that a cut did what it said: masked equals shrunk, asked equals achieved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from secateur.calling import run, tensors_of
from secateur.evidence.kept import OverKept, kept_under_statistics
from secateur.graph.caches import forget
from secateur.graph.copying import duplicate
from secateur.graph.dropping import Drops, drops_of, original, remaining, renamed
from secateur.graph.rules import Rule
from secateur.graph.surgery import apply, masked
from secateur.types import Example, Plan, Report, Row


def verify(
    model: nn.Module,
    plan: Plan,
    small: nn.Module,
    example: Example,
    *,
    tolerance: float = 1e-10,
    rules: Mapping[str, Rule] | None = None,
) -> Report:
    """Check that ``small`` is the plan carried out on ``model``, and that the cut is exact.

    In float64, with every weight perturbed (zeros and ones hide errors), the cut model must equal the masked one to
    ``tolerance`` relative to the largest output, and differ from the uncut one (else the check would see nothing; units
    that are dead on the example get larger perturbations). A model that has kernels which refuse float64 is checked in
    float32, to 1e-4; the rows say so.
    In the masked model layers that go whole are the identity.
    ``small`` must have the class, the shapes, the order and the index buffers that the plan gives, and with the same
    perturbed weights in it must compute the same: its code and constants are checked too. Its own weights may be
    others by now, since recovery trains them; how many tensors have changed is said.

    Peak memory: four float64 copies of the dense model.

    Args:
        model: the dense model.
        plan: the cut.
        small: what came of it, recovered or not.
        example: what to compare on.
        tolerance: largest relative difference that counts as none.
        rules: what `couple` was given, where rules of your own made the plan: norms behind your ops then run over
            what is kept.

    Returns:
        Report with ``ok``, ``max_error`` (relative) and one row a check.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.5, seed=0)
        >>> verify(net, plan, sc.apply(plan, net), torch.randn(3, 4)).ok
        True
    """
    check = partial(_checked, model, plan, small, example, rules)
    try:
        return _seen(partial(check, torch.float64, tolerance, ""))
    except _Refused as refusal:
        try:
            return _seen(partial(check, torch.float32, max(tolerance, SINGLE), f"float64: {refusal}"))
        except _Refused as other:
            raise (other.__cause__ or other) from None
    finally:
        forget(model.modules())  # what it remembers of this has another precision than it asked for


SINGLE = 1e-4
"""Largest relative difference that counts as none in float32."""
CONTROL = "control: the uncut model must differ"
SHAKES = (0.1, 1.0, 3.0)
"""How far weights are moved, over their mean size: further where the cut units were dead and a cut shows nothing."""


class _Refused(Exception):
    """The uncut model does not run in a precision."""


def _seen(check: Callable[[float], Report]) -> Report:
    """The checks with the smallest perturbation that lets a difference be seen."""
    tries = map(check, SHAKES)
    first = next(tries)
    unseen = [row.what for row in first.rows if row.ok is False] == [CONTROL]
    return next((report for report in tries if report.ok), first) if unseen else first


def _checked(
    model: nn.Module,
    plan: Plan,
    small: nn.Module,
    example: Example,
    rules: Mapping[str, Rule] | None,
    dtype: torch.dtype,
    tolerance: float,
    refusal: str,
    by: float,
) -> Report:
    """All checks in one precision, under one perturbation."""
    moved, inputs = _perturbed(model, dtype, by), _cast(example, dtype)
    cut = apply(plan, moved)
    zeroed = masked(plan, moved)
    over = OverKept(kept_under_statistics(model, plan, example, rules)) if plan.axes else None
    error, finite, problem = _difference(zeroed, cut, inputs, over, drops_of(model, plan.layers))
    shapes = _same_shapes(model, plan, small)
    name = str(dtype).removeprefix("torch.")
    rows = [
        _exact(f"masked against shrunk, {name}", error, tolerance, problem or refusal),
        _control(plan, moved, cut, inputs, tolerance),
        shapes,
        *(
            [_same_order(plan, apply(plan, model), small), _same_code(cut, small, inputs, tolerance)]
            if shapes.ok and not problem
            else [_unknown("order follows the plan"), _unknown("shrunk computes as planned")]
        ),
        Row("outputs are finite", ok=finite),
    ]
    worst = max(error, rows[4].pruned or 0.0)
    return Report(ok=all(r.ok is not False for r in rows), max_error=worst, rows=tuple(rows))


class _Only(TorchFunctionMode):
    """One precision: models that compute a norm in float32 whatever they are given would round the difference away."""

    _floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double):
            return args[0].to(self.dtype)
        args, kwargs = tree_map(
            lambda a: self.dtype if isinstance(a, torch.dtype) and a in self._floats else a,
            (args, kwargs or {}),
        )
        return func(*args, **kwargs)


def _perturbed(model: nn.Module, dtype: torch.dtype, by: float) -> nn.Module:
    """An evaluation copy in a precision, every floating parameter and statistic moved by a seeded draw."""
    moved = _copy(model, dtype)
    generator = torch.Generator().manual_seed(SHAKES.index(by))
    with torch.no_grad():
        for p in moved.parameters():
            if not p.dtype.is_floating_point or not p.numel():
                continue
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            p.add_(noise * (by * p.abs().mean() + 0.1 * by))
        for b in moved.buffers():
            if b.dtype.is_floating_point and b.numel():
                noise = torch.rand(b.shape, generator=generator, dtype=torch.float64).to(b)
                b.add_(0.1 * noise * b.abs().mean())
    return moved


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """An evaluation copy whose floats have this type; complex numbers and integers keep theirs."""
    twin = duplicate(model).eval()
    return twin.double() if dtype == torch.float64 else twin.float()


def _precision(model: nn.Module) -> torch.dtype:
    return next((t.dtype for t in _state(model).values() if t.dtype.is_floating_point), torch.float64)


def _cast(example: Example, dtype: torch.dtype) -> Example:
    def one(value: object) -> object:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype.is_floating_point else value

    if isinstance(example, Tensor):
        return one(example)  # type: ignore[return-value]
    if isinstance(example, tuple):
        return tuple(one(v) for v in example)
    return {k: one(v) for k, v in example.items()}


def _difference(
    a: nn.Module, b: nn.Module, example: Example, over: Any = None, drops: Drops = ()
) -> tuple[float, bool, str]:
    """Largest difference over the largest output, whether all outputs are finite, and why ``b`` does not run.

    ``over`` is a context for ``a``; ``drops`` says what ``a`` has more in lists of outputs with an entry a layer.
    """
    with torch.inference_mode(), _Only(_precision(a)):
        try:
            with over or contextlib.nullcontext():
                whole = run(a, example)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # kernels may refuse a precision in any words
            raise _Refused(f"{type(problem).__name__}: {problem}"[:200]) from problem
        try:
            cut = run(b, example)
        except Exception as problem:  # a wrong cut may raise anything
            return float("inf"), True, f"it does not run: {problem}"[:200]
    left, right = remaining(whole, cut, drops), tensors_of(cut)
    if len(left) != len(right):
        return float("inf"), True, f"it returns {len(right)} tensors, not {len(left)}"
    worst, finite = 0.0, True
    for x, y in zip(left, right, strict=True):
        if x.shape != y.shape:
            continue  # inner state of a cut width, such as a cache
        if x.dtype.is_floating_point and x.numel():
            finite = finite and bool(torch.isfinite(x).all() and torch.isfinite(y).all())
            difference = float((x - y).abs().max()) / max(float(x.abs().max()), 1e-300)
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst, finite, ""


def _exact(what: str, error: float, tolerance: float, note: str) -> Row:
    return Row(what, "relative", pruned=error, asked=tolerance, ok=error <= tolerance, note=note)


def _control(plan: Plan, double: nn.Module, cut: nn.Module, inputs: Example, tolerance: float) -> Row:
    """How far the shrunk model is from the uncut one: nothing may hide a difference."""
    least = max(tolerance, 1e-9)
    drops = drops_of(double, plan.layers)
    found = _difference(double, cut, inputs, drops=drops)[0] if plan.axes or plan.layers else None
    return Row(CONTROL, "relative", pruned=found, ok=found is None or found > least)


def _state(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def _same_shapes(model: nn.Module, plan: Plan, small: nn.Module) -> Row:
    expected = {n: tuple(t.shape) for n, t in _state(model).items()}
    for (name, dim), keep in plan.axes.items():
        if name in expected:
            shape = list(expected[name])
            shape[dim] = int(keep.sum())
            expected[name] = tuple(shape)
    expected = {new: s for n, s in expected.items() if (new := renamed(n, plan.layers)) is not None}
    found = {n: tuple(t.shape) for n, t in _state(small).items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if found.get(n) != expected.get(n))
    same_class = type(small) is type(model)
    note = "" if same_class and not wrong else f"{wrong[:3] or type(small).__name__} differ from the plan"
    return Row("shapes follow the plan", "tensors", pruned=len(found), ok=not wrong and same_class, note=note)


def _unknown(what: str) -> Row:
    return Row(what, ok=False, note="cannot be told: the cut is wrong")


def _same_order(plan: Plan, cut: nn.Module, small: nn.Module) -> Row:
    """Training changes values; the same values in another order are a wrong cut, and so are other indices."""
    changed, wrong = 0, []
    found = _state(small)
    for name, planned in _state(cut).items():
        mine = found[name].to(planned.device)
        if torch.equal(mine.to(planned.dtype), planned):
            continue
        changed += 1
        numbers = original(name, plan.layers) in plan.renumber
        if numbers or _permuted(planned.detach().flatten(), mine.detach().flatten()):
            wrong.append(name)
    note = f"{changed} tensors changed since the cut" if changed else ""
    if wrong:
        note = f"{wrong[:3]} hold the plan's values in another order"
    return Row("order follows the plan", "tensors", pruned=len(found), ok=not wrong, note=note)


def _permuted(a: Tensor, b: Tensor) -> bool:
    if a.numel() < 2 or a.dtype != b.dtype or a.is_complex():
        return False
    return bool(a.min() == b.min() and a.max() == b.max()) and torch.equal(a.sort().values, b.sort().values)


def _same_code(cut: nn.Module, small: nn.Module, inputs: Example, tolerance: float) -> Row:
    """The perturbed weights of the cut, in a copy of ``small``: its constants and its integer buffers count."""
    twin = _copy(small, _precision(cut))
    mine = _state(twin)
    with torch.no_grad():
        for name, planned in _state(cut).items():
            if planned.dtype.is_floating_point:
                mine[name].copy_(planned)
    error, _, problem = _difference(cut, twin, inputs)
    return _exact("shrunk computes as planned", error, tolerance, problem)
