"""Whole experts of a mixture, cut on request: routers choose among those that are kept.

An expert goes with its row of the router. Softmax, top-k and argmax over experts run over what is kept of them. The
numbers that come out point into the axis of experts (`Axes.points`): they are followed through views and casts to
where they pick, count or mark positions of an axis, and that axis is tied to the experts. Any other use of them pins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from secateur.graph.axes import Axes, Axis, Pin
from secateur.graph.recorded import Call, Value
from secateur.graph.resize import CHOICES
from secateur.graph.rules import contraction
from secateur.graph.rules._table import table
from secateur.graph.rules.reduction import along, reduce, reduced
from secateur.graph.sizes import plain
from secateur.types import Bools, Ints

Picks: TypeAlias = Callable[[Axes, Call], Any]

_CARRIES = frozenset(
    (
        "view _unsafe_view reshape unsqueeze squeeze transpose t permute expand clone contiguous detach alias slice "
        "select split split_with_sizes unbind repeat flip sort index index_select gather _to_copy"
    ).split()
)
"""Ops that hand numbers on as they are: what they take of them is not decided by the numbers."""

_SHAPES = frozenset(("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"))
_EXACT = (None, torch.int64, torch.int32, torch.int16, torch.float32, torch.float64)
_WHY = "is numbered by a choice among an axis that is not tracked"


def _chooses(axes: Axes, call: Call, d: int) -> Axis:
    """The ids that a choice runs along, over what is kept of them; None where it cannot."""
    axis = axes[call["self"]][d]
    if axis is None or call.api not in CHOICES or call.turn is None:
        return None
    axes.chosen.append(Pin(axis, f"is run along by {call.op.split('::')[1]}", axes.place))
    return axis


def softmax(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """Over what is kept: the rest comes out as zero."""
    source = call["self"]
    d = call["dim"] % max(source.ndim, 1)
    if not source.ndim or _chooses(axes, call, d) is None:
        return along(axes, call)
    axes.vanishing[call.out.index] = d
    return axes[source]


def topk(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """The best of what is kept, of which there must be so many, and their numbers."""
    source = call["self"]
    d = call["dim"] % max(source.ndim, 1)
    axis = _chooses(axes, call, d) if source.ndim else None
    if axis is None:
        return along(axes, call)
    axes.least.append((axis, plain(call["k"])))
    _point(axes, call.outs[1], axis)
    left: list[Axis] = [None if e == d else a for e, a in enumerate(axes[source])]
    return [left, list(left)]


def argmax(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """The best of what is kept, by its number."""
    source, dim = call["self"], call["dim"]
    axis = None if dim is None or not source.ndim else _chooses(axes, call, dim % source.ndim)
    if axis is None:
        return reduce(axes, call)
    _point(axes, call.out, axis)
    return reduced(call, axes[source], [dim % source.ndim])


def cumsum(axes: Axes, call: Call) -> list[Axis]:
    """Sums up to each position: what is cut adds nothing (zeros.py sees to it that it is zero)."""
    return axes[call["self"]]


def grouped(axes: Axes, call: Call) -> list[Axis]:
    """Rows are counted expert by expert: the stack of weights goes with the counts."""
    return contraction.grouped(axes, call, axes[call.inputs[2]][0] if len(call.inputs) > 2 else None)


def _point(axes: Axes, value: Value | None, axis: Ints) -> None:
    if value is not None:
        axes.points[value.index] = axis


def using(axes: Axes, call: Call) -> Picks | None:
    """The rule for a call that is given numbers of positions, if it picks by them; otherwise they go on, or pin."""
    given = [v for v in call.inputs if v.index in axes.points]
    if not given:
        return None
    points, name = axes.points[given[0].index], call.op.removeprefix("aten::")
    first = call.inputs[0].index == given[0].index
    if len(given) == 1 and (not first or name in _COUNTS) and name in _PICKS:
        return partial(_PICKS[name], points=points)
    if len(given) == 1 and first and name in _CARRIES and call.args.get("dtype") in _EXACT:
        for out in call.outs[:1] if name == "sort" else call.outs:  # the order of what is sorted is something else
            _point(axes, out, points)
    elif all(v.index in axes.points for v in _indices(call)) and name == "index" and not first:
        return partial(index, points=points)
    elif name not in _SHAPES and not (call.api == "one_hot" and name == "aminmax" and _sizes(call)):
        axes.pin(f"is numbered by a choice whose numbers {name} uses", *[axes.points[v.index] for v in given])
    return None


def _indices(call: Call) -> list[Value]:
    return [i for i in call.args.get("indices") or [] if isinstance(i, Value)] if call.op == "aten::index" else []


def _sizes(call: Call) -> list[int]:
    return [plain(s) for s in call.sizes if plain(s) > 0]


def _pick(axes: Axes, points: Ints, source: Value, d: int) -> None:
    """Positions of a dim are picked by numbers that point into another: both go together."""
    axis = axes[source][d]
    axes.tie(points, axis, _WHY)
    if source.weight:
        axes.label(axis, "expert")


def index(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """``weight[numbers]``, perhaps beside other indices."""
    source: Value = call["self"]
    given: list[Value | None] = list(call["indices"])
    used = [d for d, i in enumerate(given) if i is not None]
    by = [i for i in given if i is not None]
    ids, block = axes[source], np.broadcast_shapes(*[i.shape for i in by])
    rest = [d for d in range(source.ndim) if d not in used]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    shape = [source.shape[d] for d in rest]
    if (*shape[:at], *block, *shape[at:]) != call.out.shape:
        raise ValueError(f"shape {call.out.shape}")
    for d, i in zip(used, by, strict=True):
        if i.index in axes.points:
            _pick(axes, axes.points[i.index], source, d)
        else:
            axes.pin("is indexed by numbers that are computed", ids[d])
    new: list[Axis] = axes[by[0]] if len(by) == 1 else [None] * len(block)
    if len(by) > 1:
        axes.pin("numbers positions beside other numbers", *[a for i in by for a in axes[i]])
    left = [ids[d] for d in rest]
    return [*left[:at], *new, *left[at:]]


def index_select(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """One dim, by a vector of numbers."""
    source: Value = call["self"]
    d, ids = call["dim"] % source.ndim, axes[source]
    _pick(axes, points, source, d)
    return [*ids[:d], *axes[call["index"]], *ids[d + 1 :]]


def embedding(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """Rows, by their numbers."""
    _pick(axes, points, call["weight"], 0)
    return [*axes[call["indices"]], axes[call["weight"]][1]]


def gather(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """Along one dim positions are picked; the others stay what they are."""
    source, by = call["self"], call["index"]
    d, ids, others = call["dim"] % source.ndim, axes[source], axes[by]
    _pick(axes, points, source, d)
    axes.pin("is gathered along", others[d])
    out: list[Axis] = []
    for e in range(source.ndim):
        if e != d and by.shape[e] == source.shape[e]:
            axes.tie(ids[e], others[e])
            out.append(ids[e])
        else:
            axes.pin("is gathered in part", *([] if e == d else [ids[e], others[e]]))
            out.append(None)
    return out


def scatter(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """Positions that the numbers point to are written to, or added to; the others keep what they have."""
    target: Value = call["self"]
    d, ids = call["dim"] % target.ndim, axes[target]
    _pick(axes, points, target, d)
    others = [a for v in call.inputs if v.index != target.index for a in axes[v]]
    axes.pin("is scattered", *others, *[a for e, a in enumerate(ids) if e != d])
    return [a if e == d else None for e, a in enumerate(ids)]


def _expect(axes: Axes, call: Call, points: Ints, constant: int = 0) -> None:
    """A size among the call's ints is the number of positions, plus a constant."""
    n = len(points) + constant
    size = next((s for s in call.sizes if plain(s) == n), n)
    axes.expect(size, points, call, constant=constant)


def histc(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """How often each number comes, in one bin a number."""
    n = len(points)
    if (call["bins"], call["min"], call["max"]) != (n, 0, n - 1):
        raise ValueError(f"{call['bins']} bins from {call['min']} to {call['max']}")
    _expect(axes, call, points)
    _expect(axes, call, points, -1)
    axes.least.append((points, 2))  # a range from 0 to 0 would mean that of the data
    axes.vanishing[call.out.index] = 0
    return [points]


def bincount(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """How often each number comes."""
    if call.out.shape != points.shape or call["minlength"] != len(points):
        raise ValueError(f"{call.out.shape[0]} bins")
    _expect(axes, call, points)
    axes.vanishing[call.out.index] = 0
    return [points]


def one_hot(axes: Axes, call: Call, points: Ints) -> list[Axis]:
    """Numbers against all numbers: ``one_hot`` on fake tensors."""
    other = call["other"]
    if call.api != "one_hot" or not isinstance(other, Value) or other.shape != points.shape:
        raise ValueError("a comparison")
    _expect(axes, call, points)
    axes.vanishing[call.out.index] = call.out.ndim - 1
    return [*axes[call["self"]][:-1], points]


def settle(axes: Axes, root: Ints) -> None:
    """What a choice runs along stays unless it is an axis of experts: the first of stacked weights, or picked from."""
    if not axes.chosen:
        return
    convolved = {v.index for call in axes.graph.calls if "conv" in call.op for v in call.inputs}
    expert = np.zeros(axes.n, bool)
    for ids, kind in axes.labels:
        if kind == "expert":
            expert[root[ids]] = True
    for i, name in axes.names.items():
        stack: Sequence[Axis] = axes.ids[i]
        if name in axes.graph.parameters and len(stack) == 3 and stack[0] is not None and i not in convolved:
            expert[root[stack[0]]] = True
    _spread(axes, root, expert)
    for pin in axes.chosen:
        known = expert[root[pin.ids]]
        axes.label(pin.ids[known], "expert")
        if not known.all():
            axes.pins.append(Pin(pin.ids[~known], pin.reason, pin.place))


def _spread(axes: Axes, root: Ints, expert: Bools) -> None:
    """Rows of a view that hold the same positions as an expert does in another view are experts."""
    number = np.random.default_rng(0).integers(1, 2**62, size=axes.n, dtype=np.int64)
    rows, sums = [], []
    for cells, *parts in axes.cells:
        for part in parts:
            mine, which = np.unique(root[part], return_inverse=True)
            total = np.zeros(len(mine), np.int64)
            with np.errstate(over="ignore"):
                np.add.at(total, which, number[root[cells]])
            rows.append(mine)
            sums.append(total)
    if rows:
        row, held = np.concatenate(rows), np.concatenate(sums)
        before = -1
        while before != (before := int(expert.sum())):
            expert[row[np.isin(held, held[expert[row]])]] = True


_COUNTS = frozenset(("histc", "bincount", "eq"))

_PICKS: dict[str, Callable[..., list[Axis]]] = {
    "index": index,
    "index_select": index_select,
    "embedding": embedding,
    "gather": gather,
    **dict.fromkeys(("scatter", "scatter_", "scatter_add", "scatter_add_"), scatter),
    "histc": histc,
    "bincount": bincount,
    "eq": one_hot,
}
"""Ops that pick, count or mark positions by number."""

RULES: dict[str, Callable[..., Any]] = {
    **table(
        ("_softmax _log_softmax softmax _safe_softmax", softmax),
        ("topk", topk),
        ("argmax", argmax),
        ("cumsum", cumsum),
        ("_grouped_mm", grouped),
    ),
    "transformers::grouped_mm_fallback": grouped,
}
