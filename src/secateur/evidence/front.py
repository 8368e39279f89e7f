"""A front: many budgets, one table of quality against cost, beside dense, uniform and random."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.atomic import write_bytes
from secateur.errors import FormatError
from secateur.evidence import words
from secateur.evidence.quality import Figure

JSON_NAME, HTML_NAME = "front.json", "report.html"
SCHEMA = 1
METHODS = {"plan": "this plan", "dense": "dense", "uniform": "uniform magnitude", "random": "random units"}


@dataclass(frozen=True, eq=False)
class Point:
    """One budget, and what came of it.

    Attributes:
        method: ``plan``, or the baseline: ``dense``, ``uniform``, ``random``.
        number: which budget, from 1; 0 for dense.
        fraction: the budget as a fraction of the dense model's cost. limit: the same in the cost's unit.
        key: digest of all that decides the point.
        value: what it costs, in the cost's unit: measured after recovery where the cost is measured; None where the
            budget cannot be reached.
        met: whether the budget holds, a measured one within 3 %; None for dense.
        quality: figures by name, higher is better; the first is the one that is drawn.
        sizes: ``params``, ``macs``, ``nbytes`` that are left.
        timing: of the run that timed it against dense: ``median_s``, ``p95_s``, ``dense_s``, ``ratio`` with its
            95 % interval ``low``, ``high``, ``spread``, ``rounds``, ``note``; empty without a target.
        stages: name, seconds and quality after each stage. seconds: that solving, recovery and measuring took.
        disk_bytes: of what is kept of it.
        why: what was wrong, where the budget cannot be reached. closest: the least that can, in the cost's unit.
        weights: hash and other facts of the weights that are kept beside it.
    """

    method: str
    number: int
    fraction: float
    limit: float
    key: str
    value: float | None = None
    met: bool | None = None
    quality: Mapping[str, Figure] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    disk_bytes: int = 0
    why: str = ""
    closest: float | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Number and method: ``3``, ``uniform 3``, ``dense``."""
        if self.method == "dense":
            return "dense"
        return str(self.number) if self.method == "plan" else f"{self.method} {self.number}"

    @property
    def done(self) -> bool:
        """Whether there is a model."""
        return self.value is not None


@dataclass(frozen=True, eq=False)
class Front:
    """Quality against cost.

    Attributes:
        cost, unit: what the budgets limit. dense: the whole model. points: by number. baselines: others at the same
            budgets. planned: how many points were asked for. finished: nothing is left to do.
        made: model hash, target, seed, versions. folder: where the points are.
    """

    cost: str
    unit: str
    dense: Point
    points: tuple[Point, ...]
    baselines: tuple[Point, ...]
    planned: int
    finished: bool
    made: Mapping[str, Any]
    folder: Path | None = None

    @property
    def all(self) -> tuple[Point, ...]:
        """Points, dense, baselines."""
        return (*self.points, self.dense, *self.baselines)

    @property
    def figure(self) -> str:
        """The quality figure that decides."""
        return next(iter(self.dense.quality), "")


def point_data(point: Point) -> dict[str, Any]:
    """A point as JSON-able data; figures without an interval have None for its ends."""
    quality = {k: {n: _finite(v) for n, v in asdict(f).items()} for k, f in point.quality.items()}
    return {**asdict(point), "quality": quality, "stages": list(point.stages), "timing": dict(point.timing)}


def point_of(data: Mapping[str, Any], where: str = "point") -> Point:
    """The point that `point_data` wrote.

    Raises:
        FormatError: it is damaged.
    """
    try:
        quality = {
            str(k): Figure(_number(f["value"]), _number(f["low"]), _number(f["high"]), int(f["n"]))
            for k, f in data["quality"].items()
        }
        return Point(**{**data, "quality": quality, "stages": tuple(data["stages"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{where} is damaged: {error!r}; delete its folder and make the front again") from error


def read_point(folder: Path) -> Point:
    """The point that a folder holds.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    file = folder / "point.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}; make the front again") from error
    return point_of(data, str(file))


def write_point(folder: Path, point: Point) -> None:
    """Write point.json."""
    write_bytes(folder / "point.json", _text(point_data(point)))


def dominated(places: Sequence[tuple[float, float]]) -> list[int | None]:
    """For each (cost, quality), the first one that is as cheap and as good and in one of them better, or None.

    Example:
        >>> dominated([(1.0, 0.9), (2.0, 0.8), (2.0, 0.95)])
        [None, 0, None]
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    return [next((i for i, q in enumerate(places) if beats(q, p)), None) for p in places]


def place_of(point: Point, front: Front) -> tuple[float, float]:
    """What is drawn: latency where it was measured (as a share of dense in the same run), else the cost; quality."""
    quality = point.quality[front.figure].value if front.figure in point.quality else math.nan
    if point.timing and front.dense.timing:
        return point.timing["ratio"] * front.dense.timing["median_s"], quality
    return (math.nan if point.value is None else point.value), quality


def beaten(front: Front) -> dict[str, str]:
    """Name of a point -> name of one that is as fast and as good, and better in one of them."""
    drawn = [p for p in front.all if p.done and all(map(math.isfinite, place_of(p, front)))]
    by = dominated([place_of(p, front) for p in drawn])
    return {p.name: drawn[i].name for p, i in zip(drawn, by, strict=True) if i is not None}


def front_data(front: Front) -> dict[str, Any]:
    """The front as JSON-able data."""
    by = beaten(front)

    def row(point: Point) -> dict[str, Any]:
        return {"name": point.name, **point_data(point), "dominated_by": by.get(point.name)}

    return {
        "schema": SCHEMA,
        "finished": front.finished,
        "planned": front.planned,
        "cost": front.cost,
        "unit": front.unit,
        "quality": front.figure,
        "dense": row(front.dense),
        "points": [row(p) for p in front.points],
        "baselines": [row(p) for p in front.baselines],
        "disk_bytes": sum(p.disk_bytes for p in front.all),
        "made": dict(front.made),
    }


def write_front(folder: Path, front: Front, page: bool = True) -> None:
    """Write front.json and, unless told otherwise, report.html into a folder, each whole or not at all."""
    write_bytes(folder / JSON_NAME, _text(front_data(front)))
    if page:
        from secateur.evidence.front_page import render_front  # its charts need matplotlib, which is slow to import

        write_bytes(folder / HTML_NAME, render_front(front).encode("utf-8", "xmlcharrefreplace"))


def cells(front: Front, point: Point) -> dict[str, str]:
    """One point as texts: budget, cost, speed, quality, parameters, note."""
    by = beaten(front).get(point.name)
    timed, figure = point.timing, point.quality.get(front.figure)
    mark = {True: " ✓", False: " ✗", None: ""}[point.met]
    latency = ""
    if timed and front.dense.timing:
        latency = words.quantity(place_of(point, front)[0], "s")
        if point.method != "dense":
            latency += f" ({words.percent(timed['low'])} – {words.percent(timed['high'])} of dense)"
    quality = ""
    if figure is not None:
        quality = words.decimal(figure.value)
        if math.isfinite(figure.low):
            quality += f" ({words.decimal(figure.low)} – {words.decimal(figure.high)})"
    note = "" if by is None else f"beaten by {by}"
    if not point.done:
        closest = "" if point.closest is None else f"; closest {words.quantity(point.closest, front.unit)}"
        note = f"cannot be reached{closest}" if point.closest is not None else point.why
    budget = "" if point.method == "dense" else words.percent(point.fraction)
    params = words.quantity(point.sizes["params"]) if "params" in point.sizes else ""
    cost = words.quantity(point.value, front.unit) + mark if point.value is not None else ""
    if front.cost == "latency" and timed and point.method != "dense":
        cost = f"{latency}{mark}"
    return {
        "name": point.name,
        "budget": budget,
        "cost": cost,
        "latency": latency,
        "quality": quality,
        "params": params,
        "note": note,
    }


def headline(front: Front) -> str:
    """One sentence."""
    met, out = sum(p.met is True for p in front.points), sum(not p.done for p in front.points)
    missed = sum(p.met is False for p in front.points)
    said = f"{met} of {front.planned} budgets on {front.cost} met"
    said += f", {missed} missed when measured after recovery" if missed else ""
    said += f", {out} out of reach" if out else ""
    return said if front.finished else f"Unfinished: {said}"


def front_table(front: Front) -> Table:
    """The front for a terminal."""
    title = headline(front)
    table = Table("", title=Text(title, style="bold green" if front.finished else "bold red"))
    columns = [front.cost, *(["latency"] if front.dense.timing and front.cost != "latency" else [])]
    ours = ["budget", "cost", *(["latency"] if len(columns) > 1 else [])]
    for name in ("budget", *columns, front.figure, "parameters"):
        table.add_column(name, justify="right")
    table.add_column("")
    for i, group in enumerate((front.points, (front.dense,), front.baselines)):
        if i and group:
            table.add_section()
        for point in group:
            text = cells(front, point)
            row = [text["name"], *(text[k] for k in ours), text["quality"], text["params"]]
            table.add_row(*map(Text, row), Text(text["note"], style="dim"))
    return table


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
