"""The report as one HTML page: what each part of the template shows, worked out from a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from secateur.evidence import charts, words
from secateur.evidence.charts import ACCENT, BAD, PLAIN, Bar, Series
from secateur.types import Report, Row

_FAMILIES = {"latency": "Latency", "size": "Size and memory", "quality": "Quality", "check": "Checks"}
_KINDS = {
    "head_dim": "head dimensions",
    "embedding": "embedding positions",
    "width": "residual positions",
    "hidden": "hidden units",
}
_MOST_FROZEN = 200  # of one reason; the rest stands in report.json


def render(report: Report) -> str:
    """The page as text: self-contained HTML, every value escaped.

    Args:
        report: as `from_json` gives it, so that its sections are known to be well formed.
    """
    report = replace(report, rows=words.rows_of(report))
    env = environment()
    s = {k: v for k, v in report.sections.items() if v}
    return env.get_template("report.html").render(
        title=s.get("title") or "Pruning report",
        notice=s.get("notice", ""),
        date=s.get("made", {}).get("date", ""),
        ok=words.passed(report),
        verdict=words.sentence(report),
        checks=_checks(report),
        tiles=_tiles(report),
        table=_table(report.rows),
        timing=_timing(s.get("measurements", [])),
        stages=_stages(report, s.get("stages", [])),
        widths=_widths(s.get("widths", [])),
        history=_history(s.get("history")),
        baselines=_baselines(report, s.get("baselines", [])),
        parity=s.get("parity", []),
        prediction=s.get("prediction", []),
        frozen=_frozen(s.get("frozen", [])),
        sparsity=_sparsity(s.get("sparsity", [])),
        dense=_dense(s.get("stayed_dense", [])),
        made=_made(s.get("made", {})),
    )


def environment() -> Environment:
    """The templates of this folder, every value escaped, with the filters that write figures."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["figure"] = lambda v: "–" if v is None else words.decimal(v)
    env.filters["count"] = words.count  # in place of jinja's alias of length
    env.filters |= {
        "quantity": words.quantity,
        "digits": words.digits,
        "times": words.times,
        "percent": words.percent,
    }
    return env


def _checks(report: Report) -> list[dict[str, Any]]:
    """What was checked, each with its outcome."""
    if report.sections.get("sparsity"):
        out = [{"ok": report.max_error == 0, "text": "What is kept is as it was; what is removed is exactly zero"}]
    elif math.isfinite(report.max_error):
        error = f"{words.digits(report.max_error, 2)} relative"
        text = f"Masked and shrunk models agree to {error}" if report.ok else f"Masked against shrunk: {error}"
        out = [{"ok": report.ok, "text": text}]
    else:
        out = [{"ok": report.ok, "text": "Masked against shrunk: not finite"}]
    asked = [r for r in report.rows if r.ok is not None and words.family(r) != "check"]
    if asked:
        met = sum(r.ok is True for r in asked)
        out.append({"ok": met == len(asked), "text": f"{met} of {len(asked)} limits met"})
    for p in report.sections.get("parity") or ():
        out.append({"ok": p["ok"], "text": f"{p['what']}: {words.digits(p['max_error'], 2)}"})
    return out


def _tiles(report: Report) -> list[dict[str, str]]:
    """Up to four large figures: speed, bytes, parameters, quality."""
    out = []
    latency = words.find(report.rows, "latency")
    if latency is not None and latency.ratio is not None:
        where = words.target_of(latency, report.sections)
        gain = words.gloss(latency)
        value, _, rest = gain.partition(" ") if gain else (words.times(latency.ratio), "", "the latency, within noise")
        out.append(_tile(latency, value, f"{rest} on {where}" if where else rest))
    for start in ("bytes", "param"):
        row = words.find(report.rows, "size", start)
        if row is not None and row.ratio is not None:
            out.append(_tile(row, words.percent(row.ratio), f"of the {row.what}"))
    quality = words.find(report.rows, "quality")
    if quality is not None:
        text = words.cells(quality)
        tile = {"value": text["pruned"], "label": quality.what, "detail": ""}
        if text["interval"]:
            tile["detail"] = f"95 % interval {text['interval']}"
        out.append(tile)
    return out


def _tile(row: Row, value: str, label: str) -> dict[str, str]:
    text = words.cells(row)
    return {"value": value, "label": label, "detail": f"{text['dense']} → {text['pruned']}"}


def _table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows by family, each as texts and the length of its ratio bar in percent."""
    out = []
    for kind, name in _FAMILIES.items():
        mine = [r for r in rows if words.family(r) == kind]
        lines = []
        for row in mine:
            bar = None if row.ratio is None or not math.isfinite(row.ratio) else max(0.0, min(100.0, 100 * row.ratio))
            lines.append({"what": row.what, "ok": row.ok, "note": row.note, "bar": bar, **words.cells(row)})
        if mine:
            out.append({"name": name, "rows": lines})
    return out


def _timing(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not measurements:
        return None
    rows, many = [], len({m["target"] for m in measurements}) > 1
    for m in measurements:
        label = f"{m['target']}, {m['model']}" if many else m["model"]
        colour = PLAIN if m["model"] == "dense" else ACCENT
        rows.append(Bar(label, m["median_s"], words.quantity(m["median_s"], "s"), colour, whisker=m.get("p95_s")))
    about = "; ".join(f"{m['target']}, {m['model']}: {words.quantity(m['median_s'], 's')}" for m in measurements)
    chart = charts.bars("timing", "Median latency of each model on each target", about, rows, height=26)
    return {
        "chart": chart,
        "rows": measurements,
        "targets": list(dict.fromkeys(m["target"] for m in measurements)),
    }


def _stages(report: Report, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not stages:
        return None
    names = [str(s["name"]) for s in stages]
    metrics = list(dict.fromkeys(m for s in stages for m in s.get("quality", {})))
    latency, quality = _stage_latency(report, stages), _stage_quality(names, stages, metrics)
    charted = (latency is not None) + len(quality) + bool(report.sections.get("history"))
    return {
        "latency": latency,
        "quality": quality,
        "metrics": metrics,
        "beside": charted % 2 == 1 and len(metrics) <= 3,
        "rows": [{"latency_s": None, "seconds": None, "quality": {}, **s} for s in stages],
    }


def _stage_latency(report: Report, stages: Sequence[Mapping[str, Any]]) -> Markup | None:
    seconds = [s.get("latency_s") for s in stages]
    if not any(seconds):
        return None
    rows = []
    for i, (stage, value) in enumerate(zip(stages, seconds, strict=True)):
        length = math.nan if value is None else float(value)
        rows.append(Bar(str(stage["name"]), length, words.quantity(value, "s"), ACCENT if i else PLAIN))
    row = words.find(report.rows, "latency")
    limit = None
    if row is not None and row.asked is not None:
        limit = (row.asked, f"asked {words.quantity(row.asked, 's')}")
    about = "; ".join(f"{r.label}: {r.text}" for r in rows)
    return charts.columns("stage-latency", "Latency through the stages", about, rows, limit)


def _stage_quality(names: Sequence[str], stages: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[Any]:
    """One chart for the figures that lie in [-1, 1], one for each of the others."""
    series = []
    for metric in metrics:
        values = tuple(float(s.get("quality", {}).get(metric, math.nan)) for s in stages)
        last = [v for v in values if math.isfinite(v)][-1:]
        series.append(Series(metric, values, words.decimal(last[0]) if last else ""))
    shared = [s for s in series if all(abs(v) <= 1.05 for v in s.values if math.isfinite(v))]
    split = ([shared] if shared else []) + [[s] for s in series if s not in shared]
    out = []
    for i, group in enumerate(split):
        about = "; ".join(
            f"{s.name}: {', '.join(words.decimal(v) if math.isfinite(v) else '–' for v in s.values)}" for s in group
        )
        title = "Quality through the stages" if group is shared else f"{group[0].name} through the stages"
        out.append({"title": title, "chart": charts.lines(f"stage-quality-{i}", title, about, names, group)})
    return out


def _widths(widths: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not widths:
        return None
    kinds = []
    for number, kind in enumerate(dict.fromkeys(w.get("kind", "unit") for w in widths)):
        mine = [w for w in widths if w.get("kind", "unit") == kind]
        before, after = sum(w["before"] for w in mine), sum(w["after"] for w in mine)
        labels, shape = short_names([w.get("module") or w["group"] for w in mine])
        rows = []
        for label, w in zip(labels, mine, strict=True):
            kept = w["after"] / w["before"] if w["before"] else 0.0
            rows.append(Bar(label, kept, f"{w['after']} of {w['before']}", ACCENT if w["after"] else BAD, full=1.0))
        name = _KINDS.get(kind, kind.replace("_", " ") + "s")
        kept = after / before if before else 0.0
        text = f"{words.count(after)} of {words.count(before)} kept ({words.percent(kept)})"
        panels = []
        for j, part in enumerate(_even(rows)):
            about = "; ".join(f"{b.label}: {b.text}" for b in part)
            panels.append(charts.bars(f"width-{number}-{j}", f"{name} kept, part {j + 1}", about, part))
        kinds.append({"name": name.capitalize(), "text": text, "shape": shape, "panels": panels})
    single = all(len(k["panels"]) == 1 for k in kinds) and len(kinds) > 1
    return {"kinds": kinds, "single": single, "rows": [{"module": "", "kind": "unit", **w} for w in widths]}


def _sparsity(weights: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Kept of each weight, and its share of saliency."""
    if not weights:
        return None
    labels, shape = short_names([w["weight"] for w in weights])
    rows = []
    for label, w in zip(labels, weights, strict=True):
        text = f"{words.percent(1 - w['kept'] / w['size'])} zero"
        rows.append(Bar(label, w["kept"] / w["size"], text, ACCENT if w["kept"] else BAD, full=1.0))
    panels = []
    for j, part in enumerate(_even(rows)):
        about = "; ".join(f"{b.label}: {b.text}" for b in part)
        panels.append(charts.bars(f"sparsity-{j}", f"Kept of each weight, part {j + 1}", about, part))
    return {"panels": panels, "shape": shape, "rows": [{"saliency_kept": None, **w} for w in weights]}


def _dense(weights: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameters by the reason why they stayed dense."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for w in weights:
        by.setdefault(w["reason"], []).append(w)
    return [{"reason": r, "rows": mine, "size": sum(w["size"] for w in mine)} for r, mine in by.items()]


def _even(rows: Sequence[Bar], most: int = 16) -> list[Sequence[Bar]]:
    """One panel where it is short, else an even number of about equal panels that stand side by side."""
    count = 1 if len(rows) <= most else 2 * math.ceil(len(rows) / 64)
    size = math.ceil(len(rows) / count)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Dotted paths without the parts they all share, and the shared shape with ``*`` in their place.

    Example:
        >>> short_names(["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"])
        (['layer.0', 'layer.1'], 'encoder.layer.*.output.dense')
        >>> short_names(["fc"])
        (['fc'], '')
    """
    parts = [n.split(".") for n in names]
    least = min(map(len, parts))
    if len(set(names)) < 2 or least < 2:
        return list(names), ""
    head = next(i for i in range(least + 1) if i == least or len({p[i] for p in parts}) > 1)
    room = least - head
    tail = next(i for i in range(room + 1) if i == room or len({p[-1 - i] for p in parts}) > 1)
    keep = max(0, head - 1)  # one shared part stays: "layer.0" says more than "0"
    if not head and not tail:
        return list(names), ""
    shape = ".".join([*parts[0][:head], "*", *(parts[0][len(parts[0]) - tail :] if tail else [])])
    return [".".join(p[keep : len(p) - tail]) for p in parts], shape


def _history(history: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not history:
        return None
    loss = history["loss"]
    steps = history.get("steps") or list(range(len(loss)))
    n = min(len(loss), len(steps))
    ends = words.digits(loss[0]), words.digits(loss[n - 1])
    about = f"from {ends[0]} to {ends[1]} in {n} points, up to step {words.digits(steps[n - 1])}"
    chart = charts.curve("history", "Loss while recovering", about, steps[:n], loss[:n], "step")
    return {"chart": chart, "about": about}


def _baselines(report: Report, baselines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not baselines:
        return None
    rows: list[dict[str, Any]] = [
        {"quality": {}, "note": "", "ours": False, "latency_ratio": None, **b} for b in baselines
    ]
    metrics = list(dict.fromkeys(m for b in rows for m in b["quality"]))
    if not any(b["ours"] for b in rows):
        rows.insert(0, _ours(report, metrics))
    panels = []
    for i, metric in enumerate(metrics):
        have = [b for b in rows if math.isfinite(b["quality"].get(metric, math.nan))]
        part = [
            Bar(
                b["name"],
                b["quality"][metric],
                words.decimal(b["quality"][metric]),
                ACCENT if b["ours"] else PLAIN,
            )
            for b in have
        ]
        if part:
            about = "; ".join(f"{b.label}: {b.text}" for b in part)
            chart = charts.bars(f"baseline-{i}", f"{metric}: this model beside the baselines", about, part, height=24)
            panels.append({"title": metric, "chart": chart})
    return {"rows": rows, "metrics": metrics, "panels": panels, "notes": any(b["note"] for b in rows)}


def _ours(report: Report, metrics: Sequence[str]) -> dict[str, Any]:
    """This report's own model as a line among the baselines: its rows, else its last stage."""
    latency = words.find(report.rows, "latency")
    last = (report.sections.get("stages") or [{}])[-1]
    quality = {k: v for k, v in last.get("quality", {}).items() if k in metrics}
    quality |= {r.what: r.pruned for r in report.rows if r.what in metrics and r.pruned is not None}
    ratio = latency.ratio if latency is not None else None
    return {"name": "this model", "latency_ratio": ratio, "quality": quality, "note": "", "ours": True}


def _frozen(frozen: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Axes by reason, the reason with most axes first."""
    if not frozen:
        return None
    by: dict[str, list[dict[str, Any]]] = {}
    for axis in frozen:
        by.setdefault(axis["reason"], []).append({"module": "", "line": "", **axis})
    groups = [
        {
            "reason": reason,
            "count": len(axes),
            "size": sum(a["size"] for a in axes),
            "rows": axes[:_MOST_FROZEN],
            "left": max(0, len(axes) - _MOST_FROZEN),
        }
        for reason, axes in sorted(by.items(), key=lambda item: -len(item[1]))
    ]
    return {"groups": groups, "count": len(frozen)}


def _made(made: Mapping[str, Any]) -> dict[str, Any] | None:
    if not made:
        return None
    show: Callable[[Any], str] = lambda v: ", ".join(map(str, v)) if isinstance(v, list) else str(v)  # noqa: E731
    known = ("command", "versions", "seed", "machine", "hashes", "date")
    facts = {"Date": made.get("date"), "Seed": made.get("seed")}
    facts |= {k.replace("_", " ").capitalize(): v for k, v in made.items() if k not in known}
    blocks = {
        "Run": facts,
        "Machine": made.get("machine"),
        "Versions": made.get("versions"),
        "Hashes": made.get("hashes"),
    }
    shown = {
        name: {str(k): show(v) for k, v in block.items() if v not in (None, "")}
        for name, block in blocks.items()
        if block
    }
    return {"command": made.get("command", ""), "blocks": {k: v for k, v in shown.items() if v}}
