"""What stays makes up for what goes: least squares in one block, in the model that is cut so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.llm.shrink.ladder import spread
from secateur.score.calibrate import Moment, real
from secateur.score.capture import Contraction, from_matrix, matrix
from secateur.score.obs import damped
from secateur.solve.refit import observe
from secateur.types import Example


@dataclass(frozen=True, eq=False)
class Kept:
    """A weight that loses inputs.

    Attributes:
        in_dim: the axis that is summed over. columns: bool over it, True stays. bias: what goes with it, or None.
    """

    in_dim: int
    columns: Tensor
    bias: str | None = None


def make_up_(block: nn.Module, kept: Mapping[str, Kept], moments: Mapping[str, Moment], damping: float) -> None:
    """Zero the columns that go; those that stay are the least squares of what the dense block was fed.

    ``W_S = W H_{:,S} (H_SS)⁻¹`` with ``H`` the damped second moment: the end of the optimal brain surgeon's steps.
    With a bias ``H`` is the covariance, and the bias makes up for the means.
    """
    named = dict(block.named_parameters())
    for name, k in kept.items():
        m, parameter = moments[name], named[name]
        w = matrix(parameter.detach().double(), k.in_dim)
        h, s = damped(spread(m), damping), k.columns.to(w.device)
        new = torch.zeros_like(w)
        new[:, s] = torch.linalg.solve(h[s][:, s], (w @ h[:, s]).T).T
        _write(named, name, k, w, new, m)


def centre_(block: nn.Module, kept: Mapping[str, Kept], moments: Mapping[str, Moment]) -> None:
    """Zero the columns that go; where there is a bias it takes over their means: ``b += W_P E[x_P]`` (FLAP)."""
    named = dict(block.named_parameters())
    for name, k in kept.items():
        w = matrix(named[name].detach().double(), k.in_dim)
        _write(named, name, k, w, w * k.columns.to(w.device), moments[name])


def _write(named: Mapping[str, Tensor], name: str, kept: Kept, old: Tensor, new: Tensor, m: Moment) -> None:
    with torch.no_grad():
        named[name].copy_(from_matrix(new, named[name], kept.in_dim))
        if m.bias is not None:
            named[m.bias].add_((old - new) @ (m.first / m.n))


@dataclass(eq=False)
class _Sums:
    """``sum x xᵀ``, ``sum y xᵀ`` over rows, x with a constant appended where there is a bias; ``sum y²``."""

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    rows: int = 0


def refit_(
    small: nn.Module,
    dense: nn.Module,
    mine: Sequence[Example],
    theirs: Sequence[Example],
    kept: Mapping[str, Kept],
    damping: float = 1e-2,
    residual: float = 1.0,
) -> dict[str, tuple[float, float]]:
    """Refit the consumers of one block, in the order of execution; returns (error before, after) by weight.

    ``min_W || Y - W x ||² + damping mean(diag H) || W - W_0 ||²`` over the columns that stay: ``x`` is what the cut
    block is fed in the cut model, ``Y`` what the dense block makes in the dense model, ``W_0`` the weight as it is
    (the optimal brain surgeon's, from dense inputs). Where the output is added to a residual stream, ``Y`` also makes
    up for ``residual`` times what that stream has lost so far. A fit that would be worse is not taken.

    Args:
        small: the masked block, changed in place. dense: its original.
        mine: examples of the block in the cut model; theirs: the same in the dense model.
        kept: weights that lost inputs.
    """
    targets = [_targets(dense, example, kept, i) for i, example in enumerate(theirs)]
    report: dict[str, tuple[float, float]] = {}
    for name in targets[0]:
        sums, old = _gather(small, mine, [t[name] for t in targets], name, kept[name], residual)
        report[name] = _solve_(small, sums, old, name, kept[name], damping)
    return report


_Target = tuple[Tensor, Tensor | None]
"""What the dense weight puts out, and what that is added to."""


def _targets(dense: nn.Module, example: Example, kept: Mapping[str, Kept], number: int) -> dict[str, _Target]:
    return {
        name: (real(c.outputs()), None if stream is None else real(c.outputs(stream)))
        for name, (c, stream) in observe(dense, example, list(kept), number).items()
    }


def _gather(
    small: nn.Module, mine: Sequence[Example], targets: Sequence[_Target], name: str, kept: Kept, residual: float
) -> tuple[_Sums, Tensor]:
    named = dict(small.named_parameters())
    w = matrix(named[name].detach().double(), kept.in_dim)
    s = kept.columns.to(w.device)
    old = w[:, s] if kept.bias is None else torch.cat([w[:, s], named[kept.bias].detach().double()[:, None]], 1)
    sums = _Sums(old.new_zeros(old.shape[1], old.shape[1]), torch.zeros_like(old))
    for number, (example, (output, stream)) in enumerate(zip(mine, targets, strict=True)):
        seen: tuple[Contraction, Tensor | None] = observe(small, example, [name], number)[name]
        c, own = seen
        x, y = real(c.rows())[:, s], output
        if kept.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        if stream is not None:
            if own is None:
                raise DataError(f"{name} feeds a residual stream in the dense block but not in the cut one")
            y = y + residual * (stream - real(c.outputs(own)))
        sums.gram += (x.T @ x).double()
        sums.cross += (y.T @ x).double()
        sums.energy += float(y.double().square().sum())
        sums.rows += len(x)
    return sums, old


def _solve_(
    small: nn.Module, sums: _Sums, old: Tensor, name: str, kept: Kept, damping: float
) -> tuple[float, float]:
    named = dict(small.named_parameters())
    inner = old.shape[1] - (kept.bias is not None)
    ridge = damping * float(sums.gram.diagonal()[:inner].mean())
    penalty = torch.full((old.shape[1],), ridge + 1e-12, dtype=old.dtype, device=old.device)
    penalty[inner:] = 1e-8 * ridge + 1e-12
    new = torch.linalg.solve(sums.gram + torch.diag(penalty), (sums.cross + old * penalty).T).T
    before, after, energy = _error(sums, old), _error(sums, new), max(sums.energy, 1e-300)
    if not bool(torch.isfinite(new).all()) or after > before:
        return before / energy, before / energy
    with torch.no_grad():
        whole = torch.zeros(len(new), len(kept.columns), dtype=new.dtype, device=new.device)
        whole[:, kept.columns.to(new.device)] = new[:, :inner]
        named[name].copy_(from_matrix(whole, named[name], kept.in_dim))
        if kept.bias is not None:
            named[kept.bias].copy_(new[:, -1])
    return before / energy, max(after, 0.0) / energy


def _error(sums: _Sums, weight: Tensor) -> float:
    """``sum || y - W x ||²``."""
    return sums.energy - 2 * float((weight * sums.cross).sum()) + float(((weight @ sums.gram) * weight).sum())
