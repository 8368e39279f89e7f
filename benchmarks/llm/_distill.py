"""Distillation of a shrunk model towards the dense one: ``python _distill.py FOLDER DENSE TOKENS OUT``."""

from __future__ import annotations

import sys

from safetensors.torch import load_file

from secateur.llm.recover_folder import recover_folder

STEPS = 32
"""Of four windows: twice through the calibration text."""


def main(folder: str, dense: str, tokens: str, out: str) -> None:
    """Train all weights."""
    recover_folder(folder, dense, load_file(tokens)["tokens"], out, steps=STEPS, batch=4)


if __name__ == "__main__":
    main(*sys.argv[1:])
