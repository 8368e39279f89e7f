"""What stays makes up for what goes: least squares in one block, in the model that is cut so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

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
        in_dim: the axis that is summed over. columns: bool over it, True stays. bias: what goes with it, or None:
            told by how the weight is used.
        rows: bool over the outputs, those that the cut block's weight has; None: all.
        cut: whether the cut block's weight has the columns that stay alone; else all, the others zero.
    """

    in_dim: int
    columns: Tensor
    bias: str | None = None
    rows: Tensor | None = None
    cut: bool = False


def make_up_(
    block: nn.Module,
    kept: Mapping[str, Kept],
    moments: Mapping[str, Moment],
    damping: float,
    dense: nn.Module | None = None,
) -> None:
    """Take columns out; those that stay are the least squares of what the dense block was fed.

    ``W_S = W H_{:,S} (H_SS)⁻¹`` with ``H`` the damped second moment: the end of the optimal brain surgeon's steps.
    With a bias ``H`` is the covariance, and the bias makes up for the means.

    Args:
        block: changed in place. dense: what it was cut from, where it is cut already; None: ``block`` itself.
    """
    named, whole = dict(block.named_parameters()), dict((dense or block).named_parameters())
    for name, k in kept.items():
        m, parameter = moments[name], whole[name]
        w = matrix(parameter.detach().double(), k.in_dim)
        h, s = damped(spread(m), damping, m.n), k.columns.to(w.device)
        new = torch.zeros_like(w)
        new[:, s] = torch.linalg.solve(h[s][:, s], (w @ h[:, s]).T).T
        _write(named, name, k, w, new, m)


def centre_(
    block: nn.Module, kept: Mapping[str, Kept], moments: Mapping[str, Moment], dense: nn.Module | None = None
) -> None:
    """Take columns out; where there is a bias it takes over their means: ``b += W_P E[x_P]`` (FLAP). See `make_up_`."""
    named, whole = dict(block.named_parameters()), dict((dense or block).named_parameters())
    for name, k in kept.items():
        w = matrix(whole[name].detach().double(), k.in_dim)
        _write(named, name, k, w, w * k.columns.to(w.device), moments[name])


def _write(named: Mapping[str, Tensor], name: str, kept: Kept, old: Tensor, new: Tensor, m: Moment) -> None:
    with torch.no_grad():
        lost = (old - new) @ (m.first / m.n)
        if kept.rows is not None:
            new, lost = new[kept.rows.to(new.device)], lost[kept.rows.to(new.device)]
        new = new[:, kept.columns.to(new.device)] if kept.cut else new
        named[name].copy_(from_matrix(new, named[name], kept.in_dim))
        if m.bias is not None:
            named[m.bias].add_(lost)


@dataclass(eq=False)
class _Sums:
    """``sum x xᵀ``, ``sum y xᵀ`` over rows, x with a constant appended where there is a bias; ``sum y²``.

    And of the same columns of the dense inputs, X: ``sum X * x``.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    alike: float = 0.0

    def scale(self, inner: int) -> float:
        """What ``x`` is best multiplied with to be ``X``: a norm over fewer channels divides by something else."""
        return self.alike / max(float(self.gram.diagonal()[:inner].sum()), 1e-300)


Pairs: TypeAlias = Callable[[], Iterable[tuple[Example, Example]]]
"""Examples of a block by batch: in the cut model, and in the dense one."""


def refit_(
    small: nn.Module,
    dense: nn.Module,
    pairs: Pairs,
    kept: Mapping[str, Kept],
    damping: float | None = 1e-2,
    ridge: float = 1e-2,
    residual: float = 1.0,
) -> dict[str, tuple[float, float]]:
    """Take columns out of a block's weights and refit them, in the order of execution; (error before, after) by weight.

    ``min_W || Y - W x ||² + ridge mean(diag H) || W - W_0 ||²`` over the columns that stay: ``x`` is what the cut
    block is fed in the cut model, ``Y`` what the dense block makes in the dense model, ``W_0`` what `make_up_` gives on
    the dense inputs (or `centre_`, without damping), in the scale of ``x`` where that comes from a narrower norm. Where
    the output is added to a residual stream, ``Y`` also makes up for ``residual`` times what that stream has lost so
    far. A fit that would be worse than ``W_0`` is not taken.

    Args:
        small: a copy of the dense block, cut where ``kept`` says so, changed in place. dense: the block.
        pairs: called once a weight. kept: weights that lose inputs.

    Time: a part of a pass of both blocks, and d³, an input of weights. Memory: d² doubles, three times.
    """
    seen = {name: use for name, (use, _) in observe(dense, next(iter(pairs()))[1], list(kept)).items()}
    report: dict[str, tuple[float, float]] = {}
    for names in _fed_alike(seen, kept):
        mine = {n: replace(kept[n], bias=seen[n].bias) for n in names}
        moment, sums = _gather(small, dense, pairs, mine, residual)
        for name, k in mine.items():
            m = replace(moment, bias=k.bias)
            if damping is None:
                centre_(small, {name: k}, {name: m}, dense)
            else:
                make_up_(small, {name: k}, {name: m}, damping, dense)
            if k.cut:
                small.get_parameter(name).data.mul_(sums[name].scale(int(k.columns.sum())))
            report[name] = _solve_(small, sums[name], name, k, ridge)
    return report


def _fed_alike(seen: Mapping[str, Contraction], kept: Mapping[str, Kept]) -> list[list[str]]:
    """Names in the order of execution; neighbours that share their inputs, as query, key and value do, together."""
    found: list[list[str]] = []
    for name, use in seen.items():
        last = found[-1][-1] if found else name
        a, b, before = kept[last], kept[name], seen[last]
        alike = (a.cut, before.unfold, before.bias is None) == (b.cut, use.unfold, use.bias is None)
        if found and alike and torch.equal(a.columns, b.columns) and torch.equal(before.x, use.x):
            found[-1].append(name)
        else:
            found.append([name])
    return found


def _gather(
    small: nn.Module, dense: nn.Module, pairs: Pairs, kept: Mapping[str, Kept], residual: float
) -> tuple[Moment, dict[str, _Sums]]:
    """Moments of the dense inputs that these weights share, and sums over those in the cut model by weight."""
    first, named = next(iter(kept.values())), dict(small.named_parameters())
    s = first.columns.to(next(small.parameters()).device)
    inner = int(s.sum()) + (first.bias is not None)
    zeros = torch.zeros(len(s), len(s), dtype=torch.float64, device=s.device)
    moment = Moment(zeros, zeros[0].clone(), 0, first.in_dim, 1, first.bias)
    gram, alike = zeros.new_zeros(inner, inner), 0.0
    sums = {n: _Sums(gram, zeros.new_zeros(named[n].shape[1 - k.in_dim], inner)) for n, k in kept.items()}
    for number, (mine, theirs) in enumerate(pairs()):
        targets, own = observe(dense, theirs, list(kept), number), observe(small, mine, list(kept), number)
        use = next(iter(kept))
        rows, x = real(targets[use][0].rows()), real(own[use][0].rows())
        if len(rows) != len(x):
            raise DataError(
                f"{use} is fed {len(x)} rows in the cut model where the dense one has {len(rows)}: a router sends "
                "other tokens there once the residual stream is narrower; leave the width as it is"
            )
        x = x if first.cut else x[:, s]
        alike += float((rows[:, s] * x).sum(dtype=torch.float64))
        if first.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        moment.second += (rows.T @ rows).double()
        moment.first += rows.double().sum(0)
        moment.n += len(rows)
        gram += (x.T @ x).double()
        for name, k in kept.items():
            y = _target(name, k, targets[name], own[name], residual)
            sums[name].cross += (y.T @ x).double()
            sums[name].energy += float(y.double().square().sum())
    for one in sums.values():
        one.alike = alike
    return moment, sums


def _target(
    name: str,
    kept: Kept,
    target: tuple[Contraction, Tensor | None],
    own: tuple[Contraction, Tensor | None],
    residual: float,
) -> Tensor:
    """What a weight is to put out: as the dense one does, and what the stream that it is added to has lost."""
    rows = slice(None) if kept.rows is None else kept.rows.to(target[0].y.device)
    y = real(target[0].outputs())[:, rows]
    if target[1] is None:
        return y
    if own[1] is None:
        raise DataError(f"{name} feeds a residual stream in the dense block but not in the cut one")
    return y + residual * (real(target[0].outputs(target[1]))[:, rows] - real(own[0].outputs(own[1])))


def _solve_(small: nn.Module, sums: _Sums, name: str, kept: Kept, damping: float) -> tuple[float, float]:
    named = dict(small.named_parameters())
    stay = slice(None) if kept.cut else kept.columns.to(sums.gram.device)
    old = matrix(named[name].detach().double(), kept.in_dim)[:, stay]
    if kept.bias is not None:
        old = torch.cat([old, named[kept.bias].detach().double()[:, None]], 1)
    inner = old.shape[1] - (kept.bias is not None)
    ridge = damping * float(sums.gram.diagonal()[:inner].mean())
    penalty = torch.full((old.shape[1],), ridge + 1e-12, dtype=old.dtype, device=old.device)
    penalty[inner:] = 1e-8 * ridge + 1e-12
    new = torch.linalg.solve(sums.gram + torch.diag(penalty), (sums.cross + old * penalty).T).T
    before, after, energy = _error(sums, old), _error(sums, new), max(sums.energy, 1e-300)
    if not bool(torch.isfinite(new).all()) or after > before:
        return before / energy, before / energy
    with torch.no_grad():
        whole = torch.zeros(len(new), inner if kept.cut else len(kept.columns), dtype=new.dtype, device=new.device)
        whole[:, stay] = new[:, :inner]
        named[name].copy_(from_matrix(whole, named[name], kept.in_dim))
        if kept.bias is not None:
            named[kept.bias].copy_(new[:, -1])
    return before / energy, max(after, 0.0) / energy


def _error(sums: _Sums, weight: Tensor) -> float:
    """``sum || y - W x ||²``."""
    return sums.energy - 2 * float((weight * sums.cross).sum()) + float(((weight @ sums.gram) * weight).sum())
