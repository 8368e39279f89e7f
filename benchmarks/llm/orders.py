"""What rounding alone changes: the same calibration windows in other orders, SmolLM2-135M at 2:4.

Experiment ``orders``; cases ``LIBRARY/METHOD/2:4``; metric ``perplexity``, a row an order (its seed) and their mean,
and ``least`` and ``most`` of them. Text and judge as in ``one_shot``. The sums over the windows are the same but for
rounding; of models this small the perplexity of what comes out is not, and figures of one order each tell two
libraries apart by that much only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import _subject
import torch
from safetensors.torch import save

from _rows import Figure
from secateur.atomic import write_bytes

SEEDS = (1, 2, 3)
METHODS = ("sparsegpt", "wanda")
LIBRARIES = {"secateur": _subject.ours, "llmcompressor": _subject.peers}


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("orders", "_subject", "_data", "_judge", "_ours" if part.startswith("secateur") else "_peer")


def shuffled(seed: int) -> Path:
    """The calibration windows in another order, in a file."""
    path = _subject.FOLDER / f"{_subject.calibration_file().stem}-order-{seed}.safetensors"
    windows = _subject.calibration()
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    write_bytes(path, save({"tokens": windows[order].contiguous()}))
    return path


def figures_of(library: str, method: str, pattern: str, seeds: tuple[int, ...]) -> list[Figure]:
    """Prune and judge, an order after the other."""
    case, found = f"{library}/{method}/{pattern}", []
    for seed in seeds:
        folder = _subject.fresh(f"order-{case}")
        _subject.run(LIBRARIES[library](_subject.dense(), shuffled(seed), method, pattern, folder))
        found.append(_subject.perplexity_of(folder)["perplexity"])
        print(f"{case}, order {seed}: {found[-1]:.2f}", flush=True)
        _subject.fresh(f"order-{case}")
    rows = [Figure(case, "perplexity", value, seed=seed) for value, seed in zip(found, seeds, strict=True)]
    return [*rows, Figure(case, "least", min(found)), Figure(case, "most", max(found))]


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a library and method."""
    libraries, methods, seeds = (("secateur",), ("wanda",), SEEDS[:1]) if quick else (LIBRARIES, METHODS, SEEDS)
    return {
        f"{library}/{method}/2:4": functools.partial(figures_of, library, method, "2:4", tuple(seeds))
        for method in methods
        for library in libraries
    }
