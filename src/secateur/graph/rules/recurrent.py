"""Recurrent layers, each written down as one call: a hidden unit goes from every gate, layer and direction."""

from __future__ import annotations

import numpy as np

from secateur.graph.axes import NOTHING, Axes, Axis, Expected
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import table
from secateur.graph.sizes import Arithmetic, Extent

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _gates(axes: Axes, rows: Axis, gates: int) -> Axis:
    """The units behind the rows (gates, units) of a weight or a bias; gates stay."""
    if rows is None or gates == 1:
        return rows
    which, units = axes.split(rows, [gates, len(rows) // gates])
    axes.pin("is a gate", which)
    return units


def _weights(
    axes: Axes, gates: int, x: Axis, hidden: Axis, fed: Axis, given: list[Value], steps: tuple[int, int]
) -> None:
    """Tie one direction of one layer: ``fed`` is what feeds back, the hidden state or its projection."""
    w_ih, w_hh, *biases = given
    axes.tie(axes[w_ih][1], x, "is the input of a recurrent layer")
    axes.tie(axes[w_hh][1], fed, "is the state of a recurrent layer")
    for w in (w_ih, w_hh):
        axes.label_input(axes[w][1])
        axes.tie(_gates(axes, axes[w][0], gates), hidden)
        axes.count_macs(None, axes[w][0], axes[w][1], value=(steps[0] * steps[1], *w.shape))
    for b in biases:
        axes.tie(_gates(axes, axes[b][0], gates), hidden)


def recurrent(axes: Axes, call: Call) -> list[list[Axis]]:
    """``nn.LSTM``, ``nn.GRU``, ``nn.RNN``: all layers and directions have one hidden size, so they go together."""
    name = call.op.removeprefix("secateur::")
    gates, x = _GATES[name], call["input"]
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    directions = 2 if call["bidirectional"] else 1
    given: list[Value] = call["weights"]
    each = len(given) // (call["layers"] * directions)
    projected = name == "lstm" and states[0].shape[-1] != states[1].shape[-1]
    plain = each - projected
    hidden: Axis = axes.fresh(given[1].shape[0] // gates)
    axes.label(hidden, "hidden")
    fed: Axis = axes.fresh(states[0].shape[-1]) if projected else hidden
    along = axes[x][-1]
    batch, time = axes[x][:-1], (int(np.prod(x.shape[:-1])), 1)
    if call["batch_sizes"] is None:
        axes.pin("is time or batch of a recurrent layer", *batch)
    for layer in range(call["layers"]):
        for direction in range(directions):
            k = (layer * directions + direction) * each
            _weights(axes, gates, along, hidden, fed, given[k : k + plain], time)
            if projected:
                rows, columns = axes[given[k + plain]]
                axes.tie(columns, hidden)
                _projects(axes, call, given[k + plain])
                axes.label_input(columns)
                axes.tie(rows, fed)
        assert fed is not None
        along = np.concatenate([fed] * directions)
    for state, axis in zip(states, [fed, hidden], strict=False):
        axes.tie(axes[state][-1], axis, "is an initial state that is not tracked")
    made = [out for out in call.outs if out is not None]
    return [_last(out, axis) for out, axis in zip(made, [along, fed, hidden], strict=False)]


def _last(value: Value, axis: Axis) -> list[Axis]:
    """Only the last dim is tracked."""
    return [*[None] * (value.ndim - 1), axis]


def _projects(axes: Axes, call: Call, w: Value) -> None:
    """Torch tells a projection by the two sizes, which must go on differing."""
    differ = Arithmetic("__ne__", Extent(w.index, 0), Extent(w.index, 1))
    axes.expected.append(Expected(differ, NOTHING, call.place, "a comparison", 1))


def cell(axes: Axes, call: Call) -> list[Axis] | list[list[Axis]]:
    """``nn.LSTMCell``, ``nn.GRUCell``, ``nn.RNNCell``."""
    gates, x = _GATES[call.op.removeprefix("secateur::").removesuffix("_cell")], call["input"]
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    given = [call[k] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if call[k] is not None]
    hidden = axes.fresh(given[1].shape[1])
    axes.label(hidden, "hidden")
    _weights(axes, gates, axes[x][-1], hidden, hidden, given, (int(np.prod(x.shape[:-1])), 1))
    for state in states:
        axes.tie(axes[state][-1], hidden, "is an initial state that is not tracked")
    made = [_last(out, hidden) for out in call.outs if out is not None]
    return made if len(made) > 1 else made[0]


def pack(axes: Axes, call: Call) -> list[list[Axis]]:
    """Sequences end to end: features stay what they are."""
    return [[None, *axes[call["input"]][2:]], [None]]


def unpack(axes: Axes, call: Call) -> list[list[Axis]]:
    """Sequences side by side, padded."""
    return [[None, None, *axes[call["data"]][1:]], [None]]


RULES = {
    **table(("_pack_padded_sequence", pack)),
    "secateur::_pad_packed_sequence": unpack,
    **{f"secateur::{name}": recurrent for name in _GATES},
    **{f"secateur::{name}_cell": cell for name in _GATES},
}
