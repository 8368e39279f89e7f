"""Structured pruning with secateur: ``python _shrink.py MODEL TOKENS METHOD REMOVED OUT``; REMOVED is in percent.

METHOD is one of `WAYS`, of the parameters; or ``width``, of the channels of the residual stream.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from safetensors.torch import load_file

import secateur as sc
from secateur.llm.shrink.asked import Shrinking, of_params
from secateur.llm.shrink.ladder import fluctuation
from secateur.llm.shrink.options import ranked, uniform
from secateur.llm.shrink.run import llm_shrink

_FLAP = Shrinking(fluctuation, allocate=ranked, layers=False, damping=None, ridge=None, heal=False)
_MAGNITUDE = Shrinking(sc.magnitude, allocate=uniform, layers=False, damping=None, ridge=None, heal=False)
WAYS: Mapping[str, Shrinking] = {
    "neurons_obs": Shrinking(kinds=("neuron",), layers=False, allocate=uniform),
    "neurons_mixed": Shrinking(kinds=("neuron",), layers=False),
    "neurons_flap": replace(_FLAP, kinds=("neuron",)),
    "neurons_magnitude": replace(_MAGNITUDE, kinds=("neuron",)),
    "depth": Shrinking(kinds=()),
    "obs": Shrinking(layers=False),
    "flap": _FLAP,
    "mixed": Shrinking(),
}
"""Name in the results -> how."""


def main(model: str, tokens: str, method: str, removed: str, out: str) -> None:
    """Shrink."""
    left = 1 - float(removed) / 100
    how = WAYS[method] if method != "width" else Shrinking(kinds=(), layers=False, width=left)
    budgets = [] if method == "width" else [of_params(left)]
    llm_shrink(model, load_file(tokens)["tokens"], budgets, out, how)


if __name__ == "__main__":
    main(*sys.argv[1:])
