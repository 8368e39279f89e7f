"""Normalisations: over the batch they follow the channels; over a channel axis they pin it unless asked."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import dims_of, table
from secateur.graph.rules.reduction import reduce
from secateur.graph.sizes import Size, plain


def batch_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Weight, bias and running statistics go with the channels."""
    ids = axes[call["input"]]
    channels = ids[1] if len(ids) > 1 else None
    for key in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.args.get(key), Value):
            axes.tie(axes[call[key]][0], channels)
    return [ids, *_nothing(call)]


def _nothing(call: Call) -> list[list[Axis]]:
    return [[None] * v.ndim if v is not None else [] for v in call.outs[1:]]


def _affine(axes: Axes, call: Call, ids: list[Axis], k: int) -> None:
    for key in ("weight", "bias"):
        if isinstance(call.args.get(key), Value):
            for mine, theirs in zip(axes[call[key]], ids[-k:], strict=True):
                axes.tie(mine, theirs)


def layer_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Statistics run over the last dims: they stay."""
    ids, k = axes[call["input"]], len(call["normalized_shape"])
    _affine(axes, call, ids, k)
    axes.pin("is normalised over: residual width is cut only on request", *ids[-k:])
    return [ids, *_nothing(call)]


def layer_norm_over_kept(axes: Axes, call: Call) -> list[list[Axis]]:
    """Statistics run over whatever is kept of the last dim."""
    ids, k = axes[call["input"]], len(call["normalized_shape"])
    _affine(axes, call, ids, k)
    if k > 1:
        axes.pin("is normalised over together with other dims", *ids[-k:])
    else:
        axes.label(ids[-1], "width")
        tagged = [s for s in call.sizes if isinstance(s, Size)]
        axes.expect(tagged[0] if tagged else call["normalized_shape"][0], ids[-1], call)
    return [ids, *_nothing(call)]


def group_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Statistics run over the channels of a group: groups are rows, channels inside them stay."""
    ids, groups = axes[call["input"]], call["group"]
    channels = ids[1]
    if channels is not None:
        n = len(channels)
        if groups == n:
            rows: Axis = channels
            columns: Axis = None
        elif groups == 1:
            rows, columns = None, channels
        else:
            rows, columns = axes.split(channels, [groups, n // groups])
        axes.pin("is normalised over inside its group", columns)
        tagged = [s for s in call.sizes if isinstance(s, Size) and plain(s) == groups]
        axes.expect(tagged[-1] if tagged else groups, rows, call)
    for key in ("weight", "bias"):
        if isinstance(call.args.get(key), Value):
            axes.tie(axes[call[key]][0], channels)
    return [ids, *_nothing(call)]


def mean_over_kept(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """A mean of squares over the last dim is a norm written out: over whatever is kept; any other mean pins."""
    source = call["self"]
    ids = axes[source]
    squares = axes.made_by.get(source.index) in ("aten::pow", "aten::square")
    if not squares or dims_of(call.args.get("dim"), source.ndim) != [source.ndim - 1]:
        return reduce(axes, call)
    axes.label(ids[-1], "width")
    if call.api == "rms_norm":  # torch's own, taken apart; its shape is an argument
        axes.expect(call.sizes[-1] if call.sizes else None, ids[-1], call)
    return [*ids[:-1], None] if call.out.ndim == source.ndim else ids[:-1]


OVER_KEPT = table(
    ("native_layer_norm _fused_rms_norm rms_norm", layer_norm_over_kept),
    ("mean", mean_over_kept),
)

RULES = table(
    (
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
        "_batch_norm_no_update _batch_norm_with_update",
        batch_norm,
    ),
    ("native_layer_norm _fused_rms_norm rms_norm", layer_norm),
    ("native_group_norm", group_norm),
)
