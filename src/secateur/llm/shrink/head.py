"""Behind a narrower stream: the last norm is scaled so that the head says what it said, by least squares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from secateur.graph.surgery import apply
from secateur.llm.live import Live
from secateur.llm.recording import run_model
from secateur.llm.shrink.tail import Tail
from secateur.llm.source import Source
from secateur.score.capture import Contraction, Enough, Watch, matrix
from secateur.types import Bools, Plan

RIDGE = 1e-2
ROWS = 4096
_SCALED: Sequence[Callable[[Tensor, Tensor], Tensor]] = (lambda w, g: g * w, lambda w, g: g * (1 + w) - 1)
"""How a norm is scaled by what it multiplies with: its weight, or one and its weight."""


def scaled_norms(
    source: Source, paths: Sequence[str], plan: Plan, names: Sequence[str], channels: Bools, live: Live
) -> dict[str, Tensor]:
    """Norm weights and biases behind the last block, scaled so that the scores of the next token change least.

    ``min_g sum_t || E X_t - E_S (g * x_t) ||²`` with the head's ``E``, centred over the vocabulary (what all words
    share changes no prediction), its inputs ``X`` in the dense model and ``x`` in the cut one: one solve, the channels
    cubed, since ``E_SᵀE_S`` and ``sum x xᵀ`` are all that it takes. A ridge pulls towards one scale for all.

    Args:
        source: the dense model. plan: takes the channels out. names: of the vectors outside of the blocks that it cuts.
        channels: that stay. live: the last block, cut, with its dense twin.

    Returns:
        New values by name; none where the head is not fed by such a norm.

    Memory: what lies outside of the blocks, twice.
    """
    dense, small = (_tail(source, paths, live) for _ in range(2))
    small.model = apply(plan, small.model)
    stay = torch.from_numpy(channels).to(live.device)
    head = _head(dense, live.dense.run(0))
    read = None if head is None else plan.axes.get((head.weight, head.in_dim))
    if head is None or read is None or not np.array_equal(read, channels):
        return {}
    square, cross = _sums(dense, small, head.weight, live)
    words = _spread(dict(dense.model.named_parameters(remove_duplicate=False))[head.weight], head.in_dim)[stay]
    gain = _solved(words[:, stay] * square, (words * cross.T).sum(1))
    return _scaled(small, names, gain, head.weight, live.run(0))


def _tail(source: Source, paths: Sequence[str], live: Live) -> Tail:
    return Tail(source, paths, live.hidden.dtype, live.device)


def _spread(weight: Tensor, in_dim: int) -> Tensor:
    """``EᵀE`` of a head's matrix less the mean of its rows, float64, some rows at a time."""
    rows = matrix(weight.detach(), in_dim)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    square = total.new_zeros(len(total), len(total))
    for part in rows.split(ROWS):
        total += part.double().sum(0)
        square += part.double().T @ part.double()
    return square - torch.outer(total, total) / len(rows)


def _head(tail: Tail, hidden: Tensor, weight: str | None = None) -> Contraction | None:
    """The last product with a weight that the model makes behind its blocks; where that is known, its input alone."""
    seen: list[Contraction] = []
    tail.given = hidden
    with contextlib.suppress(Enough), torch.no_grad(), Watch(tail.model, seen.append, last=weight):
        run_model(tail.model, torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device))
    return seen[-1] if seen else None


def _fed(tail: Tail, hidden: Tensor, weight: str) -> Tensor:
    """Inputs of the head, (rows, width)."""
    head = _head(tail, hidden, weight)
    assert head is not None
    return head.rows()


def _sums(dense: Tail, small: Tail, weight: str, live: Live) -> tuple[Tensor, Tensor]:
    """``sum x xᵀ`` of the head's inputs in the cut model, and ``sum X xᵀ`` with those in the dense one."""
    square, cross = torch.zeros(()), torch.zeros(())
    for i in range(len(live)):
        theirs, mine = _fed(dense, live.dense.run(i), weight), _fed(small, live.run(i), weight)
        square = square + (mine.T @ mine).double()
        cross = cross + (theirs.T @ mine).double()
    return square, cross


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """``a g = b`` with a ridge towards the best single scale."""
    one = float(b.sum() / a.sum().clamp_min(1e-300))
    ridge = RIDGE * a.diagonal().mean()
    gain: Tensor = torch.linalg.solve(a + ridge * torch.eye(len(b), dtype=a.dtype, device=a.device), b + ridge * one)
    return gain


def _scaled(tail: Tail, names: Sequence[str], gain: Tensor, weight: str, hidden: Tensor) -> dict[str, Tensor]:
    """The vectors that scale the head's input by a gain, as is tried out."""
    named = dict(tail.model.named_parameters(remove_duplicate=False))
    held = {n: named[n].detach().clone() for n in names}

    def fed(values: Mapping[str, Tensor]) -> Tensor:
        for name, value in {**held, **values}.items():
            named[name].data.copy_(value)
        return _fed(tail, hidden, weight)

    before = fed({})
    used = {n: w for n, w in held.items() if not torch.equal(fed({n: w + 1}), before)}
    for scaled in _SCALED:
        new = {n: scaled(w.double(), gain).to(w.dtype) for n, w in used.items()}
        wanted = before * gain.to(before.dtype)
        if new and float((fed(new) - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max()):
            return new
    return {}
