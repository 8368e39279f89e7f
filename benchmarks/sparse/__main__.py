"""Sparse weights: one experiment after another; each is a module here with ``rows(quick)``.

python benchmarks/sparse                  all of them; writes benchmarks/results/sparse.csv, an experiment at a time
python benchmarks/sparse imp allocation   only these
SECATEUR_BENCH_QUICK=1 ...                a smoke run whose figures mean nothing; they go to .cache
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _rows  # noqa: E402
from _rows import ROOT, Figure, quick, say, write  # noqa: E402


def names() -> list[str]:
    """The experiments, as their files are called."""
    return sorted(f.stem for f in HERE.glob("*.py") if not f.stem.startswith("_"))


def main(wanted: list[str]) -> int:
    """Run experiments and write their rows; the number of those that failed."""
    unknown = [n for n in wanted if n not in names()]
    if unknown:
        print(f"there is no experiment {', '.join(unknown)}: {', '.join(names())}", file=sys.stderr)
        return 2
    if not quick():
        os.environ.setdefault("SECATEUR_BENCH_RESULTS", str(ROOT / "benchmarks" / "results" / "sparse.csv"))
    failed = 0
    for name in wanted or names():
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = importlib.import_module(name).rows(quick())
            figures = [Figure(*row) for row in rows]
            write(name, figures)
        except Exception:
            traceback.print_exc()
            failed += 1
            continue
        say(name, figures)
        print(f"{name}: {time.perf_counter() - start:.0f} s, {_rows.results()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
