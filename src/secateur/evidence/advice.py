"""What would pay on a device: the record, its words, its table and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.atomic import write_bytes
from secateur.evidence import words
from secateur.targets.measure import NOISY, Speedup
from secateur.types import Artefact

JSON_NAME, HTML_NAME, VERSION = "advice.json", "advice.html", 1

PAYS, LIKELY = "pays", "should pay (predicted)"
NOTHING, UNLIKELY = "no gain measurable", "no gain expected (predicted)"
SLOWER, UNDECIDED, REFUSED, UNKNOWN = "slower", "undecided: too noisy", "refused", "not measured"
SURE = 0.95
"""A predicted ratio above this is no reason to expect a gain: predictions err by more than the rest."""
_VAIN = ("unstructured", "2:4", "blocks", "lower precision")
"""What is most often hoped for, and gains nothing: the first of these that was measured so is named."""


@dataclass(frozen=True)
class Advised:
    """One thing that could be done, and what it would bring.

    Attributes:
        what: in words; unique. kind: ``widths``, ``unaligned widths``, ``neuron``, ``depth``, ``2:4``, ...
        params: parameters that are left (of masks: that are not zero). nbytes: of weights and buffers as stored dense.
        how: the command, or the call, that does it.
        predicted: time over the dense model's, or None. basis: what the prediction rests on.
        measured: against the dense model in the same rounds, or None. file_bytes: of the exported file, or None.
        refused: why it cannot be done, or "". beside: of unaligned widths, the aligned ones that they spoil.
        aside: how it compares with those, timed in the same rounds, or "".
    """

    what: str
    kind: str
    params: int
    nbytes: int
    how: str
    predicted: float | None = None
    basis: str = ""
    measured: Speedup | None = None
    file_bytes: int | None = None
    refused: str = ""
    beside: str = ""
    aside: str = ""

    @property
    def ratio(self) -> float | None:
        """Time over the dense model's: measured where it was, else predicted."""
        return self.predicted if self.measured is None else self.measured.ratio

    @property
    def rank(self) -> float:
        """What rows are sorted by: the ratio, where a change that is not significant counts as none."""
        if self.refused:
            return float("inf")
        if self.measured is not None:
            return self.measured.ratio if self.measured.significant else 1.0
        return 1.5 if self.predicted is None else self.predicted

    @property
    def verdict(self) -> str:
        """A few words; only what was measured and is significant pays."""
        if self.refused:
            return REFUSED
        if self.measured is not None:
            if self.measured.significant:
                return PAYS if self.measured.ratio < 1 else SLOWER
            m = self.measured  # an interval that is narrow and holds 1 decides, however single timings spread
            tight = m.low <= 1 <= m.high and m.high - m.low <= 2 * NOISY
            return UNDECIDED if m.noise > NOISY and not tight else NOTHING
        if self.predicted is None:
            return UNKNOWN
        return LIKELY if self.predicted < SURE else UNLIKELY

    def words(self) -> str:
        """What was found, as one clause."""
        if self.refused:
            return self.refused
        if self.measured is None:
            return self.basis
        spread = f"timings spread by {self.measured.noise:.0%}" if self.verdict == UNDECIDED else ""
        aside = f"against the aligned ones: {self.aside}" if self.aside else ""
        return "; ".join(filter(None, (self.measured.words(), spread, aside)))


@dataclass(frozen=True)
class Step:
    """One point of a staircase: a width and the median seconds of a layer of it."""

    width: int
    seconds: float
    aligned: bool


@dataclass(frozen=True)
class Staircase:
    """Latency against the width of one layer; all points were timed in one interleaved run.

    Attributes:
        layer: the group. what: which layers were timed. points: by width. sentence: what an unaligned width costs.
    """

    layer: str
    what: str
    points: tuple[Step, ...]
    sentence: str


@dataclass(frozen=True, eq=False)
class Advice:
    """What would pay on a target and what would not.

    Attributes:
        target, threads, batch: where it was measured. model: what it is called.
        rows: ranked, the fastest first. staircase: latency against width, or None where no layer could be timed so.
        dense_seconds: median of the uncut model. spread: relative noise of its timings, the largest seen.
        params, nbytes, file_bytes: of the uncut model; the last where there is a file.
        seconds: spent. asked: seconds that were allowed. notes: what was left out, and why.
        made: machine, versions, date.
        builders: what -> function that builds it anew on the target; ``"dense"`` too. Not saved.
    """

    target: str
    threads: int
    batch: int
    model: str
    rows: tuple[Advised, ...]
    staircase: Staircase | None
    dense_seconds: float
    spread: float
    params: int
    nbytes: int
    file_bytes: int | None
    seconds: float
    asked: float
    notes: tuple[str, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    builders: Mapping[str, Callable[[], Artefact]] = field(default_factory=dict, repr=False)

    @property
    def measured(self) -> tuple[Advised, ...]:
        """Rows that were measured, ranked."""
        return tuple(r for r in self.rows if r.measured is not None)

    @property
    def predicted(self) -> tuple[Advised, ...]:
        """Rows that were not, ranked."""
        return tuple(r for r in self.rows if r.measured is None)

    @property
    def sentence(self) -> str:
        """The best thing to do here and the commonest thing that will not help, with figures."""
        return _sentence(self)

    def data(self) -> dict[str, Any]:
        """As it stands in advice.json."""
        rows = [
            {**asdict(r), "ratio": r.ratio, "verdict": r.verdict, "words": r.words(), "rank": i}
            for i, r in enumerate(self.rows, 1)
        ]
        plain = ("target", "threads", "batch", "model", "dense_seconds", "spread", "params", "nbytes", "file_bytes")
        return {
            "schema": VERSION,
            "sentence": self.sentence,
            **{name: getattr(self, name) for name in plain},
            "seconds": self.seconds,
            "asked_seconds": self.asked,
            "rows": rows,
            "staircase": None if self.staircase is None else asdict(self.staircase),
            "notes": list(self.notes),
            "made": dict(self.made),
        }

    def save(self, folder: Path | str) -> Path:
        """Write advice.json and advice.html into a folder, each whole or not at all, and return the page's path.

        Raises:
            OSError: the folder cannot be written.
        """
        from secateur.evidence.advice_page import render  # its charts need matplotlib, which is slow to import

        text, page = json.dumps(self.data(), indent=1, allow_nan=False) + "\n", render(self)
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        write_bytes(where / JSON_NAME, text.encode())
        write_bytes(where / HTML_NAME, page.encode("utf-8", "xmlcharrefreplace"))
        return where / HTML_NAME

    def table(self) -> Table:
        """The rows for a terminal, the sentence as the title."""
        table = Table(title=Text(self.sentence, style="bold"), title_justify="left")
        table.add_column("what", ratio=2)
        for name in ("time", "params", "bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict", ratio=3)
        styles = {PAYS: "green", SLOWER: "red", REFUSED: "red"}
        for r in self.rows:
            size = words.quantity(r.file_bytes if r.file_bytes is not None else r.nbytes, "B")
            share = words.percent(r.params / self.params) if self.params else ""
            time = words.times(r.ratio) + ("" if r.measured or r.ratio is None else " ?")
            said = [r.words()] if r.verdict in r.words() else filter(None, (r.verdict, r.words()))
            table.add_row(*map(Text, (r.what, time, share, size)), Text(": ".join(said), styles.get(r.verdict, "")))
        table.caption = "time: over the dense model's; ? is predicted, all else was timed against it in the same rounds"
        return table


def ranked(rows: Sequence[Advised]) -> tuple[Advised, ...]:
    """The fastest first; of equals what keeps most parameters, then as they came.

    Example:
        >>> fast = Advised("half", "widths", 50, 200, "", 0.6)
        >>> slow = Advised("less", "widths", 60, 240, "", 0.5, measured=Speedup(0.97, 0.9, 1.1, 30))
        >>> [r.what for r in ranked([slow, fast])]
        ['half', 'less']
    """
    return tuple(sorted(rows, key=lambda r: (r.rank, -r.params)))


def _sentence(advice: Advice) -> str:
    where = f"On {advice.target} ({advice.threads} thread{'s' if advice.threads > 1 else ''}, batch {advice.batch})"
    paying = [r for r in advice.measured if r.verdict == PAYS]
    vain = next(
        (r for kind in _VAIN for r in advice.measured if r.kind == kind and r.verdict in (NOTHING, SLOWER)), None
    )
    if advice.measured and not paying and all(r.verdict in (UNDECIDED, REFUSED) for r in advice.measured):
        return (
            f"{where} this machine is too noisy to decide: timings spread by {advice.spread:.0%}. Stop what else runs "
            "on it, and ask again"
        )
    if paying:
        first = paying[0]
        said = f"{where} most is gained by {_lower(first.what)}: {_said(first)}"
        mild = next((r for r in paying if r.params >= 0.45 * advice.params and r.what != first.what), None)
        if first.params < 0.45 * advice.params and mild is not None:
            said += f"; of what keeps about half or more of the parameters, by {_lower(mild.what)}: {_said(mild)}"
    elif advice.measured:
        said = f"{where} nothing that was measured pays: no gain was measurable in {len(advice.measured)} attempts"
    else:
        said = f"{where} there was no time to measure anything: all figures are predicted"
    if vain is not None:
        said += f". {vain.what} will not help ({_said(vain)})"
    return said


def _said(row: Advised) -> str:
    assert row.measured is not None
    return row.measured.words()


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
