"""Residual width: a width that is written to again and again, each time from what it holds already."""

from __future__ import annotations

import numpy as np

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.types import Ints

_PRODUCTS = frozenset(f"aten::{op}" for op in "mm addmm bmm baddbmm linear embedding".split())
_CONVOLUTIONS = frozenset(
    f"aten::{op}" for op in "convolution _convolution cudnn_convolution mkldnn_convolution conv2d".split()
)


def pin_residual(axes: Axes, root: Ints) -> None:
    """Pin what statistics run over where it is residual width.

    A width is residual if one layer that produces it feeds another that produces it: embedding, then every block's
    last layer. The inner width of a block has producers too (query, key, value; gate, up), but side by side.
    One pass over the calls.
    """
    if not axes.norms:
        return
    width_of = np.full(axes.n, -1)  # root -> number of the width that it belongs to
    count = 0
    for norm in axes.norms:
        roots = root[norm.ids]
        known = int(width_of[roots].max())
        width_of[roots] = known if known >= 0 else count
        count += known < 0
    behind: dict[int, int] = {}  # value -> widths that were produced on the way to it, as bits
    residual = 0
    for call in axes.graph.calls:
        seen = 0
        for v in call.inputs:
            seen |= behind.get(v.index, 0)
        axis = _produced(axes, call)
        for width in [] if axis is None else np.unique(width_of[root[axis]]).tolist():
            if width >= 0:
                residual |= seen & 1 << width
                seen |= 1 << width
        for out in call.outs:
            if out is not None:
                behind[out.index] = seen
    axes.pins[:0] = [n for n in axes.norms if residual >> int(width_of[root[n.ids]].max()) & 1]  # the telling reason


def _produced(axes: Axes, call: Call) -> Axis:
    """The positions that a layer with weights makes; depthwise convolutions hand on those that come in."""
    if call.outs[:1] in ((), (None,)) or call.out.weight:
        return None
    if call.op in _PRODUCTS and any(v.weight for v in call.inputs):
        left = call.args.get("mat1", call.args.get("self"))
        turned = isinstance(left, Value) and left.weight and call.op != "aten::embedding"  # weights @ x
        return axes[call.out][-2 if turned and call.out.ndim > 1 else -1]
    if call.op in _CONVOLUTIONS and call.args.get("groups", 1) == 1:
        return axes[call.out][1]
    return None
