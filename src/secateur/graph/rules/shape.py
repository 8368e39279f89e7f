"""Ops that move positions about: views, permutes, concats, splits."""

from __future__ import annotations

import functools
import math

import numpy as np

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import dims_of, table
from secateur.graph.sizes import Size, expression, plain, reads_extent
from secateur.types import Ints


def view(axes: Axes, call: Call) -> list[Axis]:
    """Blocks of dims with equal products correspond; within a block the axes are merged, then split."""
    source, into = call["self"].shape, call.out.shape
    ids, out = axes[call["self"]], []
    if "dtype" in call.args or math.prod(source) != math.prod(into):
        raise ValueError("bits are read as another type")
    if 0 in source:
        return [None] * len(into)
    for i0, i, j0, j in _blocks(source, into):
        out += _block(axes, ids[i0:i], source[i0:i], into[j0:j])
    _expect_view(axes, call, out)
    return out


@functools.lru_cache(10_000)
def _blocks(source: tuple[int, ...], into: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """The smallest blocks of dims with equal products, ``source[i0:i]`` and ``into[j0:j]``."""
    i = j = 0
    found = []
    while i < len(source) or j < len(into):
        i0, j0 = i, j
        i, j = min(i + 1, len(source)), min(j + 1, len(into))
        while math.prod(source[i0:i]) != math.prod(into[j0:j]):
            if math.prod(source[i0:i]) < math.prod(into[j0:j]):
                i += 1
            else:
                j += 1
        if j0 != j:
            found.append((i0, i, j0, j))
    return found


def _block(axes: Axes, ids: list[Axis], source: tuple[int, ...], into: tuple[int, ...]) -> list[Axis]:
    if len(ids) == len(into) == 1:
        return ids
    wide_in = [d for d, n in enumerate(source) if n > 1]
    wide_out = [d for d, n in enumerate(into) if n > 1]
    if not wide_in:
        return [None] * len(into)
    if len(wide_in) == len(wide_out) == 1:
        return [ids[wide_in[0]] if d == wide_out[0] else None for d in range(len(into))]
    return axes.split(axes.merge(ids, source), into)


_RESHAPES = ("view", "reshape", "unflatten", "_unsafe_view", "view_as", "reshape_as")


def _expect_view(axes: Axes, call: Call, out: list[Axis]) -> None:
    """The sizes written in the code must follow the cut."""
    sizes, n, first = list(call.sizes), len(out), 0
    if call.api == "unflatten":
        at = plain(sizes.pop(0)) % call["self"].ndim
        first = 1 - at
        sizes = [-1] * at + sizes + [-1] * (n - at - len(sizes))
    if call.api in _RESHAPES and len(sizes) == n:
        for d, (size, axis) in enumerate(zip(sizes, out, strict=True)):
            axes.expect(size, axis, call, first + d)


def permute(axes: Axes, call: Call) -> list[Axis]:
    """Dims in another order."""
    ids = axes[call["self"]]
    return [ids[d] for d in call["dims"]]


def transpose(axes: Axes, call: Call) -> list[Axis]:
    """Two dims change places."""
    ids = axes[call["self"]]
    a, b = call["dim0"], call["dim1"]
    ids[a], ids[b] = ids[b], ids[a]
    return ids


def t(axes: Axes, call: Call) -> list[Axis]:
    """All dims reversed (two of them at most)."""
    return axes[call["self"]][::-1]


def expand(axes: Axes, call: Call) -> list[Axis]:
    """Dims of size one are repeated; the others keep their positions and the size they are given."""
    source = call["self"]
    lead = call.out.ndim - source.ndim
    given = call.api in ("expand", "expand_as", "broadcast_to") and len(call.sizes) == call.out.ndim
    sizes = list(call.sizes) if given else [-1] * call.out.ndim
    out: list[Axis] = []
    for d, (axis, before, after, size) in enumerate(
        zip([*[None] * lead, *axes[source]], [*[1] * lead, *source.shape], call.out.shape, sizes, strict=True)
    ):
        if before == 1 < after:  # of a mask, as many copies as the code says; shared heads have the copies they have
            free = given and isinstance(size, Size) and axes.may_follow(size)
            free = free and not any(a is not None for a in axes[source])
            axis = axes.fresh(after) if free else None
        out.append(axis)
        if after > 1:
            axes.expect(size, axis, call, d)
    return out


def unsqueeze(axes: Axes, call: Call) -> list[Axis]:
    """A new dim of size one."""
    ids = axes[call["self"]]
    ids.insert(call["dim"] % call.out.ndim, None)
    return ids


def squeeze(axes: Axes, call: Call) -> list[Axis]:
    """Dims of size one go."""
    source = call["self"]
    gone = [d for d in dims_of(call.args.get("dim"), source.ndim) if source.shape[d] == 1]
    return [a for d, a in enumerate(axes[source]) if d not in gone]


def cat(axes: Axes, call: Call) -> list[Axis]:
    """Positions one after another along the dim; the other dims are tied."""
    out_dims = call.out.ndim
    parts = [v for v in call["tensors"] if not (v.shape == (0,) and out_dims != 1)]
    d = call["dim"] % out_dims
    out = axes[parts[0]]
    along = [axes[v][d] for v in parts]
    if any(a is not None for a in along):
        filled = []
        for v, a in zip(parts, along, strict=True):
            if a is None:
                a = axes.fresh(v.shape[d])
                axes.pin("is concatenated from something that is not tracked", a)
            filled.append(a)
        out[d] = np.concatenate(filled)
    for v in parts[1:]:
        for e, axis in enumerate(axes[v]):
            if e != d and v.shape[e] > 1:
                axes.tie(out[e], axis)
    return out


def stack(axes: Axes, call: Call) -> list[Axis]:
    """A new dim over tensors that are tied."""
    out = axes[call["tensors"][0]]
    for v in call["tensors"][1:]:
        for a, b in zip(out, axes[v], strict=True):
            axes.tie(a, b)
    out.insert(call["dim"] % call.out.ndim, None)
    return out


def split(axes: Axes, call: Call) -> list[list[Axis]]:
    """Runs of positions; equal runs given by a number of chunks stay equal."""
    source = call["self"]
    d = call["dim"] % source.ndim
    ids, outs, at = axes[source], [], 0
    parts = [v for v in call.outs if v is not None]
    for v in parts:
        run = slice(at, at + v.shape[d])
        outs.append([a[run] if a is not None and e == d else a for e, a in enumerate(ids)])
        at += v.shape[d]
    if ids[d] is None:
        return outs
    by_size = call.api in ("split", "split_with_sizes", "unsafe_split", "tensor_split")
    sizes, first = _split_sizes(call, [v.shape[d] for v in parts]) if by_size else ([], 0)
    one = len(outs) > 1 and all(s is sizes[0] for s in sizes)
    for k, (size, axis) in enumerate(zip(sizes, outs, strict=False)):
        axes.expect(size, axis[d], call, first if one else first + k)
    if len({v.shape[d] for v in parts}) == 1 and (
        not by_size or call.op.endswith("split.Tensor") or len(set(sizes)) <= 1
    ):
        for axis in outs[1:]:  # one size for all runs: they must stay equal
            axes.tie(outs[0][d], axis[d])
    return outs


def _split_sizes(call: Call, found: list[int]) -> tuple[list[int], int]:
    """The ints of the code that say how long each run is, one for all or one each, and where the first stands."""
    given = list(call.sizes)
    for start in range(len(given) - len(found) + 1):
        if [plain(s) for s in given[start : start + len(found)]] == found:
            return given[start : start + len(found)], start
    one = [i for i, s in enumerate(given) if plain(s) == found[0]]
    return ([given[one[0]]] * len(found), one[0]) if one else ([], 0)


def slice_(axes: Axes, call: Call) -> list[Axis]:
    """A run of positions; its bounds in the code must follow the cut."""
    source = call["self"]
    d = call["dim"] % source.ndim
    n, ids = source.shape[d], axes[source]
    axis = ids[d]
    if axis is None:
        return ids
    start, end = (
        min(max(k + n if k < 0 else k, 0), n) for k in (call["start"] or 0, n if call["end"] is None else call["end"])
    )
    ids[d] = axis[start : end : call["step"]]
    step = call["step"]
    if step != 1 and (n % step or start >= step or end != n):
        axes.pin("is sliced with a step", axis)
    elif step != 1:  # interleaved: so many neighbours go together
        for k in range(1, step):
            axes.tie(axis[::step], axis[k::step])
        return ids
    for cut in {start, end} - {0}:
        _bound(axes, call, axis, cut)
    _whole_slices(axes, call)
    return ids


def as_strided(axes: Axes, call: Call) -> list[Axis]:
    """The same positions with other strides: pooling restores a memory format so."""
    if call["self"].shape != call.out.shape:
        raise ValueError("strides that pick other positions")
    return axes[call["self"]]


def alias(axes: Axes, call: Call) -> list[Axis]:
    """The same tensor again: indexing that takes everything leaves nothing but this."""
    _whole_slices(axes, call)
    return axes[call["self"]]


def _whole_slices(axes: Axes, call: Call) -> None:
    """``x[:, :self.heads]`` over all heads makes no call of its own, but its bound must follow all the same."""
    if call.api != "__getitem__":
        return
    source: Value = call["self"]
    for size in call.sizes:
        dims = [d for d, n in enumerate(source.shape) if n == plain(size)]
        if isinstance(size, Size) and expression(size) not in axes.followed and len(dims) == 1:
            axes.expect(size, axes[source][dims[0]], call)


def _bound(axes: Axes, call: Call, axis: Ints, cut: int) -> None:
    """One end of a slice: a size that follows the positions before it, or one that may not change."""
    n = len(axis)
    tagged = {expression(s): s for s in call.sizes if isinstance(s, Size) and plain(s) in (cut, cut - n)}
    written = [i for i, s in enumerate(call.sizes) if plain(s) == cut]
    at = written[0] if len(written) == 1 else None
    sizes = list(tagged.values())
    if len(sizes) > 1:
        axes.pin("is sliced at a position that two sizes in the code could mean", axis)
    elif not sizes:
        if cut < n and at is not None and call.nth is not None:
            axes.expect(call.sizes[at], axis[:cut], call, at)
        elif cut < n:
            counted_back = any(plain(k) == cut - n for k in call.sizes)
            axes.pin("is sliced at a literal position", axis[cut:] if counted_back else axis[:cut])
    elif plain(sizes[0]) < 0:
        axes.pin("is sliced at a position counted from the end", axis)
    elif not axes.may_follow(sizes[0]):
        axes.pin("is sliced at the size of an input", axis)
    else:
        if 2 * cut == n and reads_extent(expression(sizes[0])):
            axes.tie(axis[:cut], axis[cut:])  # x[..., : x.shape[-1] // 2]
        axes.expect(sizes[0], axis[:cut], call, at)


def select(axes: Axes, call: Call) -> list[Axis]:
    """One position is taken by its number: the axis stays."""
    ids, k = axes[call["self"]], call["index"]
    axis = ids.pop(call["dim"] % call["self"].ndim)
    if axis is not None:
        axes.pin("one of its positions is taken by number", axis[k:] if k < 0 else axis[: k + 1])
    return ids


def unbind(axes: Axes, call: Call) -> list[list[Axis]]:
    """Every position becomes a tensor: the axis stays."""
    ids = axes[call["self"]]
    axes.pin("is unbound into separate tensors", ids.pop(call["dim"] % call["self"].ndim))
    return [list(ids) for _ in call.outs]


def flip(axes: Axes, call: Call) -> list[Axis]:
    """Positions in reverse."""
    ids = axes[call["self"]]
    for d in call["dims"]:
        axis = ids[d]
        ids[d] = None if axis is None else axis[::-1].copy()
    return ids


def roll(axes: Axes, call: Call) -> list[Axis]:
    """Positions move round; the block that wraps keeps its count, as the shift is a literal."""
    ids = axes[call["self"]]
    if not call["dims"]:
        axes.pin("is rolled as a flat tensor", *ids)
        return [None] * call.out.ndim
    for shift, d in zip(call["shifts"], call["dims"], strict=True):
        axis = ids[d]
        if axis is not None:
            k = shift % len(axis)
            if abs(shift) >= len(axis):
                axes.pin("is rolled by more than its length", axis)
            elif shift < 0:
                axes.pin("wraps round in a roll by a literal shift", axis[:-shift])
            elif shift > 0:
                axes.pin("wraps round in a roll by a literal shift", axis[-shift:])
            ids[d] = np.roll(axis, k)
    return ids


def repeat(axes: Axes, call: Call) -> list[Axis]:
    """Tiles."""
    lead: list[Axis] = [None] * (call.out.ndim - call["self"].ndim)
    ids = lead + axes[call["self"]]
    return [None if a is None else np.tile(a, k) for a, k in zip(ids, call["repeats"], strict=True)]


def repeat_interleave(axes: Axes, call: Call) -> list[Axis]:
    """Every position repeated a fixed number of times along a dim."""
    ids, d = axes[call["self"]], call.args.get("dim")
    if d is None or not isinstance(call["repeats"], int):
        axes.pin("is repeated by a tensor of counts", *ids)
        return [None] * call.out.ndim
    axis = ids[d]
    ids[d] = None if axis is None else np.repeat(axis, call["repeats"])
    return ids


def pad(axes: Axes, call: Call) -> list[Axis]:
    """Constant padding: new positions that stay, and the old ones."""
    ids, widths = axes[call["self"]], call["pad"]
    for k in range(len(widths) // 2):
        d = call.out.ndim - 1 - k
        left, right = widths[2 * k : 2 * k + 2]
        axis = ids[d]
        if axis is None or not (left or right):
            continue
        if left < 0 or right < 0:
            axes.pin("is cropped by negative padding", axis)
            ids[d] = None
            continue
        before, after = axes.fresh(left), axes.fresh(right)
        axes.pin("is padding", before, after)
        ids[d] = np.concatenate([before, axis, after])
    return ids


def view_as_complex(axes: Axes, call: Call) -> list[Axis]:
    """The last dim is a pair; whatever it is a view of has even strides."""
    *ids, pair = axes[call["self"]]
    axes.pin("is a real or an imaginary part", pair)
    value, why = call["self"], "has even strides under a view as complex numbers"
    made = axes.producers
    while (by := made.get(value.index)) and by.op.removeprefix("aten::") in _SAME_MEMORY:
        before, after = axes[by["self"]], axes[value]
        for wide, narrow in zip(before, after, strict=False):
            if wide is not None and narrow is not None and len(wide) > len(narrow) and by.op != "aten::view":
                axes.round(why, wide, 2)
                start = np.flatnonzero(wide == narrow[0])
                axes.round(why, wide[: start[0]] if len(start) else wide, 2)
        value = by["self"]
    return ids


_SAME_MEMORY = "view _unsafe_view slice split split_with_sizes transpose permute unsqueeze _to_copy".split()


def view_as_real(axes: Axes, call: Call) -> list[Axis]:
    """A complex number becomes a pair."""
    return [*axes[call["self"]], None]


RULES = table(
    ("view _unsafe_view _reshape_alias reshape", view),
    ("permute", permute),
    ("transpose transpose_", transpose),
    ("t t_ numpy_T adjoint", t),
    ("expand", expand),
    ("unsqueeze unsqueeze_", unsqueeze),
    ("squeeze squeeze_", squeeze),
    ("cat concat", cat),
    ("stack", stack),
    ("split split_with_sizes unsafe_split chunk unsafe_chunk unsafe_split_with_sizes", split),
    ("slice", slice_),
    ("alias", alias),
    ("as_strided as_strided_", as_strided),
    ("select", select),
    ("unbind", unbind),
    ("flip", flip),
    ("roll", roll),
    ("repeat", repeat),
    ("repeat_interleave", repeat_interleave),
    ("constant_pad_nd", pad),
    ("view_as_complex", view_as_complex),
    ("view_as_real", view_as_real),
)
