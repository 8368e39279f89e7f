"""Structured pruning with secateur: ``python _shrink.py MODEL TOKENS METHOD REMOVED OUT``; REMOVED is in percent.

METHOD is one of `WAYS`; ``+distilled`` after it trains the result towards the dense model on the calibration windows.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

import secateur as sc
from secateur.llm.recover_folder import recover_folder
from secateur.llm.shrink.asked import Shrinking, of_params
from secateur.llm.shrink.ladder import fluctuation
from secateur.llm.shrink.options import ranked, uniform
from secateur.llm.shrink.run import llm_shrink

STEPS = 32
"""Of four windows: twice through the calibration text."""
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
    """Shrink, and train if asked."""
    windows = load_file(tokens)["tokens"]
    way, _, then = method.partition("+")
    place = Path(out).with_name(f"{Path(out).name}-cut") if then else Path(out)
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    llm_shrink(model, windows, [of_params(1 - float(removed) / 100)], place, WAYS[way])
    if then:
        recover_folder(place, model, windows, out, steps=STEPS, batch=4)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
