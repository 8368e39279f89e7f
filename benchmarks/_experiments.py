"""Benchmarks that are a folder: one experiment a file, run one after another, the figures in a CSV of their own."""

from __future__ import annotations

import fnmatch
import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import _rows
from _rows import ROOT, Figure, kept, quick, use_fresh_memory


def names(here: Path) -> list[str]:
    """The experiments of a folder, as their files are called."""
    return sorted(f.stem for f in here.glob("*.py") if not f.stem.startswith("_"))


def main(here: Path, run: Callable[[str], None], wanted: Sequence[str]) -> int:
    """Run experiments, whose figures go to ``benchmarks/results/FOLDER.csv``; the number of those that failed.

    Args:
        here: the folder.
        run: runs one experiment by name and writes its rows.
        wanted: names; all where none is given.
    """
    unknown = [n for n in wanted if n not in names(here)]
    if unknown:
        print(f"there is no experiment {', '.join(unknown)}: {', '.join(names(here))}", file=sys.stderr)
        return 2
    if not quick():
        os.environ.setdefault("SECATEUR_BENCH_RESULTS", str(ROOT / "benchmarks" / "results" / f"{here.name}.csv"))
    failed = 0
    for name in wanted or names(here):
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(name)
        except Exception:
            traceback.print_exc()
            failed += 1
            continue
        print(f"{name}: {time.perf_counter() - start:.0f} s, {_rows.results()}", flush=True)
    return failed


def by_parts(here: Path, recipe: Callable[[ModuleType, str], Sequence[Path]]) -> Callable[[str], None]:
    """How an experiment is run whose module has ``parts(quick)``: part by part, each kept by the files that state it.

    ``SECATEUR_BENCH_PARTS`` has globs, apart by spaces: only the parts whose names match are run.

    Args:
        here: the folder. recipe: ``(module, part) -> files``: what else than them changes does not make a part anew.
    """

    def run(name: str) -> None:
        globs = os.environ.get("SECATEUR_BENCH_PARTS", "*").split()
        module = importlib.import_module(name)
        for part, make in module.parts(quick()).items():
            if any(fnmatch.fnmatch(part, glob) for glob in globs):
                file = f"{here.name}-{name}-{part.translate(str.maketrans('/:', '--'))}"
                with use_fresh_memory():
                    figures = kept(file, make, *recipe(module, part))
                report(getattr(module, "EXPERIMENT", name), figures, only_these_cases=True)

    return run


def report(name: str, figures: Sequence[Figure], only_these_cases: bool = False) -> None:
    """Write the figures of an experiment and print them.

    Args:
        name: the experiment.
        figures: its rows.
        only_these_cases: the rows of its other cases stay.
    """
    _rows.write(name, figures, cases={f.case for f in figures} if only_these_cases else None)
    _rows.say(name, figures)
