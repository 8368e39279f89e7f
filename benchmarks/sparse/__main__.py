"""Sparse weights: one experiment after another; each is a module here with ``rows(quick)``.

python benchmarks/sparse                  all of them; writes benchmarks/results/sparse.csv, an experiment at a time
python benchmarks/sparse imp allocation   only these
SECATEUR_BENCH_QUICK=1 ...                a smoke run whose figures mean nothing; they go to .cache
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _experiments  # noqa: E402
from _rows import Figure, quick  # noqa: E402


def run(name: str) -> None:
    """One experiment."""
    rows = importlib.import_module(name).rows(quick())
    _experiments.report(name, [Figure(*row) for row in rows])


if __name__ == "__main__":
    sys.exit(_experiments.main(HERE, run, sys.argv[1:]))
