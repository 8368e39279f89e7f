"""Language models pruned without training, beside llm-compressor and plain loops: a module with ``parts`` each.

python benchmarks/llm                           all of them; writes benchmarks/results/llm.csv, a part at a time
python benchmarks/llm one_shot                  only these
SECATEUR_BENCH_PARTS='secateur/alps/*' ...      only the parts whose names match (globs, apart by spaces)
SECATEUR_BENCH_QUICK=1 ...                      a smoke run whose figures mean nothing; they go to .cache

Parts that were made are kept in .cache/benchmarks, by the files that state their recipe: a run that was cut off goes
on with the next. ``timing`` and ``memory`` want a machine on which nothing else runs.
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
from _rows import kept, quick  # noqa: E402


def run(name: str) -> None:
    """One experiment, part by part."""
    globs = os.environ.get("SECATEUR_BENCH_PARTS", "*").split()
    module = importlib.import_module(name)
    for part, make in module.parts(quick()).items():
        if any(fnmatch.fnmatch(part, glob) for glob in globs):
            file = f"llm-{name}-{part.translate(str.maketrans('/:', '--'))}"
            figures = kept(file, make, *(HERE / f"{source}.py" for source in module.recipe(part)))
            _experiments.report(getattr(module, "EXPERIMENT", name), figures, only_these_cases=True)


if __name__ == "__main__":
    sys.exit(_experiments.main(HERE, run, sys.argv[1:]))
