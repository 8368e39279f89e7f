"""The rows of a run of lottery tickets, as a file and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.atomic import write_bytes

CSV, PLOT = "tickets.csv", "tickets.png"


@dataclass(frozen=True)
class TicketRow:
    """A trained network.

    Attributes:
        round: how often was pruned. case: ``ticket``, or the control's name. kept: weights left in the masks.
        density: the same as a fraction. values: what ``evaluate`` said.
    """

    round: int
    case: str
    kept: int
    density: float
    values: Mapping[str, float]

    def data(self) -> dict[str, Any]:
        """As a line of the file."""
        return {
            "round": self.round,
            "case": self.case,
            "kept": self.kept,
            "density": self.density,
            **self.values,
        }


def write_rows(folder: Path, rows: Sequence[TicketRow], plot: bool = True) -> None:
    """Write the rows, and their plot, each whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0].data()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(r.data() for r in rows)  # floats as Python writes them: every bit
    write_bytes(folder / CSV, text.getvalue().encode())
    if plot:
        write_bytes(folder / PLOT, _plot(rows))


def _plot(rows: Sequence[TicketRow]) -> bytes:
    """The first figure against density, a line a case, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = next(iter(rows[0].values))
    figure = Figure(figsize=(6, 4))
    ax = figure.add_subplot()
    for case in dict.fromkeys(r.case for r in rows):
        mine = [r for r in rows if r.case == case]
        ax.plot([100 * r.density for r in mine], [r.values[metric] for r in mine], marker="o", label=case)
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set_xlabel("weights left, %")
    ax.set_ylabel(metric)
    ax.legend()
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
