"""The page of a language model's evaluation: figures with their protocol, error by block, quality against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from secateur.evidence import charts, words
from secateur.evidence.charts import ACCENT, Bar
from secateur.evidence.page import environment
from secateur.evidence.scatter import Cloud, Dot, scatter
from secateur.types import Row

_SIZES = ("parameters that are not zero", "size of the files")
"""What quality is shown against."""


def render_llm(data: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as text: self-contained HTML, every value escaped.

    Args:
        data: of an evaluation, as `secateur.llm.evaluate.evaluate` makes it.
        others: evaluations of the same text and windows, which stand beside it in the trade-off.

    Example:
        >>> data = {"model": "small", "dense": None, "rows": [], "speed": [], "tasks": [], "blocks": [],
        ...     "protocol": {"words": "10 tokens", "dtype": "float32", "device": "cpu", "texts": []},
        ...     "made_by": {}, "made": {"date": "2026-01-01", "versions": {}, "machine": {}}}
        >>> "10 tokens" in render_llm(data)
        True
    """
    rows = [Row(**r) for r in data["rows"]]
    return (
        environment()
        .get_template("llm.html")
        .render(
            model=data["model"],
            date=data["made"].get("date", ""),
            verdict=_verdict(data, rows),
            tiles=_tiles(rows),
            table=[{**words.cells(r), "what": r.what, "note": r.note} for r in rows],
            beside_dense=data["dense"] is not None,
            protocol=data["protocol"],
            errors=_bars("error", data["blocks"], "error", "Error of the hidden state by block"),
            solved=_bars("solved", data["blocks"], "solved", "Error of the matrices by block"),
            densities=_bars("density", data["blocks"], "density", "Density by block"),
            blocks=data["blocks"],
            trade=[c for c in (_trade(i, what, [data, *others]) for i, what in enumerate(_SIZES)) if c],
            left_out=[o["model"] for o in others if not comparable(data, o)],
            tasks=data["tasks"],
            facts=_facts(data),
        )
    )


def comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two evaluations are of the same texts in the same windows: only then do their perplexities compare."""
    keys = ("window", "stride", "tokens")
    a, b = one["protocol"], other["protocol"]
    same = all(a.get(k) == b.get(k) for k in keys)
    return same and [t["sha256"] for t in a["texts"]] == [t["sha256"] for t in b["texts"]]


def _verdict(data: Mapping[str, Any], rows: Sequence[Row]) -> str:
    found = next((r for r in rows if r.what == "perplexity"), None)
    if found is None:
        return f"{data['model']}: nothing was measured"
    text = words.cells(found)
    beside = f", dense {text['dense']}" if found.dense is not None else ""
    return f"{data['model']}: perplexity {text['pruned']}{beside}"


def _tiles(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows that say most, large."""
    wanted = ("perplexity", "top-1 agreement with dense", *_SIZES, "decode on eager")
    chosen = [r for name in wanted for r in rows if r.what == name]
    return [
        {
            "value": words.cells(r)["pruned"],
            "label": r.what,
            "detail": f"dense {words.cells(r)['dense']}" if r.dense is not None else words.cells(r)["interval"],
        }
        for r in chosen
    ]


def _bars(key: str, blocks: Sequence[Mapping[str, Any]], field: str, title: str) -> Markup | None:
    known = [b for b in blocks if b[field] is not None]
    if not known:
        return None
    text = words.percent if field == "density" else words.decimal
    rows = [Bar(b["block"], b[field], text(b[field]), ACCENT, 1.0 if field == "density" else None) for b in known]
    return charts.bars(key, title, "; ".join(f"{r.label}: {r.text}" for r in rows), rows, height=16)


def _trade(index: int, what: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Perplexity against a size: this model, those beside it, and the dense one."""
    dots, dense = [], []
    for data in found:
        rows = {r["what"]: Row(**r) for r in data["rows"]}
        quality, size = rows.get("perplexity"), rows.get(what)
        if quality is None or size is None or size.pruned is None or not comparable(found[0], data):
            continue
        assert quality.pruned is not None
        ends = (quality.low or quality.pruned, quality.high or quality.pruned)
        dots.append(Dot(size.pruned, quality.pruned, y_low=ends[0], y_high=ends[1], label=data["model"]))
        if quality.dense is not None and size.dense is not None:
            dense = [Dot(size.dense, quality.dense, label="dense")]
    if len(dots) + len(dense) < 2:
        return None
    clouds = [Cloud("pruned", tuple(dots)), *([Cloud("dense", tuple(dense))] if dense else [])]
    about = "; ".join(f"{d.label}: {words.quantity(d.x)} at {words.decimal(d.y)}" for c in clouds for d in c.dots)
    unit = "MB" if what.startswith("size") else "millions"
    title = f"Perplexity against {what}"
    return {
        "title": title,
        "chart": scatter(f"trade-{index}", title, about, clouds, f"{what}, {unit}", "perplexity", 1e-6),
    }


def _facts(data: Mapping[str, Any]) -> dict[str, str]:
    facts = {"class": data.get("class", ""), "dense": data["dense"] or ""}
    facts |= {
        str(k): str(v) for k, v in (data["made_by"].get("made") or {}).items() if isinstance(v, (str, int, float))
    }
    facts |= {str(k): str(v) for k, v in data["made"].get("versions", {}).items()}
    facts |= {str(k): str(v) for k, v in data["made"].get("machine", {}).items()}
    return {k.replace("_", " "): v for k, v in facts.items() if v}
