"""How long advice takes, and whether its first three recommendations hold when they are measured in full.

Experiment ``advise``; cases ``MODEL`` (ONNX Runtime and its int8 sibling, one thread); metrics ``seconds``, from
the call to the answer, ``top_N_said`` and ``top_N_found`` (time over the dense model's: as advised, and exported anew),
``confirmed``: how many of them are faster again beyond the noise.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from _subjects import SUBJECTS

import secateur as sc
from _rows import Figure

EXPERIMENT = "advise"
ROUNDS = 20
"""Least that confirm: below `secateur.targets.measure.FEWEST` nothing is said about significance."""


def part(name: str) -> list[Figure]:
    """The figures of one model."""
    subject = SUBJECTS[name]()
    start = time.perf_counter()
    advice = sc.advise(subject.model, subject.example, sc.onnxruntime, lower=[sc.onnxruntime_int8])
    figures = [Figure(name, "seconds", time.perf_counter() - start, "s")]
    print(f"{name}: {figures[0].value:.0f} s: {advice.sentence}", flush=True)
    sure = sc.confirm(advice, rounds=max(subject.repeats, ROUNDS))
    for i, found in enumerate(sure, 1):
        print(f"  {found.what}: {found.said} said, {found.found.words()}", flush=True)
        figures += [Figure(name, f"top_{i}_said", found.said)] if found.said is not None else []
        figures += [Figure(name, f"top_{i}_found", found.found.ratio)]
    return [*figures, Figure(name, "confirmed", float(sum(found.holds for found in sure)))]


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model."""
    return {m: functools.partial(part, m) for m in SUBJECTS if not (quick and m == "smollm2_135m")}
