"""Matrix products: the contracted axes go together, the others are free."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import table


def _contract(axes: Axes, x: Value, i: int, y: Value, j: int) -> None:
    """Sum over dim ``i`` of x and dim ``j`` of y."""
    a, b = axes[x][i], axes[y][j]
    axes.tie(a, b, "is contracted with an axis that is not tracked")
    for axis, value, other in ((a, x, y), (b, y, x)):
        if value.weight and not other.weight:
            axes.label_input(axis)


def _weight_label(axes: Axes, w: Value, out: Axis) -> None:
    if w.weight:
        axes.label(out, "neuron")


def mm(axes: Axes, call: Call) -> list[Axis]:
    """(m, k) @ (k, n)."""
    x: Value = call["mat1" if call.op == "aten::addmm" else "self"]
    y: Value = call["mat2"]
    _contract(axes, x, 1, y, 0)
    (m, k), (_, n) = axes[x], axes[y]
    axes.count_macs(m, k, n, value=(*x.shape, y.shape[1]))
    _weight_label(axes, y, n)
    if call.op == "aten::addmm" and call["self"].shape[-1] > 1:
        axes.tie(axes[call["self"]][-1], n)
    return [m, n]


def bmm(axes: Axes, call: Call) -> list[Axis]:
    """(b, m, k) @ (b, k, n): batch dims that can be cut are heads."""
    x, y = (call["batch1"], call["batch2"]) if call.op == "aten::baddbmm" else (call["self"], call["mat2"])
    _contract(axes, x, 2, y, 1)
    (b, m, k), (c, _, n) = axes[x], axes[y]
    axes.tie(b, c)
    axes.label(b, "head")
    if not (x.weight or y.weight):
        axes.label(k, "head_dim")
    axes.count_macs(b, m, k, n, value=(*x.shape, y.shape[2]))
    out = [b, m, n]
    if call.op == "aten::baddbmm":
        bias = call["self"]
        for mine, theirs, size in zip(out, axes[bias], bias.shape, strict=True):
            if size > 1:
                axes.tie(mine, theirs)
    return out


def mv(axes: Axes, call: Call) -> list[Axis]:
    """(m, k) @ (k)."""
    x, y = call["self"], call["vec"]
    _contract(axes, x, 1, y, 0)
    axes.count_macs(*axes[x], value=x.shape)
    return [axes[x][0]]


def dot(axes: Axes, call: Call) -> list[Axis]:
    """(k) @ (k)."""
    _contract(axes, call["self"], 0, call["tensor" if "tensor" in call.args else "other"], 0)
    return []


def linear(axes: Axes, call: Call) -> list[Axis]:
    """X @ w.T + b, left whole by some kernels."""
    x, w = call["input"], call["weight"]
    _contract(axes, x, x.ndim - 1, w, 1)
    out, inner = axes[w]
    axes.count_macs(*axes[x][:-1], out, inner, value=(*x.shape[:-1], *w.shape))
    _weight_label(axes, w, out)
    if call["bias"] is not None:
        axes.tie(axes[call["bias"]][0], out)
    return [*axes[x][:-1], out]


def grouped(axes: Axes, call: Call, by: Axis = None) -> list[Axis]:
    """(s, k) @ (e, k, n), each row with the matrix of its expert: rows are sorted by numbers that are computed.

    ``by``: ids of the experts for which rows are counted; None: they are not followed.
    """
    x, w = call.inputs[:2]
    if x.ndim != 2 or w.ndim != 3:
        raise ValueError(f"shapes {x.shape} and {w.shape}")
    _contract(axes, x, 1, w, 1)
    experts, k, n = axes[w]
    axes.tie(experts, by, "is chosen by numbers that are computed")
    axes.label(experts, "expert")
    _weight_label(axes, w, n)
    axes.count_macs(None, k, n, value=(x.shape[0], *w.shape[1:]))
    if call.op == "aten::_grouped_mm":
        for axis in (k, n):
            axes.round("has rows of 16 bytes in a grouped product", axis, 8)
    return [axes[x][0], n]


def trilinear(axes: Axes, call: Call) -> list[Axis]:
    """``nn.Bilinear``: (b, 1, i, 1) · (1, o, i, j) · (b, 1, 1, j), summed over some dims of what they expand to."""
    ndim = len(call.out.shape) + len(call["sumdim"])
    ids: list[list[Axis]] = []
    for name, expand in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        mine = axes[call[name]]
        for d in sorted(call[expand]):
            mine.insert(d, None)
        ids.append(mine)
    out: list[Axis] = []
    for d in range(ndim):
        live = [i[d] for i, e in zip(ids, ("expand1", "expand2", "expand3"), strict=True) if d not in call[e]]
        for other in live[1:]:
            axes.tie(live[0], other, "is contracted with an axis that is not tracked")
        out.append(live[0] if live else None)
    w: Value = call["i2"]
    if w.weight:
        axes.label(axes[w][0], "neuron")
        for axis in axes[w][1:]:
            axes.label_input(axis)
    return [a for d, a in enumerate(out) if d not in call["sumdim"]]


RULES = {
    **table(("_grouped_mm", grouped), ("_trilinear", trilinear)),
    "transformers::grouped_mm_fallback": grouped,
    **table(("mm addmm", mm), ("bmm baddbmm", bmm), ("mv", mv), ("dot vdot", dot), ("linear", linear)),
}
