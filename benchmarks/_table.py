"""A table of one experiment, from rows of results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One experiment. ``cases``: case -> what it is. ``columns``: header -> (metric, format)."""

    experiment: str
    title: str
    text: str
    cases: Mapping[str, str]
    columns: Mapping[str, tuple[str, str]]

    def lines(self, rows: Sequence[Mapping[str, str]]) -> list[str]:
        """The table in Markdown: means over the seeds, or the one figure there is; cases without rows are left out."""
        mine = [row for row in rows if row["experiment"] == self.experiment]
        seeds = {(row["case"], row["seed"]) for row in mine if row["seed"] != "mean"}
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in mine:
            found.setdefault((row["case"], row["metric"]), {})[row["seed"]] = float(row["value"])
        figures = {at: v.get("mean", statistics.fmean(v.values())) for at, v in found.items()}
        out = [
            f"| {' | '.join(['', *self.columns, 'runs'])} |",
            f"| {' | '.join(['---'] * (len(self.columns) + 2))} |",
        ]
        for case, label in self.cases.items():
            numbered = {seed for c, seed in seeds if c == case} - {""}
            runs = len(numbered) or int((case, "") in seeds)
            cells = [
                form.format(figures[case, m]) if (case, m) in figures else "–" for m, form in self.columns.values()
            ]
            if runs:
                out.append(f"| {' | '.join([label, *cells, str(runs)])} |")
        return out
