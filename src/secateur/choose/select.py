"""The largest of many, by count: exact, stable, and no copy of what is chosen from.

The smallest score that is kept is found by radix selection: the bits of the floats are counted, 16 at a time from the
highest, over chunks that fit a cache. Two passes for 32 bits, four for 64. On a CPU this is numpy's work on one core:
torch would start its threads for every chunk, and on a busy machine they wait for each other longer than they work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from secateur.errors import PlanError

Chunk: TypeAlias = Any
"""A numpy array on a CPU, a tensor elsewhere."""

CHUNK = 1 << 18
"""Scores looked at together."""

SMALL = 1 << 15
"""So few scores are sorted: counting digits costs as much as sorting these."""


def top(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """Mask of the ``keep`` largest scores, ties to the earlier position: nested over ``keep``.

    Linear in the number of scores; beside the mask it takes memory for a chunk of them only.

    Args:
        scores: any shape, float. keep: how many. alive: bool, the same shape; only these can be kept.

    Raises:
        PlanError: a score is NaN or inf, ``alive`` does not fit, or there are fewer alive than are to be kept.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 3.0, 0.0]), 2)
        tensor([False,  True,  True, False])
    """
    values, lives = [_flat(scores)], None if alive is None else [_flat(alive)]
    _check(values, lives, keep)
    if keep == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.numel() <= SMALL:
        return _by_sorting(values[0], keep, None if lives is None else lives[0]).reshape(scores.shape)
    edge = _edge(values, keep, lives)
    above, equal = _compared(values, edge, lives)
    return _mask(values[0], edge, keep - above, equal, None if lives is None else lives[0]).reshape(scores.shape)


def top_counts(scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None = None) -> list[int]:
    """How many of each tensor are among the ``keep`` largest of all; ties to the earlier tensor and position.

    Args:
        scores: of any shapes, float. keep: how many of all. alive: bool, of the same shapes; only these count.

    Raises:
        PlanError: a score is NaN or inf, ``alive`` does not fit, or there are fewer alive than are to be kept.

    Example:
        >>> top_counts([torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])], 3)
        [1, 2]
    """
    values, lives = [_flat(s) for s in scores], None if alive is None else [_flat(a) for a in alive]
    _check(values, lives, keep)
    if keep == 0:
        return [0] * len(values)
    if len({s.dtype for s in values}) > 1:
        values = [s.double() for s in values]
    if sum(s.numel() for s in values) <= SMALL:
        device = values[0].device
        flat, mine = (None if t is None else torch.cat([p.to(device) for p in t]) for t in (values, lives))
        assert flat is not None
        parts = _by_sorting(flat, keep, mine).split([s.numel() for s in values])
        return [int(p.sum()) for p in parts]
    edge = _edge(values, keep, lives)
    found = [_compared([s], edge, None if lives is None else [lives[i]]) for i, s in enumerate(values)]
    counts, left = [], keep - sum(more for more, _ in found)
    for more, same in found:
        counts.append(more + min(same, left))
        left -= min(same, left)
    return counts


def top_per_row(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """Mask of the ``keep`` largest of every row of a matrix, ties to the earlier column: nested over ``keep``.

    Args:
        scores: float (rows, columns). keep: of every row. alive: bool, the same shape; only these can be kept.

    Raises:
        PlanError: a score is NaN or inf, ``alive`` does not fit, or a row has fewer alive than are to be kept.

    Example:
        >>> top_per_row(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]), 1)
        tensor([[False,  True, False],
                [ True, False, False]])
    """
    rows, columns = scores.shape
    _check([_flat(scores)], None if alive is None else [_flat(alive)], 0)
    if not 0 <= keep <= columns:
        raise PlanError(f"cannot keep {keep} of the {columns} weights of a row: keep at most {columns}")
    if alive is not None and rows and int((fewest := alive.sum(1)).min()) < keep:
        row = int(fewest.argmin())
        raise PlanError(f"cannot keep {keep} weights of row {row}: {int(fewest[row])} of its {columns} are alive")
    if keep in (0, columns) or scores.numel() == 0:
        return torch.full(scores.shape, keep > 0, dtype=torch.bool, device=scores.device)
    step = max(1, _step(scores) // columns)
    parts = []
    for at in range(0, rows, step):
        s = _exact(scores[at : at + step].detach())
        parts.append(_best_of_rows(s if alive is None else s.masked_fill(~alive[at : at + step], -torch.inf), keep))
    return torch.cat(parts)


def _best_of_rows(s: Tensor, keep: int) -> Tensor:
    """Of every row the largest; what is -inf is never among them."""
    edge = _edges(s, s.shape[1] - keep)
    mask = _not_below(s, edge)
    extra = _counts(mask) - keep
    rows = extra.nonzero()[:, 0]  # where more are equal to the edge than there is room for
    if len(rows):
        some, at = s[rows], edge[rows]
        equal = some == at
        room = equal.sum(1) - extra[rows]
        mask[rows] = (some > at) | (equal & (equal.cumsum(1) <= room[:, None]))
    return mask


def _not_below(s: Tensor, edge: Tensor) -> Tensor:
    """Which are as large as the edge; numpy compares a row with a number three times as fast."""
    return torch.from_numpy(s.numpy() >= edge.numpy()) if s.device.type == "cpu" else s >= edge


def _counts(mask: Tensor) -> Tensor:
    """How many are True in every row; torch would first write all of them as int64."""
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1)) if mask.device.type == "cpu" else mask.sum(1)


def _edges(s: Tensor, at: int) -> Tensor:
    """Of every row the value that would stand ``at`` if it were sorted, (rows, 1)."""
    if s.device.type != "cpu":
        edges: Tensor = s.kthvalue(at + 1, dim=1, keepdim=True).values
        return edges
    return torch.from_numpy(np.partition(s.numpy(), at, axis=1)[:, at : at + 1])  # seven times as fast as torch's


def check_scores(scores: Tensor) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        PlanError: one is NaN or inf, or they are no floats.
    """
    if not scores.dtype.is_floating_point:
        raise PlanError(f"scores are {scores.dtype}; expected floats: give scores.float()")
    bad = sum(
        len(c) - _number(np.isfinite(c) if isinstance(c, np.ndarray) else c.isfinite())
        for c in _chunks([_flat(scores)])
    )
    if bad:
        raise PlanError(
            f"{bad} of {scores.numel()} scores are NaN or inf and cannot be ranked: check the weights and the data "
            "that they come from"
        )


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)


def _check(values: Sequence[Tensor], lives: Sequence[Tensor] | None, keep: int) -> None:
    if lives is not None and [a.numel() for a in lives] != [s.numel() for s in values]:
        raise PlanError(f"masks of {[a.numel() for a in lives]} weights for {[s.numel() for s in values]} scores")
    for i, s in enumerate(values):
        check_scores(s)
        if lives is not None and lives[i].dtype != torch.bool:
            raise PlanError(f"the mask of what is alive is {lives[i].dtype}; expected torch.bool")
    total = sum(s.numel() for s in values)
    there = total if lives is None else sum(int(a.sum()) for a in lives)
    if not 0 <= keep <= there:
        of = f"{total} weights" if there == total else f"the {there} weights that are alive (of {total})"
        raise PlanError(f"cannot keep {keep} of {of}: keep between 0 and {there}")


def _exact(s: Tensor) -> Tensor:
    """The same values as floats of 32 or 64 bits."""
    return s if s.dtype in (torch.float32, torch.float64) else s.float()


def _by_sorting(s: Tensor, keep: int, alive: Tensor | None) -> Tensor:
    mask = torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
    s = _exact(s) if alive is None else _exact(s).masked_fill(~alive, -torch.inf)
    mask[torch.sort(s, descending=True, stable=True).indices[:keep]] = True
    return mask


def _chunks(values: Sequence[Tensor], lives: Sequence[Tensor] | None = None) -> Iterator[Chunk]:
    """What is alive, piece by piece, as floats of 32 or 64 bits."""
    for i, s in enumerate(values):
        step = _step(s)
        for at in range(0, s.numel(), step):
            c = _plain(_exact(s[at : at + step]))
            yield c if lives is None else c[_plain(lives[i][at : at + step])]


def _step(s: Tensor) -> int:
    return CHUNK if s.device.type == "cpu" else 64 * CHUNK  # a launch costs more than a cache miss


def _plain(s: Tensor) -> Chunk:
    return s.numpy() if s.device.type == "cpu" else s


def _number(mask: Chunk) -> int:
    return int(np.count_nonzero(mask)) if isinstance(mask, np.ndarray) else int(mask.sum())


def _edge(values: Sequence[Tensor], keep: int, lives: Sequence[Tensor] | None) -> float:
    """The ``keep``-th largest value."""
    bits = 64 if values[0].dtype == torch.float64 else 32
    left, prefix, upward = keep, 0, np.arange(1 << 16)
    for shift in range(bits - 16, -1, -16):
        counts = np.zeros(1 << 16, np.int64)
        for c in _chunks(values, lives):
            counts += _digits(c, bits, shift, prefix)
        if shift == bits - 16:  # negative floats come first, and the smaller the larger their other bits
            order = np.concatenate([upward[:0x7FFF:-1], upward[:0x8000]])
        else:
            order = upward[::-1] if prefix >> (bits - shift - 17) else upward
        ranked = counts[order]
        reached = ranked[::-1].cumsum()[::-1]  # so many are as large or larger
        at = int(np.flatnonzero(reached >= left)[-1])
        left -= int(reached[at] - ranked[at])
        prefix = (prefix << 16) + int(order[at])
    return float(np.array([prefix], f"u{bits // 8}").view(f"f{bits // 8}")[0])


def _digits(c: Chunk, bits: int, shift: int, prefix: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each 16 bits at ``shift`` occur behind the higher bits ``prefix``."""
    first = shift == bits - 16
    if isinstance(c, np.ndarray):
        raw = c.view(f"u{bits // 8}")
        if not first:
            raw = raw[(raw >> (shift + 16)) == prefix]
        return np.bincount(((raw >> shift) & 0xFFFF).astype(np.int64), minlength=1 << 16)
    raw = c.view(torch.int64 if bits == 64 else torch.int32)
    if not first:
        signed = prefix - (1 << (bits - shift - 16)) if prefix >> (bits - shift - 17) else prefix
        raw = raw[(raw >> (shift + 16)) == signed]
    found: np.ndarray[tuple[int], np.dtype[np.int64]]
    found = torch.bincount((raw >> shift) & 0xFFFF, minlength=1 << 16).cpu().numpy()
    return found


def _compared(values: Sequence[Tensor], edge: float, lives: Sequence[Tensor] | None) -> tuple[int, int]:
    """How many are larger than the edge, and how many equal it."""
    more = same = 0
    for c in _chunks(values, lives):
        more += _number(c > edge)
        same += _number(c == edge)
    return more, same


def _mask(s: Tensor, edge: float, room: int, equal: int, alive: Tensor | None) -> Tensor:
    """What is larger than the edge, and the first ``room`` of what equals it."""
    mask = torch.empty(s.numel(), dtype=torch.bool, device=s.device)
    step = _step(s)
    for at, c in zip(range(0, s.numel(), step), _chunks([s]), strict=True):
        out = _plain(mask[at : at + step])
        out[:] = c >= edge
        if alive is not None:
            out &= _plain(alive[at : at + step])
        if room < equal:  # not all that are equal: the earlier ones
            tied = out & (c == edge)
            ties = np.flatnonzero(tied) if isinstance(tied, np.ndarray) else tied.nonzero()[:, 0]
            out[ties[max(room, 0) :]] = False
            room, equal = room - len(ties), equal - len(ties)
    return mask
