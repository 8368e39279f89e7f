"""Channels that become space and space that becomes channels: pixel shuffles, folds, windows."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call
from secateur.graph.rules._table import table


def pixel_shuffle(axes: Axes, call: Call) -> list[Axis]:
    """Channels (C r r) become C channels and space."""
    ids, r = axes[call["self"]], call["upscale_factor"] ** 2
    channels = ids[-3]
    if channels is not None:
        kept, inner = axes.split(channels, [len(channels) // r, r])
        axes.pin("becomes space in a pixel shuffle", inner)
        ids[-3] = kept
    return [*ids[:-2], None, None]


def pixel_unshuffle(axes: Axes, call: Call) -> list[Axis]:
    """C channels and space become (C r r) channels."""
    ids, r = axes[call["self"]], call["downscale_factor"] ** 2
    channels = ids[-3]
    if channels is not None:
        ids[-3] = np.repeat(channels, r)
    return [*ids[:-2], None, None]


def im2col(axes: Axes, call: Call) -> list[Axis]:
    """Every channel becomes its taps, one after another."""
    ids = axes[call["self"]]
    channels = ids[1]
    return [ids[0], None if channels is None else np.repeat(channels, math.prod(call["kernel_size"])), None]


def col2im(axes: Axes, call: Call) -> list[Axis]:
    """Channels (C taps) become C channels and space."""
    ids, taps = axes[call["self"]], math.prod(call["kernel_size"])
    channels = ids[1]
    kept: Axis = None
    if channels is not None:
        kept, inner = axes.split(channels, [len(channels) // taps, taps]) if taps > 1 else (channels, None)
        axes.pin("becomes space in a fold", inner)
    axes.pin("is a block of a fold", ids[2])
    return [ids[0], kept, None, None]


def windows(axes: Axes, call: Call) -> list[Axis]:
    """``Tensor.unfold``: the dim that windows slide along stays."""
    ids = axes[call["self"]]
    d = call["dimension"] % len(ids)
    axes.pin("is cut into windows", ids[d])
    ids[d] = None
    return [*ids, None]


RULES = table(
    ("pixel_shuffle", pixel_shuffle),
    ("pixel_unshuffle", pixel_unshuffle),
    ("im2col", im2col),
    ("col2im", col2im),
    ("unfold", windows),
)
