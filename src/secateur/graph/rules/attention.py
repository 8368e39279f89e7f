"""Fused attention kernels."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from secateur.graph.axes import Axes, Axis, Expected
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import table
from secateur.graph.sizes import plain
from secateur.types import Ints


def attention(axes: Axes, call: Call) -> list[list[Axis]]:
    """softmax(q kᵀ · scale) v over (batch, heads, time, dim); key/value heads may be shared by several query heads."""
    q, k, v = (axes[call[n]] for n in ("query", "key", "value"))
    shapes = [call[n].shape for n in ("query", "key", "value")]
    heads: Axis = q[1]
    many, few = shapes[0][1], shapes[1][1]
    if few == 1 < many:  # one for all
        axes.pin("is the only key head", k[1], v[1])
        heads = k[1] = v[1] = None
    elif many != few and heads is not None:
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
    if call.args.get("scale") is None and call.api != "scaled_dot_product_attention":
        axes.pin("sets the default scale of scaled_dot_product_attention, 1/sqrt(head dim)", q[3])
    _mask(axes, call, [q[0], q[1], q[2], k[2]])
    (batch, _, time, depth), (_, _, keys, _), width = shapes[0], shapes[1], shapes[2][3]
    axes.count_macs(None, q[1], None, q[3], value=(batch, many, time * keys, depth))
    axes.count_macs(None, q[1], None, v[3], value=(batch, many, time * keys, width))
    rest: list[list[Axis]] = [[None] * o.ndim if o is not None else [] for o in call.outs[1:]]
    return [[q[0], q[1], q[2], v[3]], *rest]


def default_scale(axes: Axes, call: Call) -> list[Axis]:
    """1/sqrt(head dim), worked out in C++: where head dims are cut the call is handed the scale that it had."""
    dims = axes[call["query"]][-1]
    if dims is not None and call.nth is not None:
        axes.expected.append(Expected(len(dims), dims, call.place, call.api, slot=(call.api, call.nth, 0)))
    return []


def multihead(axes: Axes, call: Call) -> list[list[Axis]]:
    """``nn.MultiheadAttention`` as a whole: rows of its projections are (q k v, heads, head dim).

    Its own code knows one width for input, projection and output; what is cut becomes a
    `secateur.graph.multihead.NarrowMultiheadAttention`.
    """
    heads = plain(call["num_heads"])
    q_in, k_in, v_in = (axes[call[n]][-1] for n in ("query", "key", "value"))
    parts = _projections(axes, call, (q_in, k_in, v_in))
    (h, d), (kh, kd), (vh, vd) = (axes.split(p, [heads, len(p) // heads]) for p in parts)
    for one, other in ((h, kh), (h, vh), (d, kd)):
        axes.tie(one, other)
    axes.label(h, "head")
    axes.label(d, "head_dim")
    axes.label(vd, "head_dim")
    for extra, part in (("bias_k", parts[1]), ("bias_v", parts[2])):
        if call[extra] is not None:
            axes.tie(axes[call[extra]][-1], part)
    out, inner = axes[call["out_proj_weight"]]
    axes.tie(inner, parts[2])
    axes.label_input(inner)
    if call["out_proj_bias"] is not None:
        axes.tie(axes[call["out_proj_bias"]][0], out)
    if call["owner"] is not nn.MultiheadAttention:  # what is cut of torch's own becomes a narrow one
        axes.expect(call["embed_dim_to_check"], q_in, call)
        axes.pin("is reshaped inside torch by sizes that cannot be followed", h, d, vd)
    mask = call["attn_mask"]
    if isinstance(mask, Value) and mask.ndim == 3:
        axes.pin("has a mask of its own for every head", h, *axes[mask])
    out_value, weights = call.outs
    assert out_value is not None
    if weights is not None and call["average_attn_weights"] and axes.is_used(weights):
        axes.pin("is averaged over in the attention weights that are returned", h)
    size, width = math.prod(call["query"].shape[:-1]), out_value.shape[-1]
    axes.count_macs(None, out, inner, value=(size, width, len(_ids(inner))))
    for part, name in zip(parts, ("query", "key", "value"), strict=True):
        value = call[name]
        axes.count_macs(None, part, axes[value][-1], value=(math.prod(value.shape[:-1]), len(part), value.shape[-1]))
    time, keys = (call[n].shape[-2 if call[n].ndim == 2 else 0] for n in ("query", "key"))
    keys += (call["bias_k"] is not None) + bool(call["add_zero_attn"])
    pairs = size * keys if call["query"].ndim == 2 else call["query"].shape[1] * time * keys
    for dims in (d, vd):
        axes.count_macs(None, h, dims, value=(pairs, heads, len(_ids(dims))))
    made: list[list[Axis]] = [[*[None] * (out_value.ndim - 1), out]]
    if weights is not None:
        made.append([h if n == heads and weights.ndim == 4 and i == 1 else None for i, n in enumerate(weights.shape)])
    return made


def _ids(axis: Axis) -> Ints:
    assert axis is not None
    return axis


def _projections(axes: Axes, call: Call, inputs: tuple[Axis, Axis, Axis]) -> list[Ints]:
    """The rows of the query, key and value projections; their columns are tied to the inputs."""
    if call["use_separate_proj_weight"]:
        weights = [axes[call[f"{n}_proj_weight"]] for n in "qkv"]
        rows = [_ids(w[0]) for w in weights]
        columns = [w[1] for w in weights]
    else:
        whole, column = axes[call["in_proj_weight"]]
        rows = np.split(_ids(whole), 3)
        columns = [column] * 3
    for column, axis in zip(columns, inputs, strict=True):
        axes.tie(column, axis, "is the input of an attention")
        axes.label_input(column)
    if call["in_proj_bias"] is not None:
        axes.tie(axes[call["in_proj_bias"]][0], np.concatenate(rows))
    return rows


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
) | {"secateur::default_scale": default_scale, "secateur::multi_head_attention_forward": multihead}
