"""Convolutions of any rank: plain, depthwise, grouped, transposed."""

from __future__ import annotations

import dataclasses
import math

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call
from secateur.graph.rules._table import table
from secateur.graph.sizes import Size, plain


def convolution(axes: Axes, call: Call) -> list[Axis]:
    """(N, Ci, *) with weights (Co, Ci / g, *), or (Ci, Co / g, *) when transposed.

    With ``g`` groups the channel axis is a (g, c) rectangle: a group goes as a whole, or the same channel goes from
    every group. Space stays, but for dims along which the kernel has one tap at every position: what a position holds
    comes from itself alone.
    """
    x, w, groups = call["input"], call["weight"], call["groups"]
    channels, taps = axes[x][1], axes[w][2:]
    axes.pin("is a kernel tap", *taps)
    left = [a if _alone(call, d) else None for d, a in enumerate(axes[x][2:])]
    axes.pin("is space that a kernel runs along", *[a for a, b in zip(axes[x][2:], left, strict=True) if b is None])
    if groups == 1:
        out = _dense(axes, call, channels)
    elif call["transposed"]:
        out = _grouped_transposed(axes, call, channels)
    else:
        out = _grouped(axes, call, channels)
    axes.label(out, "channel")
    if call["bias"] is not None:
        axes.tie(axes[call["bias"]][0], out)
    space = x.shape[2:] if call["transposed"] else call.out.shape[2:]
    inner = axes[w][:2] if call["transposed"] else (out, axes[w][1])
    axes.count_macs(None, *inner, None, *left, value=(x.shape[0], *w.shape[:2], math.prod(w.shape[2:]), *space))
    return [axes[x][0], out, *left]


def _alone(call: Call, d: int) -> bool:
    """Whether the kernel has one tap along a dim of space, at every position and at no other."""

    def all_are(name: str, usual: int) -> bool:
        given = call.args.get(name, usual)
        return all(n == usual for n in (given if isinstance(given, (list, tuple)) else [given]))

    return call["weight"].shape[2 + d] == 1 and all_are("stride", 1) and all_are("padding", 0)


def _dense(axes: Axes, call: Call, channels: Axis) -> Axis:
    w = call["weight"]
    inner, out = (0, 1) if call["transposed"] else (1, 0)
    axes.tie(channels, axes[w][inner], "is the number of input channels")
    if w.weight:
        axes.label_input(axes[w][inner])
    return axes[w][out]


def _grouped(axes: Axes, call: Call, channels: Axis) -> Axis:
    """Groups are rows; channels inside a group are columns."""
    x, w, g = call["input"], call["weight"], call["groups"]
    out, inner = axes[w][:2]
    assert out is not None
    if channels is None:
        axes.pin("feeds a grouped convolution whose input is not tracked", out, inner)
        return out
    depthwise = g == x.shape[1]
    rows, columns = (channels, None) if depthwise else axes.split(channels, [g, len(channels) // g])
    if depthwise:
        axes.pin("is the only channel of its group", inner)
    elif rows is None:
        axes.pin("feeds a grouped convolution that cannot be told apart", channels, out, inner)
        return out
    else:
        axes.tie(columns, inner)
        if w.weight:
            axes.label_input(inner)
    multiplier = len(out) // g
    axes.tie(out if multiplier == 1 else axes.split(out, [g, multiplier])[0], rows)
    _expect_groups(axes, call, rows)
    return out


def _grouped_transposed(axes: Axes, call: Call, channels: Axis) -> Axis:
    """Weights (Ci, Co / g): the output channels are the (g, Co / g) rectangle of groups and weight columns."""
    x, w, g = call["input"], call["weight"], call["groups"]
    inner, columns = axes[w][:2]
    axes.tie(channels, inner, "feeds a grouped transposed convolution")
    if channels is None or columns is None:
        axes.pin("feeds a grouped transposed convolution whose input is not tracked", columns)
        return None
    if len(columns) == 1:
        axes.pin("is the only channel of its group", columns)
    elif w.weight:
        axes.label_input(inner)
    rows = axes.split(channels, [g, len(channels) // g])[0] if g < x.shape[1] else channels
    if rows is None:
        axes.pin("feeds a grouped convolution that cannot be told apart", channels, columns)
        return None
    _expect_groups(axes, call, rows)
    return rows if len(columns) == 1 else axes.merge([rows, columns], [g, len(columns)])


def _expect_groups(axes: Axes, call: Call, rows: Axis) -> None:
    tagged = [s for s in call.sizes if isinstance(s, Size) and plain(s) == call["groups"]]
    axes.expect(tagged[-1] if tagged else call["groups"], rows, call)


def unpack(axes: Axes, call: Call) -> list[Axis]:
    """OneDNN's convolution names its arguments a little differently."""
    filled = {
        "transposed": False,
        "groups": 1,
        "input": call.args.get("self", call.args.get("input")),
        **call.args,
    }
    return convolution(axes, dataclasses.replace(call, args=filled))


RULES = table(("convolution _convolution cudnn_convolution", convolution), ("mkldnn_convolution conv2d", unpack))
