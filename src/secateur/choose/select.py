"""The largest of many, by count: exact, stable, and no copy of what is chosen from.

The smallest score that is kept is found by radix selection: floats become integers of the same order, and their
digits are counted, 16 bits at a time, over chunks that fit a cache. Two passes for 32 bits, four for 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from secateur.errors import PlanError

CHUNK = 1 << 19
"""Scores looked at together: what is beside the scores and the mask fits in some ten times as many bytes."""

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
    edge, above, equal = _edge(values, keep, lives)
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
    edge, above, _ = _edge(values, keep, lives)
    counts, left = [], keep - above
    for i, s in enumerate(values):
        more, same = _compared([s], edge, None if lives is None else [lives[i]])
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
    _check([_flat(scores)], None if alive is None else [_flat(alive)], keep * rows)
    if not 0 <= keep <= columns:
        raise PlanError(f"cannot keep {keep} of the {columns} weights of a row: keep at most {columns}")
    if alive is not None and rows and int((fewest := alive.sum(1)).min()) < keep:
        row = int(fewest.argmin())
        raise PlanError(f"cannot keep {keep} weights of row {row}: {int(fewest[row])} of its {columns} are alive")
    if keep in (0, columns) or scores.numel() == 0:
        return torch.full(scores.shape, keep > 0, dtype=torch.bool, device=scores.device)
    step = max(1, 8 * CHUNK // columns)
    parts = []
    for at in range(0, rows, step):
        s = _exact(scores[at : at + step].detach())
        parts.append(_best_of_rows(s if alive is None else s.masked_fill(~alive[at : at + step], -torch.inf), keep))
    return torch.cat(parts)


def _best_of_rows(s: Tensor, keep: int) -> Tensor:
    """Of every row the largest; what is -inf is never among them."""
    edge = s.kthvalue(s.shape[1] - keep + 1, dim=1, keepdim=True).values
    mask = s >= edge
    extra = mask.sum(1) - keep
    rows = extra.nonzero()[:, 0]  # where more are equal to the edge than there is room for
    if len(rows):
        some, at = s[rows], edge[rows]
        equal = some == at
        room = equal.sum(1) - extra[rows]
        mask[rows] = (some > at) | (equal & (equal.cumsum(1) <= room[:, None]))
    return mask


def check_scores(scores: Tensor) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        PlanError: one is NaN or inf, or they are no floats.
    """
    if not scores.dtype.is_floating_point:
        raise PlanError(f"scores are {scores.dtype}; expected floats: give scores.float()")
    bad = sum(c.numel() - int(torch.isfinite(c).sum()) for c in _flat(scores).split(_step(scores)))
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


def _chunks(values: Sequence[Tensor], lives: Sequence[Tensor] | None) -> Iterator[Tensor]:
    """What is alive, piece by piece, as floats of 32 or 64 bits."""
    for i, s in enumerate(values):
        step = _step(s)
        for at in range(0, s.numel(), step):
            c = s[at : at + step]
            yield _exact(c if lives is None else c[lives[i][at : at + step]])


def _step(s: Tensor) -> int:
    return CHUNK if s.device.type == "cpu" else 32 * CHUNK  # a launch costs more than a cache miss


def _edge(values: Sequence[Tensor], keep: int, lives: Sequence[Tensor] | None) -> tuple[float, int, int]:
    """The ``keep``-th largest value, how many are larger, and how many equal it."""
    wide = values[0].dtype == torch.float64
    ints, bits = (torch.int64, 64) if wide else (torch.int32, 32)
    left, prefix, found = keep, 0, 0
    for shift in range(bits - 16, -1, -16):
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=values[0].device)
        for c in _chunks(values, lives):
            keys = _keys(c, ints)
            if shift == bits - 16:
                digits = (keys >> shift).add_(1 << 15)
            else:
                digits = (keys[(keys >> (shift + 16)) == prefix] >> shift).bitwise_and_(0xFFFF)
            counts += torch.bincount(digits, minlength=1 << 16).to(counts.device)
        counts = counts.cpu()
        larger = counts.flip(0).cumsum(0).flip(0)  # as large or larger, by digit
        digit = int((larger >= left).nonzero()[-1])
        found = int(counts[digit])
        left -= int(larger[digit]) - found
        prefix = (prefix << 16) + digit - (1 << 15 if shift == bits - 16 else 0)
    key = prefix if prefix >= 0 else prefix ^ ((1 << (bits - 1)) - 1)
    edge = float(torch.tensor([key], dtype=ints).view(torch.float64 if wide else torch.float32))
    return edge, keep - left, found


def _keys(c: Tensor, ints: torch.dtype) -> Tensor:
    """Integers of the same order; -0.0 and 0.0 are one."""
    bits = (c + 0.0).view(ints)
    sign = bits >> (31 if ints == torch.int32 else 63)
    return bits.bitwise_xor_(sign.bitwise_and_((1 << (31 if ints == torch.int32 else 63)) - 1))


def _compared(values: Sequence[Tensor], edge: float, lives: Sequence[Tensor] | None) -> tuple[int, int]:
    """How many are larger than the edge, and how many equal it."""
    more = same = 0
    for c in _chunks(values, lives):
        more += int((c > edge).sum())
        same += int((c == edge).sum())
    return more, same


def _mask(s: Tensor, edge: float, room: int, equal: int, alive: Tensor | None) -> Tensor:
    """What is larger than the edge, and the first ``room`` of what equals it."""
    mask = torch.empty(s.numel(), dtype=torch.bool, device=s.device)
    step = _step(s)
    for at in range(0, s.numel(), step):
        c, out = _exact(s[at : at + step]), mask[at : at + step]
        torch.ge(c, edge, out=out)
        if alive is not None:
            out &= alive[at : at + step]
        if room < equal:  # not all that are equal: the earlier ones
            ties = (out & (c == edge)).nonzero()[:, 0]
            out[ties[max(room, 0) :]] = False
            room, equal = room - len(ties), equal - len(ties)
    return mask
