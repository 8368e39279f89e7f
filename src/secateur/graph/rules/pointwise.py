"""Elementwise ops: operands broadcast and go together."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis
from secateur.graph.recorded import Call
from secateur.graph.rules._table import table
from secateur.graph.sizes import Size, plain


def elementwise(axes: Axes, call: Call) -> list[Axis]:
    """Every tensor operand is tied to the others."""
    return axes.join(call.inputs, call.out.shape)


def same(axes: Axes, call: Call) -> list[Axis]:
    """The output's axes are those of the first operand."""
    return axes[call.inputs[0]]


def triangle(axes: Axes, call: Call) -> list[Axis]:
    """Which entries remain depends on where they stand: both dims stay."""
    ids = axes[call["self"]]
    axes.pin(f"is cut to a triangle by {call.op.split('::')[1]}", *ids[-2:])
    return ids


def same_all(axes: Axes, call: Call) -> list[list[Axis]]:
    """Several outputs, each with the first operand's axes (dropout and its mask, a buffer for the gradient)."""
    first = call.inputs[0]
    return [axes[first] if v is not None and v.shape == first.shape else [] for v in call.outs]


def copy(axes: Axes, call: Call) -> list[Axis]:
    """``copy_``: destination and source are tied, through any view of either."""
    return axes.join([call["self"], call["src"]], call.out.shape)


def constant(axes: Axes, call: Call) -> list[Axis]:
    """A constant tensor: free where its size follows another, untracked where it is a literal."""
    out: list[Axis] = [None] * call.out.ndim
    n = call.out.ndim
    last = min(n, len(call.sizes)) if call.api.startswith("new_") or call.api == "full" else len(call.sizes)
    for d, at in zip(reversed(range(n)), reversed(range(last)), strict=False):
        size = call.sizes[at]
        if plain(size) != call.out.shape[d]:
            break  # a tensor was given as a size
        if plain(size) > 1 and (isinstance(size, Size) or call.nth is not None):
            out[d] = axes.fresh(call.out.shape[d])
            axes.expect(size, out[d], call, at)
    return out


def untracked(axes: Axes, call: Call) -> list[list[Axis]]:
    """Positions, random numbers, conversions to a Python number: nothing of them can be cut."""
    for v in call.inputs:
        axes.pin(f"its values reach {call.op.split('::')[1]}", *axes[v])
    return [[None] * v.ndim if v is not None else [] for v in call.outs]


RULES = table(
    (
        "detach clone _to_copy contiguous lift lift_fresh lift_fresh_copy dropout empty_like zeros_like ones_like "
        "full_like rand_like randn_like bernoulli bernoulli_ fill fill_ zero_ _conj conj to "
        "hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ relu6 leaky_relu_ silu_ relu_ elu_ celu "
        "dequantize",
        same,
    ),
    ("_prelu_kernel prelu where masked_fill masked_fill_ polar complex lerp addcmul addcdiv", elementwise),
    ("tril tril_ triu triu_", triangle),
    ("native_dropout log_sigmoid_forward", same_all),
    ("copy_ copy", copy),
    ("zeros ones full empty new_zeros new_ones new_full new_empty", constant),
    (
        "arange scalar_tensor _local_scalar_dense randint rand randn eye linspace _assert_async "
        "_assert_tensor_metadata item equal is_nonzero",
        untracked,
    ),
)
