"""Structured pruning of SmolLM2-135M: perplexity of what was saved, loaded anew in a clean process.

Experiment ``structured``; cases ``neurons_25%/METHOD`` (a quarter of the MLP neurons, 14.8 % of the parameters),
``depth_3`` (3 of 30 blocks), ``width_504`` (of 576 channels of the residual stream) and ``N%/METHOD`` (of all
parameters, at least so many removed); metrics ``perplexity`` and ``params_ratio``, parameters left over those of the
dense model. Text and judge as in ``one_shot``; nothing is trained where the case does not end in ``+distilled``. A part
``N%/METHOD+distilled`` makes both cases, before and after. Torch-Pruning 1.6.1 does not trace this model.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import _subject

from _rows import Figure

PARAMETERS = 134_515_008
BLOCK = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
"""Of the dense model, and of one of its blocks."""
NEURONS = 100 * 30 * 3 * 576 * 384 / PARAMETERS
DEPTH = 100 * 3 * BLOCK / PARAMETERS
SIZES = (10, 20, 30)
METHODS = ("obs", "flap", "depth", "mixed+distilled")


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("structured", "_subject", "_data", "_judge", "_shrink", *(["_distill"] if "distilled" in part else []))


def figures_of(case: str, method: str, removed: float) -> list[Figure]:
    """Shrink, judge; then train, judge again, where the case says so."""
    before, _, then = case.partition("+")
    folder, dense, tokens = _subject.fresh(before), _subject.dense(), _subject.calibration_file()
    given = (dense, tokens, method, f"{removed - 1e-6:.8f}", folder)
    _subject.run([sys.executable, _subject.HERE / "_shrink.py", *given])
    figures = judged(before, folder)
    if then:
        trained = _subject.fresh(case)
        _subject.run([sys.executable, _subject.HERE / "_distill.py", folder, dense, tokens, trained])
        figures += judged(case, trained)
    for name in (before, case):
        _subject.fresh(name)
    return figures


def judged(case: str, folder: Path) -> list[Figure]:
    """Of a folder: its perplexity, and its parameters over those of the dense model."""
    ratio = _subject.parameters(folder) / _subject.parameters(_subject.dense())
    return [
        Figure(case, "perplexity", _subject.perplexity_of(folder)["perplexity"]),
        Figure(case, "params_ratio", ratio),
    ]


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a method and size."""
    wanted = {f"neurons_25%/{m}": (f"neurons_{m}", NEURONS) for m in ("obs", "mixed", "flap", "magnitude")}
    wanted["depth_3"], wanted["width_504"] = ("depth", DEPTH), ("width", 12.5)
    wanted |= {f"{size}%/{m}": (m.partition("+")[0], float(size)) for size in SIZES for m in METHODS}
    if quick:
        wanted = {"10%/mixed+distilled": ("mixed", 10.0), "10%/flap": ("flap", 10.0), "width": ("width", 25.0)}
    return {case: functools.partial(figures_of, case, method, removed) for case, (method, removed) in wanted.items()}
