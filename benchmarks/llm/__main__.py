"""Language models pruned without training, beside llm-compressor and plain loops: a module with ``parts`` each.

python benchmarks/llm                           all of them; writes benchmarks/results/llm.csv, a part at a time
python benchmarks/llm one_shot                  only these
SECATEUR_BENCH_PARTS='secateur/alps/*' ...      only the parts whose names match (globs, apart by spaces)
SECATEUR_BENCH_QUICK=1 ...                      a smoke run whose figures mean nothing; they go to .cache

Parts that were made are kept in .cache/benchmarks, by the files that state their recipe: a run that was cut off goes
on with the next. ``timing`` and ``memory`` want a machine on which nothing else runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _experiments  # noqa: E402

if __name__ == "__main__":
    run = _experiments.by_parts(HERE, lambda module, part: [HERE / f"{name}.py" for name in module.recipe(part)])
    sys.exit(_experiments.main(HERE, run, sys.argv[1:]))
