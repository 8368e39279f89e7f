"""Reductions, softmax, sorting, pooling and resampling: the axis they run along stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call
from secateur.graph.rules._table import dims_of, table

_ZERO_ADDS_NOTHING = frozenset(("sum", "nansum", "linalg_vector_norm", "norm"))  # zeros.py sees to it that it is zero


def reduce(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """The reduced dims stay, the others are free."""
    source = call["self"]
    ids = axes[source]
    gone = dims_of(call.args.get("dim"), source.ndim)
    name = call.op.split("::")[1]
    if name not in _ZERO_ADDS_NOTHING:
        axes.pin(f"is reduced over by {name}", *[ids[d] for d in gone])
    return reduced(call, ids, gone)


def reduced(call: Call, ids: list[Axis], gone: list[int]) -> list[Axis] | list[list[Axis]]:
    """The ids that a reduction over some dims leaves."""
    if call.out.ndim == len(ids):
        left: list[Axis] = [None if d in gone else a for d, a in enumerate(ids)]
    else:
        left = [a for d, a in enumerate(ids) if d not in gone]
    return left if len(call.outs) == 1 else [list(left) for _ in call.outs]


def along(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """Softmax, cumulative sums, sorting: the dim they run along stays."""
    source = call["self"]
    ids = axes[source]
    if source.ndim:
        d = call.args.get("dim", -1) % source.ndim
        axes.pin(f"is run along by {call.op.split('::')[1]}", ids[d])
        ids[d] = None
    return ids if len(call.outs) == 1 else [list(ids) for _ in call.outs]


def transform(axes: Axes, call: Call) -> list[Axis]:
    """A Fourier transform mixes the dims that it runs along."""
    ids = axes[call["self"]]
    for d in dims_of(call["dim"], len(ids)):
        axes.pin("is mixed by a Fourier transform", ids[d])
        ids[d] = None
    return ids


def _spatial(k: int) -> Callable[[Axes, Call], Any]:
    def rule(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
        source, *others = call.inputs
        ids = axes[source]
        axes.pin("says where to sample", *[a for v in others for a in axes[v]])
        axes.pin("is space that is pooled or resampled", *ids[-k:])
        left: list[Axis] = [*ids[:-k], *[None] * k]
        return left if len(call.outs) == 1 else [list(left) for _ in call.outs]

    return rule


def glu(axes: Axes, call: Call) -> list[Axis]:
    """Two halves of a dim are multiplied: they go together."""
    ids = axes[call["self"]]
    d = call["dim"] % call.out.ndim
    axis = ids[d]
    if axis is not None:
        half = len(axis) // 2
        axes.tie(axis[:half], axis[half:])
        ids[d] = axis[:half]
    return ids


RULES = {
    **table(
        (
            "sum argmax argmin any all prod logsumexp linalg_vector_norm norm median nansum",
            reduce,
        ),
        ("_softmax _log_softmax softmax _safe_softmax cumsum cumprod sort topk kthvalue logcumsumexp", along),
        ("glu", glu),
        ("_fft_r2c _fft_c2r _fft_c2c", transform),
    ),
    **{
        f"aten::{name}": _spatial(k)
        for k, names in {
            1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d reflection_pad1d replication_pad1d "
            "upsample_nearest1d upsample_linear1d max_pool1d_with_indices",
            2: "max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices "
            "reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
            "_upsample_bilinear2d_aa _upsample_bicubic2d_aa mkldnn_max_pool2d mkldnn_adaptive_avg_pool2d "
            "adaptive_avg_pool2d grid_sampler_2d",
            3: "max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d "
            "max_pool3d_with_indices reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d",
        }.items()
        for name in names.split()
    },
}
