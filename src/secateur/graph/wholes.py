"""Torch functions that are written down as one call: their parts would hide what their weights mean.

Recurrent layers unroll into thousands of calls or vanish in a fused kernel; attention reads its sizes inside torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.nn import functional

Bind = Callable[..., dict[str, Any]]


def _layers(*args: Any) -> dict[str, Any]:
    """``lstm(input, hx, weights, ...)``, or with batch sizes second where the input is packed."""
    packed = len(args) > 3 and isinstance(args[3], (list, tuple))
    data, batch_sizes, rest = args[0], args[1] if packed else None, args[2 if packed else 1 :]
    names = ("hx", "weights", "biases", "layers", "dropout", "train", "bidirectional", "batch_first")
    return {"input": data, "batch_sizes": batch_sizes, "batch_first": False, **dict(zip(names, rest, strict=False))}


def _cell(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None
) -> dict[str, Any]:
    return {
        "input": input,
        "hx": hx,
        "weight_ih": weight_ih,
        "weight_hh": weight_hh,
        "bias_ih": bias_ih,
        "bias_hh": bias_hh,
    }


_attention = inspect.signature(functional.multi_head_attention_forward)


def _multihead(*args: Any, **kwargs: Any) -> dict[str, Any]:
    bound = _attention.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _weight_norm(v: Any, g: Any, dim: int = 0) -> dict[str, Any]:
    return {"v": v, "g": g, "dim": dim}


def _padded(data: Any, batch_sizes: Any, batch_first: bool, padding_value: Any, total_length: int) -> dict[str, Any]:
    return {"data": data, "batch_sizes": batch_sizes, "batch_first": batch_first, "padding_value": padding_value}


WHOLES: Mapping[str, Bind] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _layers),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "multi_head_attention_forward": _multihead,
    "_weight_norm": _weight_norm,
    "_pad_packed_sequence": _padded,
}
"""Name of a torch function -> its arguments by name. The call is written down as ``secateur::NAME``."""
