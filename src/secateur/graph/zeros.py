"""Where a value is zero because a weight was zeroed: only there does a contraction lose nothing by a cut.

A masked position is zero in the weights. Linear layers, products and functions with f(0) = 0 keep it so; ``exp``,
``sigmoid`` or adding a constant do not. A product that sums over a cut axis needs one factor that is zero there
(``0 * x = 0``), or the dropped term would still count in the masked model: such an axis stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import dims_of

Flags: TypeAlias = list[bool]
"""By dim: whether the value is zero at every removed position of it; True where nothing can be removed."""

_WHY = "is summed over where neither factor is zero after a cut"
_VIEWS = frozenset(
    (
        "view _unsafe_view _reshape_alias reshape permute transpose transpose_ t t_ numpy_T adjoint expand "
        "unsqueeze unsqueeze_ squeeze squeeze_ split split_with_sizes unsafe_split chunk unsafe_chunk "
        "unsafe_split_with_sizes slice select unbind detach alias view_as_complex view_as_real unfold"
    ).split()
)
_KEEPS = _VIEWS | frozenset(
    (
        "clone _to_copy contiguous lift lift_fresh lift_fresh_copy dropout native_dropout relu "
        "gelu silu tanh sin tan asin atan sinh asinh abs neg sgn sign sqrt square erf expm1 log1p floor ceil "
        "round trunc mish elu selu leaky_relu hardswish hardshrink softshrink _prelu_kernel prelu relu6 _conj "
        "conj real imag flip roll repeat repeat_interleave index index_select _unsafe_index sum mean amax "
        "amin max min prod var std linalg_vector_norm norm cumsum tril triu max_pool1d avg_pool1d "
        "adaptive_avg_pool1d adaptive_max_pool1d max_pool2d avg_pool2d _adaptive_avg_pool2d "
        "adaptive_max_pool2d max_pool2d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d "
        "adaptive_max_pool3d max_pool3d_with_indices adaptive_avg_pool2d adaptive_avg_pool3d "
        "mkldnn_max_pool2d upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d "
        "upsample_bicubic2d upsample_nearest3d upsample_trilinear3d reflection_pad1d reflection_pad2d "
        "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle "
        "im2col col2im glu _fft_r2c _fft_c2r _fft_c2c _pack_padded_sequence"
    ).split()
)
_SUMS = frozenset(("complex index_add scatter_add add sub rsub lerp where maximum minimum copy copy_").split())
_PRODUCTS = frozenset(["mul", "logical_and", "bitwise_and", "div", "true_divide"])
_CHANNEL_NORMS = frozenset(
    (
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
        "_batch_norm_no_update _batch_norm_with_update native_group_norm"
    ).split()
)
_LAYER_NORMS = frozenset(["native_layer_norm", "_fused_rms_norm", "rms_norm"])
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_ZEROS = frozenset(("zeros", "new_zeros", "zeros_like"))
_SOFTMAX = frozenset(("_softmax", "_log_softmax", "_safe_softmax"))
_WEIGHTED = frozenset(("linear convolution _convolution cudnn_convolution mkldnn_convolution conv2d").split())


class Zeros:
    """Follows, call by call, where values are zero, and pins what may not be summed over.

    ``known``: flags of tensors that are not zero wherever something of them is removed.
    """

    def __init__(self, axes: Axes, known: Mapping[int, Flags] | None = None) -> None:
        self.axes = axes
        self._flags: dict[int, Flags] = {index: [True] * len(axes.ids[index]) for index in axes.names}
        self._flags |= known or {}
        self._base: dict[int, int] = {}  # a view -> what it views
        self._spoilt: set[int] = set()  # written in place with something that is not zero

    def __call__(self, value: Value) -> Flags:
        """The flags of a value."""
        ids = self.axes.ids.get(value.index)
        if ids is None:
            return [True] * value.ndim
        spoilt = self._base.get(value.index, value.index) in self._spoilt
        known = self._flags.get(value.index)
        return [a is None or (not spoilt and known is not None and known[d]) for d, a in enumerate(ids)]

    def _reduces(self, op: str, call: Call) -> None:
        """A sum or a norm over an axis, or sums along it: what is removed of it must be zero."""
        if op not in ("sum", "nansum", "linalg_vector_norm", "norm", "cumsum") or not call.inputs:
            return
        source = call.inputs[0]
        flags, ids = self(source), self.axes[source]
        order = call.args.get("ord", call.args.get("p", 2))
        for d in dims_of(call.args.get("dim"), source.ndim):
            if not flags[d] or (order is not None and (not isinstance(order, (int, float)) or order <= 0)):
                self.axes.pin(f"is reduced over by {op} where it is not zero after a cut", ids[d])

    def _recurrent(self, call: Call, out: Value) -> Flags:
        """Zero where the weights are, from a state that is zero there: every activation has f(0) = 0 for its value."""
        states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
        return [*[False] * (out.ndim - 1), all(self(s)[-1] for s in states)]

    def follow(self, call: Call) -> None:
        """Work out the outputs of a call, and pin what it may not sum over."""
        tracked = [v for v in call.outs if v is not None and _any(self.axes.ids.get(v.index))]
        op = call.op.removeprefix("aten::")
        if not tracked:
            if op in _CONTRACTIONS:
                _CONTRACTIONS[op](self, call)  # it may sum over a cut axis all the same
            self._reduces(op, call)
            return
        self._reduces(op, call)
        first = call.inputs[0] if call.inputs else None
        in_place = op.endswith("_") and op not in _VIEWS
        for out in tracked:
            flags = self._result(op.removesuffix("_") if in_place else op, call, out)
            base = self._base.get(first.index, first.index) if first is not None else out.index
            if in_place:
                if not all(flags):
                    self._spoilt.add(base)
            elif op in _VIEWS:
                self._base[out.index] = base
                self._flags[out.index] = flags
            else:
                self._flags[out.index] = flags

    def _result(self, op: str, call: Call, out: Value) -> Flags:
        if op in _CONTRACTIONS:
            found: Flags = _CONTRACTIONS[op](self, call)
            return found
        if out.index in self.axes.vanishing:
            return [a is None or d == self.axes.vanishing[out.index] for d, a in enumerate(self.axes[out])]
        if op in ("scatter", "scatter_add") and call["index"].index in self.axes.points:
            return self(call["self"])  # nothing points to what is removed
        if op == "cumsum":
            return [f and d != call["dim"] % out.ndim for d, f in enumerate(self(call["self"]))]
        if op.removeprefix("secateur::").removesuffix("_cell") in _RECURRENT:
            return self._recurrent(call, out)
        if op in _ZEROS:
            return [True] * out.ndim
        if op == "secateur::_pad_packed_sequence" and call["padding_value"] == 0:
            return [*[False] * (out.ndim - 1), self(call["data"])[-1]]
        if op == "secateur::_weight_norm":
            return self(call["v"])
        if op == "secateur::multi_head_attention_forward":
            return [*[False] * (out.ndim - 1), out.index == call.out.index]
        tensors = call.inputs
        if op in _KEEPS:
            return self._moved(tensors[0], out, op)
        if op in ("cat", "concat", "stack"):
            moved = [self._moved(v, out) for v in tensors]
            return [all(m) for m in zip(*moved, strict=True)]
        if op in _PRODUCTS:
            return self._elementwise(tensors[:1] if op.startswith(("div", "true")) else tensors, out, any)
        if op in _SUMS:
            return self._sum(op, call, tensors, out)
        if op in _CHANNEL_NORMS:
            return self._channel_norm(call, out)
        if op in _LAYER_NORMS:
            return self._layer_norm(call, out)
        if op == "polar":
            return self._elementwise(tensors[:1], out, any)
        if op.startswith("_embedding_bag"):
            return [False] * (out.ndim - 1) + [self(call["weight"])[1]]
        if op == "embedding":
            return [*[False] * (out.ndim - 1), self(call["weight"])[1]]
        return self._moved(tensors[0], out) if _keeps_zero(op, call) else [False] * out.ndim

    def _sum(self, op: str, call: Call, tensors: Sequence[Value], out: Value) -> Flags:
        numbers = [call.args.get(k) for k in ("other", "self")]
        if any(isinstance(n, (int, float)) and n != 0 for n in numbers):
            return [False] * out.ndim
        return self._elementwise(tensors[1:] if op == "where" else tensors, out, all)

    def _moved(self, source: Value, out: Value, op: str = "") -> Flags:
        """Dims with the same ids keep their flag; the others share what is left of the source's."""
        before, after, flags = self.axes[source], self.axes[out], self(source)
        same = [[e for e, b in enumerate(before) if _same(a, b)] for a in after]
        used = {e for es in same for e in es}
        rest = op != "expand" and all(f for e, f in enumerate(flags) if e not in used)
        return [all(flags[e] for e in es) if es else rest for es in same]

    def _elementwise(self, operands: Sequence[Value], out: Value, combine: Any) -> Flags:
        """``any``: one factor is enough; ``all``: every term must be zero, by its own dim and not by broadcasting."""
        flags = [self(v) for v in operands]
        result = []
        for d in range(-out.ndim, 0):
            own = [-d <= v.ndim and (v.shape[d] > 1 or out.shape[d] == 1) for v in operands]
            result.append(bool(combine(o and f[d] for o, f in zip(own, flags, strict=True))))
        return result

    def _affine(self, call: Call) -> bool | None:
        """Whether weight and bias make the last dims zero; None without weight."""
        given = [call.args.get(k) for k in ("weight", "bias")]
        if not isinstance(given[0], Value):
            return None
        return all(all(self(v)) for v in given if isinstance(v, Value))

    def _channel_norm(self, call: Call, out: Value) -> Flags:
        affine = self._affine(call)
        flags = [bool(call.args.get("training"))] * out.ndim  # statistics over what is kept: the rest comes out as zero
        if out.ndim > 1:
            flags[1] = self(call["input"])[1] if affine is None else affine
        return flags

    def _layer_norm(self, call: Call, out: Value) -> Flags:
        k = len(call["normalized_shape"])
        lead = [f and call.args.get("bias") is None for f in self(call["input"])[: out.ndim - k]]
        return [*lead, *[bool(self._affine(call))] * k][: out.ndim]

    def contracts(self, x: Value, i: int, y: Value, j: int) -> None:
        """A sum over dim ``i`` of x and dim ``j`` of y."""
        if not (self(x)[i] or self(y)[j]):
            self.axes.pin(_WHY, self.axes[x][i], self.axes[y][j])


def is_followed(call: Call) -> bool:
    """Whether zeros are followed through this op by what goes in, and not by what the op is known to do with weights.

    Those that are not multiply and add inside, where nothing here looks.
    """
    op = call.op.removeprefix("aten::")
    return call.pointwise or op.removesuffix("_") in _FOLLOWED or op in _FOLLOWED


def _any(axes: Sequence[Axis] | None) -> bool:
    if axes is not None:
        for a in axes:
            if a is not None:
                return True
    return False


def _same(a: Axis, b: Axis) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all()))


def _keeps_zero(op: str, call: Call) -> bool:
    """Ops that keep zeros for some of their arguments."""
    if op in ("constant_pad_nd", "masked_fill", "threshold"):
        return bool(call.args.get("value") == 0)
    if op == "pow":
        return isinstance(call.args.get("exponent"), (int, float)) and call.args["exponent"] > 0
    if op in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
        low, high = (call.args.get(k, call.args.get(f"{k}_val")) for k in ("min", "max"))
        bounds = [0 if b is None else b for b in (low, high)]
        return all(isinstance(b, (int, float)) for b in bounds) and bounds[0] <= 0 <= bounds[1]
    return False


def _matrix(zeros: Zeros, call: Call) -> Flags:
    """(*batch, m, k) @ (*batch, k, n), with or without something added."""
    op, bias = call.op, None
    x, y = call.args.get("self"), call.args.get("mat2")
    if op == "aten::addmm":
        x, bias = call["mat1"], call["self"]
    elif op == "aten::baddbmm":
        x, y, bias = call["batch1"], call["batch2"], call["self"]
    assert isinstance(x, Value)
    assert isinstance(y, Value)
    zeros.contracts(x, x.ndim - 1, y, y.ndim - 2)
    (*batch, m, _), (*also, _, n) = zeros(x), zeros(y)
    flags = [*[a or b for a, b in zip(batch, also, strict=True)], m, n]
    if isinstance(bias, Value):
        added = zeros(bias)
        lead = len(flags) - bias.ndim
        flags = [f and d >= lead and bias.shape[d - lead] > 1 and added[d - lead] for d, f in enumerate(flags)]
    return flags


def _vector(zeros: Zeros, call: Call) -> Flags:
    x, y = call["self"], next(v for k, v in call.args.items() if k in ("vec", "tensor", "other"))
    zeros.contracts(x, x.ndim - 1, y, 0)
    return zeros(x)[:-1]


def _weighted(zeros: Zeros, call: Call) -> Flags:
    """Linear layers and convolutions left whole: weights (out, in, ...), or (in, out, ...) when transposed."""
    x, w = call.args.get("input", call.args.get("self")), call["weight"]
    assert isinstance(x, Value)
    bias = call.args.get("bias")
    at = x.ndim - 1 if call.op == "aten::linear" else 1
    inner, outer = (0, 1) if call.args.get("transposed") else (1, 0)
    if not (zeros(x)[at] or zeros(w)[inner]):
        zeros.axes.pin(_WHY, zeros.axes[x][at], zeros.axes[w][inner])
    made = zeros(w)[outer] and (not isinstance(bias, Value) or all(zeros(bias)))
    return [made if d == at else f and bias is None for d, f in enumerate(zeros(x))]


def _attention(zeros: Zeros, call: Call) -> Flags:
    zeros.contracts(call["query"], 3, call["key"], 3)
    _, head, _, depth = zeros(call["value"])
    own = call["query"].shape[1] == call["value"].shape[1]  # several queries to a value: one that goes leaves it
    return [False, head and own, False, depth]


_CONTRACTIONS: dict[str, Any] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _matrix),
    **dict.fromkeys(("mv", "dot", "vdot"), _vector),
    **dict.fromkeys(_WEIGHTED, _weighted),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
            "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
            "_scaled_dot_product_cudnn_attention scaled_dot_product_attention "
            "_scaled_dot_product_fused_attention_overrideable"
        ).split(),
        _attention,
    ),
}

_FOLLOWED = frozenset(
    {*_KEEPS, *_SUMS, *_PRODUCTS, *_CHANNEL_NORMS, *_LAYER_NORMS, *_ZEROS, *_SOFTMAX, *_CONTRACTIONS}
    | {"cat", "concat", "stack", "embedding", "constant_pad_nd", "masked_fill"}
)
