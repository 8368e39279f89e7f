"""Run a model over calibration data and keep the sums that a criterion needs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from secateur.calling import as_call, example_of, run, tensors_of
from secateur.errors import ArgumentError, DataError
from secateur.graph.couple import Groups
from secateur.products import fast_for
from secateur.score.capture import Contraction, Uses, Watch, version
from secateur.types import Batches, Criterion, Example, Floats

log = logging.getLogger("secateur")


def calibrate(model: nn.Module, batches: Batches, criterion: Criterion, groups: Groups | None = None) -> Any:
    """The statistics that a criterion needs, from one pass over the data; None if it needs none.

    Args:
        model: the dense model; left as it was.
        batches: examples, or pairs ``(example, targets)``.
        criterion: what will use them.
        groups: keeps only what these need (less memory); None keeps all.

    Raises:
        DataError: no batches, NaN or inf in one, or one that the model refuses.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(2, 1)
        >>> calibrate(net, [torch.ones(3, 2)], sc.obs)["weight"].second
        tensor([[3., 3.],
                [3., 3.]], dtype=torch.float64)
        >>> calibrate(net, [], sc.magnitude) is None
        True
    """
    if not isinstance(criterion, Criterion):
        raise ArgumentError(f"criterion must be a Criterion, such as sc.taylor or sc.random(seed), got {criterion!r}")
    return None if criterion.stat is None else criterion.stat(model, batches, groups)


def checked(model: nn.Module, batches: Batches) -> Iterator[tuple[int, Example, Any]]:
    """(number, example, targets) of every batch on the model's device, refused where empty or not finite."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches must be an iterable of batches, got {type(batches).__name__}: pass [batch] for a single one"
        )
    split = example_of(model)
    number = -1
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for number, batch in enumerate(batches):
        example, targets = split(batch)
        for t in tensors_of(as_call(example)):
            if t.numel() == 0:
                raise DataError(f"calibration batch {number} has an empty tensor of shape {tuple(t.shape)}")
            if t.dtype.is_floating_point and not bool(torch.isfinite(t).all()):
                raise DataError(f"calibration batch {number} has NaN or inf in a tensor of shape {tuple(t.shape)}")
        yield number, tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, example), targets
    if number < 0:
        raise DataError("calibration data is empty: give at least one batch (an exhausted iterator counts as empty)")


def forward(model: nn.Module, example: Example, number: int) -> Any:
    """Run the model on a calibration batch.

    Raises:
        DataError: it refuses the batch.
    """
    try:
        return run(model, example)
    except (TypeError, RuntimeError, ValueError, IndexError, KeyError, AssertionError, AttributeError) as error:
        words = str(error).splitlines() or [""]
        raise DataError(
            f"the model refuses calibration batch {number}: {type(error).__name__}: {words[0]}. "
            "Give what its forward takes, or pairs (example, targets)"
        ) from error


def used_otherwise(model: nn.Module, example: Example) -> set[str]:
    """Weights that are used in other ways than `Watch` tells of, by first name: a head that is the embedding too."""
    told: Counter[str] = Counter()
    with Uses(model) as uses, Watch(model, lambda c: told.update([c.weight])):
        forward(model, example, 0)
    return {name for name in told if uses.of[name] > told[name]}


@dataclass(eq=False)
class Moment:
    """Second moment of a weight's inputs: ``second = sum x xᵀ`` (d, d), ``first = sum x`` (d,), over ``n`` rows."""

    second: Tensor
    first: Tensor
    n: int
    in_dim: int
    taps: int
    bias: str | None


def moments(model: nn.Module, batches: Batches, groups: Groups | None = None, warn: bool = True) -> dict[str, Moment]:
    """Second moments of the inputs of every weight that a group's units feed, float64, by parameter name.

    ``warn``: say so where a weight has fewer rows of data than inputs.

    Memory: d² doubles a weight, d the inputs (times taps for a convolution); time: n d² a weight.
    """
    wanted = None if groups is None else {s.name for g in groups for s in g.slices if s.role == "in"}
    found: dict[str, Moment] = {}
    known: list[tuple[Tensor, tuple[Any, ...], _Sums]] = []  # inputs seen in this pass: q, k and v share theirs

    def seen(c: Contraction) -> None:
        if wanted is not None and c.weight not in wanted:
            return
        key = (version(c.x), c.taps, *c.unfold.items())
        sums = next((s for x, k, s in known if x is c.x and k == key), None)
        if sums is None:
            rows = real(c.rows(most=ROWS))
            sums = ((rows.T @ rows).double(), rows.double().sum(0), len(rows))
            known.append((c.x, key, sums))
        second, first, n = sums
        m = found.get(c.weight)
        if m is None:
            found[c.weight] = Moment(second.clone(), first.clone(), n, c.in_dim, c.taps, c.bias)
        else:
            m.second += second
            m.first += first
            m.n += n

    with quiet_eval(model), torch.no_grad():
        for number, example, _ in checked(model, batches):
            known.clear()
            with fast_for(model), Watch(model, seen):
                forward(model, example, number)
    for name, m in found.items():
        if not bool(torch.isfinite(m.second).all()):
            raise DataError(f"the inputs of {name} are not finite on the calibration data")
    few = {name: m.n / len(m.first) for name, m in found.items() if m.n < len(m.first)}
    if few and warn:
        worst = min(few, key=lambda name: few[name])
        log.warning(
            "calibration: %d of %d weights have fewer rows of data than inputs (%s: %d rows, %d inputs), so what is "
            "fitted there is held back; give more batches, or limit max_sparsity",
            len(few),
            len(found),
            worst,
            found[worst].n,
            len(found[worst].first),
        )
    return found


ROWS = 16384
"""Rows of a batch that sums are taken over, at most, evenly spaced: a convolution has one row a pixel."""
_Sums: TypeAlias = tuple[Tensor, Tensor, int]
"""``sum x xᵀ``, ``sum x`` and the number of rows."""


def real(rows: Tensor) -> Tensor:
    """Rows in a precision that sums can be taken in: float32, or float64 where the model has it."""
    return rows if rows.dtype == torch.float64 else rows.float()


@contextmanager
def quiet_eval(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, every training flag put back afterwards."""
    training = [m for model in models for m in model.modules() if m.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


@dataclass(eq=False)
class Contributions:
    """What each position of each parameter axis adds to ``sum w dL/dw``, one row a batch: signed, before squaring."""

    rows: Mapping[tuple[str, int], Floats] = field(default_factory=dict)


Loss = Callable[[Any, Any, torch.Generator], Tensor]
"""(model output, targets or None, generator) -> scalar."""


def contributions(model: nn.Module, batches: Batches, loss: Loss, groups: Groups | None = None) -> Contributions:
    """Signed first-order terms, kept by position: one backward pass a batch, one short vector an axis."""
    axes = None if groups is None else {(s.name, s.dim) for g in groups for s in g.slices}
    rows: dict[tuple[str, int], list[Floats]] = {}
    generator = torch.Generator().manual_seed(0)
    named = dict(model.named_parameters())
    required = {n: p.requires_grad for n, p in named.items()}
    try:
        for p in named.values():
            p.requires_grad_(p.dtype.is_floating_point)
        with quiet_eval(model), torch.enable_grad(), fast_for(model):
            for number, example, targets in checked(model, batches):
                value = loss(forward(model, example, number), targets, generator)
                if not bool(torch.isfinite(value)):
                    raise DataError(f"the loss on calibration batch {number} is {float(value.detach())}")
                if not value.requires_grad:
                    raise DataError("the loss has no gradient: the model or the loss detaches it (no_grad?)")
                learn = [p for p in named.values() if p.requires_grad]
                grads = torch.autograd.grad(value, learn, allow_unused=True)
                by_name = dict(zip([n for n, p in named.items() if p.requires_grad], grads, strict=True))
                for name, grad in by_name.items():
                    for dim in range(named[name].dim()):
                        if axes is None or (name, dim) in axes:
                            rows.setdefault((name, dim), []).append(_along(named[name], grad, dim))
    finally:
        for n, p in named.items():
            p.requires_grad_(required[n])
    return Contributions({key: np.stack(r) for key, r in rows.items()})


def _along(weight: Tensor, grad: Tensor | None, dim: int) -> Floats:
    if grad is None:
        return np.zeros(weight.shape[dim])
    product = (weight.detach() * grad).double()
    others = [d for d in range(weight.dim()) if d != dim]
    out: Floats = (product.sum(others) if others else product).cpu().numpy()
    return out


def default_loss(output: Any, targets: Any, generator: torch.Generator) -> Tensor:
    """The output's own ``loss``, else cross-entropy for integer targets, squared error for others.

    Without targets it is a random projection of the outputs, scaled to their size: the square of its first-order
    term is, in expectation, the squared change of the outputs (Gauss-Newton), so no label is needed.

    Raises:
        DataError: the targets do not fit the output, or the output holds nothing to learn from.
    """
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    tensors = [t for t in tensors_of(output) if t.dtype.is_floating_point]
    if not tensors:
        raise DataError(f"the model's output, {type(output).__name__}, holds no floating-point tensor: give a loss")
    if targets is None:
        total = torch.zeros((), dtype=tensors[0].dtype, device=tensors[0].device)
        for t in tensors:
            sign = torch.randint(0, 2, t.shape, generator=generator).to(t.device, t.dtype) * 2 - 1
            total = total + (sign * t).sum() / (t.detach().norm() + 1e-12)
        return total
    first, shape = tensors[0], tuple(tensors[0].shape)
    if isinstance(targets, Tensor):
        targets = targets.to(first.device)
        if targets.dtype.is_floating_point and targets.squeeze().shape == first.squeeze().shape:
            return F.mse_loss(first, targets.view_as(first))
        if not targets.dtype.is_floating_point and targets.shape == shape[:-1]:  # classes last: rows, tokens
            return F.cross_entropy(first.reshape(-1, shape[-1]), targets.reshape(-1))
        if not targets.dtype.is_floating_point and targets.shape == (*shape[:1], *shape[2:]):  # classes second: pixels
            return F.cross_entropy(first, targets)
    given = (targets.dtype, tuple(targets.shape)) if isinstance(targets, Tensor) else type(targets).__name__
    raise DataError(f"targets {given} do not fit the output of shape {shape}: give sc.taylor_with(loss)")
