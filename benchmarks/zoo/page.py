"""Writes docs/zoo.md from benchmarks/results/zoo.csv: what holds by source, and every model of which it does not."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "zoo.csv"
PAGE = ROOT / "docs" / "zoo.md"
ENOUGH = 0.8

Row = Mapping[str, str]

HEAD = """# The zoo

Made from `benchmarks/results/zoo.csv`, which `make zoo` writes: models of torchvision, timm, transformers and Keras
with random weights, and nets as users write them. Each is recorded, coupled and cut at random by 30 % and by 60 % of
the units of every group. It is *proved* if the cut model equals the masked one (float64, relative to the largest
output; float32 where a kernel refuses) and *reloaded* if the folder it was saved to gives the same bits in another
process. The share is of the parameters that some unit takes with it, by the default rules: residual width, which is
cut on request, and layers that can be dropped whole are not counted.

Torch-Pruning 1.6.1 is used by the recipes of its documentation, at half of the channels; where it ends well, `time`
is the CPU seconds of recording, coupling and cutting over those of its graph building and pruning: medians of three, in
turns in one process, each cutting a copy made before the clock started.

"""


def proved(row: Row) -> bool:
    """Masked equals shrunk at both cuts, and the folder loads to the same bits."""
    return row["status"] == "ok" and row["reload_identical"] == "True"


def ratio(row: Row) -> float | None:
    """Seconds over Torch-Pruning's, where it ends well and so does this."""
    if row["torch_pruning_status"] != "ok" or not row["torch_pruning_s"] or not row["trace_s"]:
        return None
    return sum(float(row[k]) for k in ("trace_s", "couple_s", "apply_s")) / float(row["torch_pruning_s"])


def line(name: str, rows: Sequence[Row]) -> str:
    """One line of the table."""
    good = [r for r in rows if proved(r)]
    wide = [r for r in rows if r["prunable_share"] and float(r["prunable_share"]) >= ENOUGH]
    theirs = [r for r in rows if r["torch_pruning_status"] == "ok"]
    ratios = [x for r in rows if (x := ratio(r)) is not None]
    time = f"{statistics.median(ratios):.2f}" if ratios else ""
    cells = (name, len(rows), len(good), len(wide), len(theirs), time)
    return "| " + " | ".join(map(str, cells)) + " |"


def table(rows: Sequence[Row]) -> list[str]:
    """What holds, by source."""
    sources = list(dict.fromkeys(r["source"] for r in rows))
    parts = [line(s, [r for r in rows if r["source"] == s]) for s in sources]
    head = "|  | models | proved and reloaded | share at least 80 % | Torch-Pruning ends well | time, median |"
    return [head, "| --- " * 6 + "|", *parts, line("all", rows)]


def problems(rows: Iterable[Row]) -> list[str]:
    """Every model that is not proved, and why."""
    return [f"- {r['source']} `{r['model']}`: {r['reason'] or r['status']}" for r in rows if not proved(r)]


def narrow(rows: Iterable[Row]) -> list[str]:
    """Every proved model of which less can go."""
    low = [r for r in rows if proved(r) and float(r["prunable_share"]) < ENOUGH]
    return [f"- {r['source']} `{r['model']}`: {float(r['prunable_share']):.0%}" for r in low]


def theirs(rows: Iterable[Row]) -> list[str]:
    """How Torch-Pruning ends, by kind of end."""
    kinds = Counter(r["torch_pruning_status"].split(":")[0] or "not run" for r in rows)
    return [f"- {kind}: {count}" for kind, count in kinds.most_common()]


def rows() -> list[Row]:
    """The models, in order."""
    with RESULTS.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def text(found: Sequence[Row]) -> str:
    """The page."""
    parts = [
        *table(found),
        "\n## Not proved\n",
        *problems(found),
        "\n## Proved, with less than 80 % of the parameters prunable\n",
        *narrow(found),
        "\n## How Torch-Pruning ends\n",
        *theirs(found),
    ]
    return HEAD + "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(rows()), encoding="utf-8")
