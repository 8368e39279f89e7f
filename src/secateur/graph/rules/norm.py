"""Normalisations: over the batch they follow the channels; over an axis they run over whatever is kept of it."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.resize import CHOICES, STATISTICS
from secateur.graph.rules._table import dims_of, table
from secateur.graph.rules.reduction import reduce, reduced
from secateur.graph.sizes import plain


def batch_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Weight, bias and running statistics go with the channels."""
    ids = axes[call["input"]]
    channels = ids[1] if len(ids) > 1 else None
    if call.args.get("training"):  # weight standardisation: in evaluation mode nothing else has statistics of its own
        reason, others = "is normalised over", [a for d, a in enumerate(ids) if d != 1]
        if call.api not in STATISTICS:
            axes.pin(reason, *others)
        elif not call["input"].weight:
            axes.over(reason, *others)
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


RESIDUAL = "asked::residual"
"""In a table of rules: cut residual width too."""

_RESIDUAL = "is normalised over: residual width is cut only on request"


def layer_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Statistics run over whatever is kept of the last dim; over several dims they stay."""
    ids, k = axes[call["input"]], len(call["normalized_shape"])
    _affine(axes, call, ids, k)
    if k > 1 or call.api not in STATISTICS:
        axes.pin("is normalised over together with other dims", *ids[-k:])
        return [ids, *_nothing(call)]
    _over(axes, call, _RESIDUAL, ids[-1])
    axes.expect(call.sizes[0] if call.sizes else call["normalized_shape"][0], ids[-1], call, 0 if call.sizes else None)
    return [ids, *_nothing(call)]


def _over(axes: Axes, call: Call, reason: str, *ids: Axis) -> None:
    if call.inputs[0].weight:
        return  # weights that are standardised are no residual stream
    if RESIDUAL in axes.asked:
        for axis in ids:
            axes.label(axis, "width")
    else:
        axes.over(reason, *ids)


def group_norm(axes: Axes, call: Call) -> list[list[Axis]]:
    """Statistics run over the channels that are kept of a group: groups are rows, channels inside them columns."""
    ids, groups = axes[call["input"]], call["group"]
    channels = ids[1]
    if channels is not None:
        n = len(channels)
        rows, columns = (channels, None) if groups == n else axes.split(channels, [groups, n // groups])
        if call.api in STATISTICS:
            _over(axes, call, "is normalised over inside its group", columns)
        else:
            axes.pin("is normalised over inside its group", columns)
        at = next((i for i, s in enumerate(call.sizes) if plain(s) == groups), None)
        if groups > 1:
            axes.expect(groups if at is None else call.sizes[at], rows, call, at)
    for key in ("weight", "bias"):
        if isinstance(call.args.get(key), Value):
            axes.tie(axes[call[key]][0], channels)
    return [ids, *_nothing(call)]


def statistic(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """A mean, a variance or an extreme over dims: over whatever is kept of them."""
    source = call["self"]
    indices = call.outs[1] if call.op in ("aten::max", "aten::min") and len(call.outs) > 1 else None
    if call.api not in STATISTICS - CHOICES or (indices is not None and axes.is_used(indices)):
        return reduce(axes, call)
    ids = axes[source]
    gone = dims_of(call.args.get("dim"), source.ndim)
    reason = f"is reduced over by {call.api}: residual width is cut only on request"
    _over(axes, call, reason, *[ids[d] for d in gone])
    if call.api == "rms_norm":  # torch's own, taken apart; its shape is an argument
        axes.expect(call.sizes[0] if call.sizes else None, ids[-1], call, 0)
    return reduced(call, ids, gone)


def weight_norm(axes: Axes, call: Call) -> list[Axis]:
    """``g * v / |v|``, the norm over all dims but one: what is cut of the others is zero and adds nothing to it."""
    ids = axes[call["v"]]
    axes.tie(axes[call["g"]][call["dim"]], ids[call["dim"]])
    return ids


RULES = {
    **table(
        (
            "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
            "_batch_norm_no_update _batch_norm_with_update",
            batch_norm,
        ),
        ("native_layer_norm _fused_rms_norm rms_norm", layer_norm),
        ("native_group_norm", group_norm),
        ("mean var std var_mean std_mean amax amin max min", statistic),
    ),
    "secateur::_weight_norm": weight_norm,
}
