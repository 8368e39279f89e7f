"""Refit what is left: least squares on calibration data, layer after layer, against the dense model's outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.score.calibrate import checked, subsample
from secateur.score.capture import Contraction, Watch, from_matrix, matrix
from secateur.types import Batches, Example, Plan, run

log = logging.getLogger("secateur")


class _Enough(BaseException):
    """Everything wanted was seen: the rest of the forward pass is not needed."""


@dataclass(eq=False)
class _Sums:
    """Sums for ``min || Y - W X ||²`` with a constant input appended: the bias is refitted too."""

    gram: Tensor  # sum [x; 1][x; 1]ᵀ
    cross: Tensor  # sum y [x; 1]ᵀ
    energy: float = 0.0
    error: float = 0.0


def refit_(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    batches: Batches,
    damping: float = 1e-2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Refit every weight that lost inputs, in the order of execution; returns (error before, after) by weight.

    For each such weight: ``min_W || Y - W [x; 1] ||² + damping ||W - W_cut||²`` where ``x`` is its input in the *small*
    model as refitted so far and ``Y`` its output in the *dense* one; where the output is added to a residual stream,
    ``Y`` also makes up for what that stream has lost so far. Errors are relative to the energy of ``Y``.
    Masked least squares (arXiv:2302.04089 and 2407.06483), with the asymmetric inputs of GPTQ-like propagation.

    Args:
        small: changed in place. dense: what it was cut from. plan: the cut. batches: examples; labels are ignored.
        damping: relative to the mean of the inputs' second moment.

    Time: one forward pass of each model over the data and one solve, inputs cubed, a weight. Memory: inputs squared.
    """
    data = [example for _, example, _ in checked(small, batches)]
    order = _consumers(small, plan, data[0])
    report: dict[str, tuple[float, float]] = {}
    training = [m for model in (small, dense) for m in model.modules() if m.training]
    small.eval()
    dense.eval()
    try:
        with torch.no_grad():
            for i, c in enumerate(order):
                before, after = _refit_one_(small, dense, plan, data, c, damping)
                report[c.weight] = (before, after)
                log.info("refit %s: relative error %.4f -> %.4f", c.weight, before, after)
                if progress is not None:
                    progress(i + 1, len(order))
    finally:
        for m in training:
            m.training = True
    return report


def _consumers(small: nn.Module, plan: Plan, example: Example) -> list[Contraction]:
    """Weights that lost inputs and are used once, in order of use."""
    uses: dict[str, list[Contraction]] = {}

    def seen(c: Contraction) -> None:
        if (c.weight, c.in_dim) in plan.axes:
            uses.setdefault(c.weight, []).append(c)

    with torch.no_grad(), Watch(small, seen):
        run(small.eval(), example)
    return [cs[0] for cs in uses.values() if len(cs) == 1]


def observe(model: nn.Module, example: Example, weight: str) -> tuple[Contraction, Tensor | None]:
    """A weight's input and output on an example, and what its output is added to, if that comes next."""
    found: list[Contraction] = []
    other: list[Tensor] = []

    def seen(c: Contraction) -> None:
        if found:
            raise _Enough
        if c.weight == weight:
            found.append(c)

    def added(total: Tensor, left: Tensor, right: Tensor) -> None:
        if not found:
            return
        y = found[0].y
        for mine, theirs in ((left, right), (right, left)):
            if mine.shape == y.shape == theirs.shape and mine.data_ptr() == y.data_ptr():
                other.append(theirs)
                raise _Enough

    try:
        with Watch(model, seen, added):
            run(model, example)
    except _Enough:
        pass
    if not found:
        raise DataError(f"{weight} is not used on this calibration example: give examples that take the same path")
    return found[0], other[0] if other else None


def _refit_one_(
    small: nn.Module, dense: nn.Module, plan: Plan, data: Sequence[Example], use: Contraction, damping: float
) -> tuple[float, float]:
    named = dict(small.named_parameters(remove_duplicate=False))
    weight = named[use.weight]
    bias = named[use.bias] if use.bias else None
    old = matrix(weight.detach(), use.in_dim).double()
    if bias is not None:
        old = torch.cat([old, bias.detach().double()[:, None]], 1)
    rows = plan.axes.get((use.weight, 1 - use.in_dim))
    keep = None if rows is None else torch.from_numpy(rows).to(weight.device)
    sums = _gather(small, dense, data, use.weight, keep, old, bias is not None)
    inner = old.shape[1] - (bias is not None)
    ridge = damping * float(sums.gram.diagonal()[:inner].mean())
    penalty = torch.full((old.shape[1],), ridge, dtype=torch.float64, device=old.device)
    if bias is not None:
        penalty[-1] = 1e-8 * ridge
    system = sums.gram + torch.diag(penalty + 1e-12)
    new = torch.linalg.solve(system, (sums.cross + old * penalty).T).T
    after = sums.energy - 2 * float((new * sums.cross).sum()) + float(((new @ sums.gram) * new).sum())
    if not bool(torch.isfinite(new).all()) or after > sums.error:
        return sums.error / sums.energy, sums.error / sums.energy  # singular data: the cut weight stays
    weight.copy_(from_matrix(new[:, :inner], weight, use.in_dim).to(weight.dtype))
    if bias is not None:
        bias.copy_(new[:, -1].to(bias.dtype))
    return sums.error / max(sums.energy, 1e-300), max(after, 0.0) / max(sums.energy, 1e-300)


def _gather(
    small: nn.Module,
    dense: nn.Module,
    data: Sequence[Example],
    weight: str,
    keep: Tensor | None,
    old: Tensor,
    biased: bool,
) -> _Sums:
    d, out = old.shape[1], old.shape[0]
    sums = _Sums(old.new_zeros(d, d), old.new_zeros(out, d))
    for example in data:
        mine, residual = observe(small, example, weight)
        theirs, dense_residual = observe(dense, example, weight)
        target = _kept(theirs.outputs(), keep)
        if residual is not None and dense_residual is not None:
            target = target + _kept(theirs.outputs(dense_residual), keep) - mine.outputs(residual)
        x = subsample(mine.rows().float())
        y = subsample(target.float())
        if biased:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        sums.gram += (x.T @ x).double()
        sums.cross += (y.T @ x).double()
        sums.energy += float(y.double().square().sum())
    fitted = float((old * sums.cross).sum())
    sums.error = sums.energy - 2 * fitted + float(((old @ sums.gram) * old).sum())
    return sums


def _kept(rows: Tensor, keep: Tensor | None) -> Tensor:
    return rows if keep is None else rows[:, keep]
