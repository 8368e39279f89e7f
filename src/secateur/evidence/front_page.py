"""A front as one HTML page: quality against measured latency, and the table."""

from __future__ import annotations

import math

from markupsafe import Markup

from secateur.evidence import words
from secateur.evidence.front import METHODS, Front, beaten, cells, headline, place_of
from secateur.evidence.page import environment
from secateur.evidence.scatter import Cloud, Dot, scatter


def render_front(front: Front) -> str:
    """The page as text: self-contained HTML, every value escaped."""
    rows = [{**cells(front, p), "ours": p.method == "plan", "why": p.why} for p in front.all]
    made = {k.replace("_", " "): str(v) for k, v in front.made.items() if not isinstance(v, dict)}
    return (
        environment()
        .get_template("front.html")
        .render(
            verdict=headline(front),
            ok=front.finished,
            chart=_chart(front),
            rows=rows,
            cost=front.cost,
            timed=bool(front.dense.timing) and front.cost != "latency",
            quality=front.figure,
            disk=words.quantity(float(sum(p.disk_bytes for p in front.all)), "B"),
            made=made,
        )
    )


def _chart(front: Front) -> Markup | None:
    """Each method as one cloud; the same data as a sentence for those who do not see it."""
    timed = bool(front.dense.timing)
    what, unit = ("latency", "s") if timed else (front.cost, front.unit)
    by = beaten(front)
    clouds = []
    for method, label in METHODS.items():
        mine = [p for p in front.all if p.method == method and p.done]
        dots = []
        for p in mine:
            x, y = place_of(p, front)
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            figure = p.quality[front.figure]
            base = x / p.timing["ratio"] if timed and p.timing and method != "dense" else math.nan
            low, high = (base * p.timing[k] if math.isfinite(base) else math.nan for k in ("low", "high"))
            number = str(p.number) if method == "plan" else ""
            dots.append(Dot(x, y, low, high, figure.low, figure.high, number, p.name in by))
        if dots:
            clouds.append(Cloud(label, tuple(dots)))
    if not clouds:
        return None
    longest = max(d.x for c in clouds for d in c.dots)
    scale, shown = _scale(longest, unit)
    about = "; ".join(
        f"{c.name}: " + ", ".join(f"{words.quantity(d.x, unit)} at {words.decimal(d.y)}" for d in c.dots)
        for c in clouds
    )
    x_name = f"measured latency, {shown}" if timed else ", ".join(filter(None, (what, shown)))
    return scatter("front", f"{front.figure} against {what}", about, clouds, x_name, front.figure, scale)


def _scale(largest: float, unit: str) -> tuple[float, str]:
    """Factor and unit in which the largest value has one to three digits before the point."""
    if unit == "s":
        steps = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
        return next((s for s in steps if largest * s[0] >= 1), steps[-1])
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= factor:
            return 1 / factor, prefix + unit
    return 1.0, unit
