"""Where the figures go: `benchmarks/results/main.csv`, one figure a row.

Columns: ``experiment,case,metric,value,unit,seed,machine,versions,date``. A benchmark hands over all the rows of an
experiment (or of some of its cases) at once; they take the place of those that stood there, and the others stay. The
file is written whole or not at all.

``SECATEUR_BENCH_QUICK=1`` shrinks every benchmark to a smoke run whose figures mean nothing; these go to
``.cache/benchmarks/quick.csv``. ``SECATEUR_BENCH_RESULTS`` names another file.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from secateur.atomic import write_bytes
from secateur.evidence.gather import environment

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
COLUMNS = ("experiment", "case", "metric", "value", "unit", "seed", "machine", "versions", "date")


@dataclass(frozen=True)
class Figure:
    """One row. ``seed`` is a number, ``"mean"``, or None where nothing was drawn; ``unit`` is ``""`` for a ratio."""

    case: str
    metric: str
    value: float
    unit: str = ""
    seed: int | str | None = None


def quick() -> bool:
    """Whether this is a smoke run."""
    return os.environ.get("SECATEUR_BENCH_QUICK", "") not in ("", "0")


def results() -> Path:
    """The file that figures go to."""
    given = os.environ.get("SECATEUR_BENCH_RESULTS")
    if given:
        return Path(given)
    return CACHE / "quick.csv" if quick() else ROOT / "benchmarks" / "results" / "main.csv"


def write(
    experiment: str, figures: Sequence[Figure], cases: Iterable[str] | None = None, also: Iterable[str] = ()
) -> Path:
    """Put the figures of an experiment into the file, in place of those that it holds.

    Args:
        experiment: its name.
        figures: its rows. Means over seeds are added where a figure has several.
        cases: only rows of these cases are replaced; None replaces the whole experiment.
        also: further distributions whose versions matter, such as ``torch-pruning``.

    Raises:
        ValueError: a value is not finite, a case is not among ``cases``, a figure stands twice, or the file that is
            there has other columns.
    """
    only = None if cases is None else set(cases)
    figures = [*figures, *means(figures)]
    _check(experiment, figures, only)
    about = _about(also)
    fresh = [
        {"experiment": experiment, "case": f.case, "metric": f.metric, "value": f"{f.value:.6g}", "unit": f.unit,
         "seed": "" if f.seed is None else str(f.seed), **about}
        for f in figures
    ]  # fmt: skip
    path = results()
    old = read(path)
    stays = [r for r in old if r["experiment"] != experiment or (only is not None and r["case"] not in only)]
    rows = sorted([*stays, *fresh], key=lambda r: r["experiment"])  # stable: an experiment keeps its own order
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode())
    return path


def read(path: Path | None = None) -> list[dict[str, str]]:
    """The rows that a file holds; none where there is no file."""
    path = path or results()
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} has the columns {reader.fieldnames}, not {list(COLUMNS)}: move it away")
    return rows


def means(figures: Sequence[Figure]) -> list[Figure]:
    """Mean over seeds, with seed ``mean``, of every figure that was taken with two seeds or more.

    Example:
        >>> means([Figure("a", "accuracy", 90.0, "%", 0), Figure("a", "accuracy", 92.0, "%", 1)])
        [Figure(case='a', metric='accuracy', value=91.0, unit='%', seed='mean')]
    """
    seen: dict[tuple[str, str, str], list[float]] = {}
    for f in figures:
        if isinstance(f.seed, int):
            seen.setdefault((f.case, f.metric, f.unit), []).append(f.value)
    return [Figure(c, m, statistics.fmean(v), u, "mean") for (c, m, u), v in seen.items() if len(v) > 1]


def digest_of(*sources: str | Path) -> str:
    """Names a recipe by the files that state it: what was made by another one is not used again."""
    return hashlib.blake2b(b"".join(Path(p).read_bytes() for p in sources), digest_size=6).hexdigest()


def kept(part: str, make: Callable[[], list[Figure]], *sources: str | Path) -> list[Figure]:
    """The figures of a part of a benchmark, made once: a run that was cut off goes on with the next part.

    They lie in ``.cache/benchmarks`` under the part's name and the digest of its sources; ``make clean`` forgets them.
    The library is not among the sources: after a change to it that matters, clean first.
    """
    file = CACHE / f"{part}{'-quick' if quick() else ''}-{digest_of(*sources)}.json"
    if file.is_file():
        return [Figure(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    figures = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, json.dumps([asdict(f) for f in figures]).encode())
    return figures


def use_fresh_memory() -> tempfile.TemporaryDirectory[str]:
    """Forget latencies that were measured before, until the folder that is returned is cleaned up.

    A benchmark states what was measured in its own run, and plans by it.
    """
    folder = tempfile.TemporaryDirectory(prefix="secateur-bench-")
    os.environ["SECATEUR_CACHE"] = folder.name
    return folder


def seed_by_seed(
    experiment: str,
    one_seed: Callable[[int], list[Figure]],
    seeds: Sequence[int],
    about: str,
    sources: Sequence[str],
    also: Iterable[str] = (),
) -> None:
    """The command line of a benchmark whose seeds are made one after another, each kept when it is done.

    Args:
        experiment: its name.
        one_seed: makes and prints the figures of a seed.
        seeds: all of them; the first alone in a smoke run.
        about: what ``--help`` says.
        sources: files that state the recipe.
        also: as in `write`.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, and write nothing")
    only = parser.parse_args().seeds
    warnings.filterwarnings("ignore")
    with use_fresh_memory():
        figures = [
            figure
            for seed in only or (seeds[:1] if quick() else seeds)
            for figure in kept(f"{experiment}-{seed}", lambda s=seed: one_seed(s), *sources)
        ]
    if not only:
        print(write(experiment, figures, also=also))


def say(experiment: str, figures: Sequence[Figure]) -> None:
    """Print figures as a table, one line a case and seed."""
    lines: dict[tuple[str, str], list[str]] = {}
    for f in [*figures, *means(figures)]:
        key = (f.case, "" if f.seed is None else f"seed {f.seed}")
        lines.setdefault(key, []).append(f"{f.metric} {f.value:.4g}{f.unit and ' ' + f.unit}")
    for (case, seed), values in lines.items():
        print(f"{experiment} {case} {seed}: {', '.join(values)}", flush=True)


def _check(experiment: str, figures: Sequence[Figure], only: set[str] | None) -> None:
    seen = set()
    for f in figures:
        if not math.isfinite(f.value):
            raise ValueError(f"{experiment} {f.case} {f.metric} is {f.value}: only finite figures are written")
        if only is not None and f.case not in only:
            raise ValueError(f"{experiment}: case {f.case!r} is not one of the cases being re-made, {sorted(only)}")
        key = (f.case, f.metric, f.seed)
        if key in seen:
            raise ValueError(f"{experiment}: {f.case} {f.metric} with seed {f.seed} stands twice")
        seen.add(key)


def _about(also: Iterable[str]) -> Mapping[str, str]:
    around = environment()
    versions = {**around["versions"], **{name: importlib.metadata.version(name) for name in also}}
    return {
        "machine": str(around["machine"]["processor"]),
        "versions": " ".join(f"{name}={version}" for name, version in versions.items()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
