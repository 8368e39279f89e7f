"""What stays makes up for what goes: least squares in one block, in the model that is cut so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from secateur.solve.sums import ASIDE, DAMPINGS, Sums, checked_dampings, chosen, fit
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
    damping: float | None,
    dense: nn.Module | None = None,
) -> None:
    """Take columns out; those that stay are the least squares of what the dense block was fed.

    ``W_S = W H_{:,S} (H_SS)⁻¹`` with ``H`` the damped second moment: the end of the optimal brain surgeon's steps.
    With a bias ``H`` is the covariance, and the bias makes up for the means. Without damping those that stay are as
    they were, and the bias alone makes up: ``b += W_P E[x_P]`` (FLAP).

    Args:
        block: changed in place. dense: what it was cut from, where it is cut already; None: ``block`` itself.
    """
    named, whole = dict(block.named_parameters()), dict((dense or block).named_parameters())
    for name, k in kept.items():
        k = replace(k, bias=moments[name].bias)
        _write_(named, name, k, _made_up(whole, {name: k}, moments[name], damping))


def _made_up(whole: Mapping[str, Tensor], kept: Mapping[str, Kept], m: Moment, damping: float | None) -> Tensor:
    """Of weights that share their inputs, one below the other: the columns that stay, making up for those that go.

    In the rows that stay; behind them the biases, where there are any.
    """
    first = next(iter(kept.values()))
    each = {n: matrix(whole[n].detach().double(), k.in_dim) for n, k in kept.items()}
    rows = [torch.ones(len(each[n]), dtype=torch.bool) if k.rows is None else k.rows for n, k in kept.items()]
    w, r, s = torch.cat([*each.values()]), torch.cat(rows).to(m.second.device), first.columns.to(m.second.device)
    new = w[:, s]
    if damping is not None:
        h = damped(spread(m), damping, m.n)
        new = torch.linalg.solve(h[s][:, s], (w @ h[:, s]).T).T
    if first.bias is None:
        return new[r]
    bias = torch.cat([whole[k.bias].detach().double() for k in kept.values() if k.bias is not None])
    mean = m.first / m.n
    return torch.cat([new, (bias + w @ mean - new @ mean[s])[:, None]], 1)[r]


def _write_(named: Mapping[str, Tensor], name: str, kept: Kept, new: Tensor) -> None:
    """Columns that stay, and the bias behind them where there is one."""
    inner = new.shape[1] - (kept.bias is not None)
    stay = slice(None) if kept.cut else kept.columns.to(new.device)
    with torch.no_grad():
        whole = new.new_zeros(len(new), inner if kept.cut else len(kept.columns))
        whole[:, stay] = new[:, :inner]
        named[name].copy_(from_matrix(whole, named[name], kept.in_dim))
        if kept.bias is not None:
            named[kept.bias].copy_(new[:, -1])


Pairs: TypeAlias = Callable[[int], tuple[Example, Example]]
"""Examples of a block by the batch's number: in the cut model, and in the dense one."""


def refit_(
    small: nn.Module,
    dense: nn.Module,
    pairs: Pairs,
    batches: int,
    kept: Mapping[str, Kept],
    damping: float | None = 1e-2,
    ridge: float | Sequence[float] = DAMPINGS,
    residual: float = 1.0,
) -> dict[str, tuple[float, float]]:
    """Take columns out of a block's weights and refit them, in the order of execution; (error before, after) by weight.

    ``min_W || Y - W x ||² + ridge mean(diag H) || W - W_0 ||²`` over the columns that stay: ``x`` is what the cut
    block is fed in the cut model, ``Y`` what the dense block makes in the dense model, ``W_0`` what `make_up_` gives on
    the dense inputs, in the scale of ``x`` where that comes from a narrower norm. Where the output is added to a
    residual stream, ``Y`` also makes up for ``residual`` times what that stream has lost so far.

    Of several ridges each weight takes the one that loses least on batches kept aside, one in four, and is then fitted
    on all. Where none loses less there than ``W_0``, that stays.

    Args:
        small: a copy of the dense block, cut where ``kept`` says so, changed in place. dense: the block.
        pairs: asked for each of so many batches, once an input of weights. kept: weights that lose inputs.
        damping: of ``W_0``, see `make_up_`. ridge: one, or those to choose from; the first where there is one batch.

    Time: a part of a pass of both blocks, and d³ a ridge, an input of weights. Memory: d² doubles, six times.
    """
    ridges = checked_dampings(ridge)
    every = min(ASIDE if len(ridges) > 1 else 0, batches)
    seen = {name: use for name, (use, _) in observe(dense, pairs(0)[1], list(kept)).items()}
    whole, named = dict(dense.named_parameters()), dict(small.named_parameters())
    report: dict[str, tuple[float, float]] = {}
    for names in _fed_alike(seen, kept):
        mine = {n: replace(kept[n], bias=seen[n].bias) for n in names}
        outputs = [named[n].shape[1 - k.in_dim] for n, k in mine.items()]
        found, aside = _gather(small, dense, map(pairs, range(batches)), mine, residual, every)
        taken: Sequence[float | None] = ridges[:1] * len(mine)
        if aside is not None:
            taken = chosen(found.sums, aside.sums, found.start(whole, mine, damping), ridges, outputs)
            found += aside
        new, told = fit(found.sums, found.start(whole, mine, damping), taken, outputs)
        for (name, k), part, errors in zip(mine.items(), new.split(outputs), told, strict=True):
            _write_(named, name, k, part)
            report[name] = errors
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


@dataclass(eq=False)
class _Seen:
    """What weights that share their inputs saw: X in the dense block (``moment``), x in the cut one; ``sum X * x``."""

    moment: Moment
    sums: Sums
    alike: float = 0.0

    def __iadd__(self, other: _Seen) -> _Seen:
        self.moment.second += other.moment.second
        self.moment.first += other.moment.first
        self.moment.n += other.moment.n
        self.sums += other.sums
        self.alike += other.alike
        return self

    def start(self, whole: Mapping[str, Tensor], kept: Mapping[str, Kept], damping: float | None) -> Tensor:
        """What the least squares in the cut model begin with and are pulled towards, of all weights."""
        made = _made_up(whole, kept, self.moment, damping)
        if next(iter(kept.values())).cut:  # a norm over fewer channels divides by something else
            inner = self.sums.inner
            made[:, :inner] *= self.alike / max(float(self.sums.gram.diagonal()[:inner].sum()), 1e-300)
        return made


def _gather(
    small: nn.Module,
    dense: nn.Module,
    pairs: Iterable[tuple[Example, Example]],
    kept: Mapping[str, Kept],
    residual: float,
    every: int,
) -> tuple[_Seen, _Seen | None]:
    """Sums over batches for weights that share their inputs; and over those kept aside: the last of every so many."""
    first, named = next(iter(kept.values())), dict(small.named_parameters())
    s = first.columns.to(next(small.parameters()).device)
    inner, outputs = int(s.sum()), sum(named[n].shape[1 - k.in_dim] for n, k in kept.items())

    def none() -> _Seen:
        zeros = torch.zeros(len(s), len(s), dtype=torch.float64, device=s.device)
        old = zeros.new_zeros(outputs, inner + (first.bias is not None))
        return _Seen(Moment(zeros, zeros[0].clone(), 0, first.in_dim, 1, first.bias), Sums.zeros(old, inner))

    found, aside = none(), none() if every > 1 else None
    for number, (mine, theirs) in enumerate(pairs):
        targets, own = observe(dense, theirs, list(kept), number), observe(small, mine, list(kept), number)
        use = next(iter(kept))
        rows, x = real(targets[use][0].rows()), real(own[use][0].rows())
        if len(rows) != len(x):
            raise DataError(
                f"{use} is fed {len(x)} rows in the cut model where the dense one has {len(rows)}: a router sends "
                "other tokens there once the residual stream is narrower; leave the width as it is"
            )
        x = x if first.cut else x[:, s]
        one = aside if aside is not None and number % every == every - 1 else found
        one.alike += float((rows[:, s] * x).sum(dtype=torch.float64))
        one.moment.second += (rows.T @ rows).double()
        one.moment.first += rows.double().sum(0)
        one.moment.n += len(rows)
        ys = [_target(name, k, targets[name], own[name], residual) for name, k in kept.items()]
        one.sums.add_(x, torch.cat(ys, 1))
    return found, aside


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
