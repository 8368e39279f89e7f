"""How long it takes to know what must go together: secateur's graph and groups against Torch-Pruning's.

Experiment ``trace_seconds``; cases ``MODEL_secateur`` and ``MODEL_torch_pruning``. ``seconds`` is the median of nine
after a warm-up, the two taken in turns in one process: ``sc.couple(sc.trace(model, example))`` against
``DependencyGraph().build_dependency(model, example)`` and all of its groups. ``ratio`` is secateur's over
Torch-Pruning's; ``first_seconds`` is the first time in a fresh process, both libraries imported, with what torch loads
of itself at its first fake tensor; ``groups`` how many were found. Where a library cannot do a model, it has the one
row ``failed``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

import _models
import _peer
import secateur as sc
from _rows import Figure, quick, say, write

EXPERIMENT = "trace_seconds"
REPEATS = 9


def _secateur(model: nn.Module, example: Any) -> int:
    return len(sc.couple(sc.trace(model, example)))


LIBRARIES: dict[str, Callable[[nn.Module, Any], int]] = {
    "secateur": _secateur,
    "torch_pruning": _peer.build_graph,
}


def timed(library: str, model: nn.Module, example: Any) -> tuple[float, int]:
    """Seconds, and groups found."""
    gc.collect()
    start = time.perf_counter()
    groups = LIBRARIES[library](model, example)
    return time.perf_counter() - start, groups


def first(name: str, library: str) -> float:
    """Seconds of the first time in a fresh process."""
    command = [sys.executable, __file__, "--first", name, library]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def one_model(name: str) -> list[Figure]:
    """Both libraries on a model, in turns."""
    model, example = _models.MODELS[name]()
    found: dict[str, int] = {}
    failed = []
    for library in LIBRARIES:
        try:
            found[library] = timed(library, model, example)[1]
        except Exception as error:
            print(f"{name}: {library} fails: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            failed.append(Figure(f"{name}_{library}", "failed", 1.0))
    taken: dict[str, list[float]] = {library: [] for library in found}
    for _ in range(2 if quick() else REPEATS):
        for library, seconds in taken.items():
            seconds.append(timed(library, model, example)[0])
    middle = {library: statistics.median(seconds) for library, seconds in taken.items()}
    figures = []
    for library in found:
        case = f"{name}_{library}"
        figures.append(Figure(case, "seconds", middle[library], "s"))
        if library == "secateur" and "torch_pruning" in middle:
            figures.append(Figure(case, "ratio", middle["secateur"] / middle["torch_pruning"]))
        figures.append(Figure(case, "first_seconds", first(name, library), "s"))
        figures.append(Figure(case, "groups", found[library]))
    say(EXPERIMENT, [*figures, *failed])
    return [*figures, *failed]


def main() -> None:
    """Every model; writes the rows when all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", nargs=2, metavar=("MODEL", "LIBRARY"), help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", choices=list(_models.MODELS), help="only these, and write nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.first:
        name, library = options.first
        model, example = _models.MODELS[name]()
        print(json.dumps(timed(library, model, example)[0]))
        return
    names = options.models or (["cnn"] if quick() else list(_models.MODELS))
    figures = [f for name in names for f in one_model(name)]
    if not options.models:
        print(write(EXPERIMENT, figures, also=[_peer.DISTRIBUTION]))


if __name__ == "__main__":
    main()
