"""Budgets measured on the runtime: one experiment after another; each is a module here with ``parts(quick)``.

python benchmarks/budget                        all of them; writes benchmarks/results/budget.csv, a part at a time
python benchmarks/budget prediction             only these
SECATEUR_BENCH_PARTS='minilm/*' ...             only the parts whose names match (globs, apart by spaces)
SECATEUR_BENCH_QUICK=1 ...                      a smoke run whose figures mean nothing; they go to .cache

Parts that were made are kept in .cache/benchmarks, by the files that state their recipe: a run that was cut off goes
on with the next. Nothing else should run beside it.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _experiments  # noqa: E402
from _rows import kept, quick, use_fresh_memory  # noqa: E402


def run(name: str) -> None:
    """One experiment, part by part."""
    globs = os.environ.get("SECATEUR_BENCH_PARTS", "*").split()
    module = importlib.import_module(name)
    for part, make in module.parts(quick()).items():
        if any(fnmatch.fnmatch(part, glob) for glob in globs):
            file = f"budget-{name}-{part.replace('/', '-')}"
            with use_fresh_memory():
                figures = kept(file, make, HERE / f"{name}.py", HERE / "_subjects.py")
            _experiments.report(getattr(module, "EXPERIMENT", name), figures, only_these_cases=True)


if __name__ == "__main__":
    sys.exit(_experiments.main(HERE, run, sys.argv[1:]))
