"""Fused attention kernels."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import table


def attention(axes: Axes, call: Call) -> list[list[Axis]]:
    """softmax(q kᵀ · scale) v over (batch, heads, time, dim); key/value heads may be shared by several query heads."""
    q, k, v = (axes[call[n]] for n in ("query", "key", "value"))
    shapes = [call[n].shape for n in ("query", "key", "value")]
    heads: Axis = q[1]
    many, few = shapes[0][1], shapes[1][1]
    if many != few and heads is not None:
        heads = axes.split(heads, [few, many // few])[0]
    axes.tie(q[0], k[0])
    axes.tie(k[0], v[0])
    axes.tie(heads, k[1])
    axes.tie(k[1], v[1])
    axes.tie(q[3], k[3])
    axes.tie(k[2], v[2])
    axes.pin("is run along by the softmax of attention", k[2])
    if call.args.get("is_causal"):
        axes.pin("is run along by the softmax of attention", q[2])
    axes.label(q[1], "head")
    axes.label(q[3], "head_dim")
    axes.label(v[3], "head_dim")
    if call.args.get("scale") is None:
        axes.pin("sets the default scale of scaled_dot_product_attention, 1/sqrt(head dim)", q[3])
    _mask(axes, call, [q[0], q[1], q[2], k[2]])
    (batch, _, time, depth), (_, _, keys, _), width = shapes[0], shapes[1], shapes[2][3]
    axes.count_macs(None, q[1], None, q[3], value=(batch, many, time * keys, depth))
    axes.count_macs(None, q[1], None, v[3], value=(batch, many, time * keys, width))
    rest: list[list[Axis]] = [[None] * o.ndim if o is not None else [] for o in call.outs[1:]]
    return [[q[0], q[1], q[2], v[3]], *rest]


def _mask(axes: Axes, call: Call, against: list[Axis]) -> None:
    """A mask or position bias may have a head dim of its own."""
    for key in ("attn_mask", "attn_bias"):
        mask = call.args.get(key)
        if isinstance(mask, Value):
            for axis, size, other in zip(axes[mask], mask.shape, against[-mask.ndim :], strict=True):
                if size > 1:
                    axes.tie(axis, other)


RULES = table(
    (
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_cudnn_attention scaled_dot_product_attention "
        "_scaled_dot_product_fused_attention_overrideable",
        attention,
    )
)
