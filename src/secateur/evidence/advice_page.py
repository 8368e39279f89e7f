"""The page of an advice: one self-contained HTML file."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from secateur.evidence import charts, words
from secateur.evidence.advice import PAYS, REFUSED, SLOWER, Advice, Advised
from secateur.evidence.charts import ACCENT, BAD, PLAIN, Bar
from secateur.evidence.page import environment
from secateur.evidence.staircase import staircase


def render(advice: Advice) -> str:
    """The page as text, every value escaped."""
    env = environment()
    env.filters |= {"percent": words.percent, "quantity": words.quantity}
    return env.get_template("advice.html").render(
        a=advice,
        date=advice.made.get("date", ""),
        good=any(r.verdict == PAYS for r in advice.rows),
        tiles=_tiles(advice),
        rows=[_line(r, advice.params) for r in advice.rows],
        chart=_chart(advice),
        steps=_steps(advice),
        facts=_facts(advice),
    )


def _line(row: Advised, params: int) -> dict[str, Any]:
    share = row.params / params if params else 1.0
    size = row.nbytes if row.file_bytes is None else row.file_bytes
    speedup = row.measured
    return {
        "what": row.what,
        "predicted": words.times(row.predicted),
        "measured": "" if speedup is None else words.times(speedup.ratio),
        "interval": "" if speedup is None else f"{speedup.low:.3f} to {speedup.high:.3f}",
        "params": words.percent(share),
        "size": words.quantity(size, "B"),
        "exported": row.file_bytes is not None,
        "verdict": row.verdict,
        "mood": {PAYS: "yes", SLOWER: "no", REFUSED: "no"}.get(row.verdict, ""),
        "words": row.words(),
        "how": row.how,
    }


def _tiles(advice: Advice) -> list[dict[str, str]]:
    count = f"{len(advice.measured)} of {len(advice.rows)}"
    detail = f"±{words.percent(advice.spread)} spread at most"
    spent = f"{words.duration(advice.asked)} allowed"
    return [
        {"value": words.duration(advice.dense_seconds), "label": "dense, one run", "detail": detail},
        {"value": count, "label": "were measured", "detail": "the others are predicted"},
        {"value": words.duration(advice.seconds), "label": "spent", "detail": spent},
    ]


def _chart(advice: Advice) -> Markup | None:
    """What was measured, as bars of its time over the dense model's."""
    bars = [Bar("dense", 1.0, "1.00×", PLAIN)]
    for r in advice.measured:
        if r.measured is not None:
            colour = {PAYS: ACCENT, SLOWER: BAD}.get(r.verdict, PLAIN)
            bars.append(Bar(r.what, r.measured.ratio, words.times(r.measured.ratio), colour, whisker=r.measured.high))
    if len(bars) == 1:
        return None
    about = "; ".join(f"{b.label}: {b.text}" for b in bars)
    return charts.bars("measured", "Time over the dense model's", about, bars, height=24)


def _steps(advice: Advice) -> dict[str, Any] | None:
    found = advice.staircase
    if found is None or not found.points:
        return None
    points = [(p.width, p.seconds * 1e3, p.aligned) for p in found.points]
    about = "; ".join(f"{p.width}: {words.duration(p.seconds)}" for p in found.points)
    chart = staircase("staircase", f"Latency against the width of {found.layer}", about, points)
    return {
        "chart": chart,
        "layer": found.layer,
        "what": found.what,
        "sentence": found.sentence,
        "points": found.points,
    }


def _facts(advice: Advice) -> dict[str, str]:
    facts = {"Model": advice.model, "Target": advice.target, "Threads": advice.threads, "Batch": advice.batch}
    facts |= {k.replace("_", " ").capitalize(): v for k, v in advice.made.items()}
    return {k: str(v) for k, v in facts.items() if v not in (None, "")}
