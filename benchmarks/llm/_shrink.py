"""Structured pruning with secateur: ``python _shrink.py MODEL TOKENS METHOD REMOVED OUT``; REMOVED is in percent.

METHOD is one of `WAYS`; ``+distilled`` after it trains the result towards the dense model on the calibration windows.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from secateur.llm.recover_folder import recover_folder
from secateur.llm.shrink.options import mixed, ranked, uniform
from secateur.llm.shrink.run import llm_shrink, of_params

import secateur as sc

STEPS = 32
"""Of four windows: twice through the calibration text."""
_FLAP = {"criterion": sc.flap, "allocate": ranked, "layers": False, "damping": None, "ridge": None}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "neurons_obs": {"kinds": ("neuron",), "layers": False, "allocate": uniform},
    "neurons_mixed": {"kinds": ("neuron",), "layers": False},
    "neurons_flap": {**_FLAP, "kinds": ("neuron",)},
    "neurons_magnitude": {
        "criterion": sc.magnitude,
        "kinds": ("neuron",),
        "layers": False,
        "allocate": uniform,
        "damping": None,
        "ridge": None,
    },
    "depth": {"kinds": ()},
    "obs": {"layers": False},
    "flap": _FLAP,
    "mixed": {"allocate": mixed},
}
"""Name in the results -> arguments of `llm_shrink`."""


def main(model: str, tokens: str, method: str, removed: str, out: str) -> None:
    """Shrink, and train if asked."""
    windows = load_file(tokens)["tokens"]
    way, _, then = method.partition("+")
    place = Path(out).with_name(f"{Path(out).name}-cut") if then else Path(out)
    llm_shrink(model, windows, [of_params(1 - float(removed) / 100)], place, **WAYS[way])
    if then:
        recover_folder(place, model, windows, out, steps=STEPS, batch=4)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
