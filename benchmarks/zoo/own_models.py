"""Nets that sit in no registry, written as their users write them, with the marks of training on them."""

from __future__ import annotations

import importlib

from case import Case
from own_state import lived_in
from torch import nn

PARTS = (
    "vision",
    "pictures",
    "yolo",
    "detect",
    "diffusion",
    "generate",
    "series",
    "audio",
    "recurrent",
    "sequences",
    "attention",
    "language",
    "variants",
    "mixing",
    "tabular",
    "fields",
    "custom",
    "wired",
)


def in_use(case: Case) -> Case:
    def build() -> nn.Module:
        return lived_in(case.build())

    return Case(build, case.example)


def merged() -> dict[str, Case]:
    """The cases of every part; no name may stand in two."""
    found: dict[str, Case] = {}
    for part in PARTS:
        own: dict[str, Case] = importlib.import_module(f"own_{part}").CASES
        if twice := found.keys() & own.keys():
            raise ValueError(f"own_{part} defines again: {', '.join(sorted(twice))}")
        found |= {name: in_use(case) for name, case in own.items()}
    return found


CASES: dict[str, Case] = merged()
