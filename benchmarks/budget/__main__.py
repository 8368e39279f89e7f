"""Budgets measured on the runtime: one experiment after another; each is a module here with ``parts(quick)``.

python benchmarks/budget                        all of them; writes benchmarks/results/budget.csv, a part at a time
python benchmarks/budget prediction             only these
SECATEUR_BENCH_PARTS='minilm/*' ...             only the parts whose names match (globs, apart by spaces)
SECATEUR_BENCH_QUICK=1 ...                      a smoke run whose figures mean nothing; they go to .cache

Parts that were made are kept in .cache/benchmarks, by the files that state their recipe: a run that was cut off goes
on with the next. Nothing else should run beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _experiments  # noqa: E402

if __name__ == "__main__":
    run = _experiments.by_parts(HERE, lambda module, part: [HERE / f"{module.__name__}.py", HERE / "_subjects.py"])
    sys.exit(_experiments.main(HERE, run, sys.argv[1:]))
