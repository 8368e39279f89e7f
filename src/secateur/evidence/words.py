"""Numbers as people read them, and the sentence at the top of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from secateur.types import Report, Row

Family = Literal["size", "latency", "quality", "check"]
_CHECKS = ("masked", "control", "shapes", "order", "shrunk", "outputs")
_LESS = ("B", "MAC", "MACs", "J", "g")
_STEPS = {"": ("", "k", "M", "G", "T"), "B": (" B", " kB", " MB", " GB", " TB")}
_FRACTIONS = ((1 / 4, "A quarter of"), (1 / 3, "A third of"), (1 / 2, "Half"), (2 / 3, "Two thirds of"))


def digits(x: float, n: int = 3) -> str:
    """``n`` significant digits without an exponent where that stays short.

    Example:
        >>> [digits(v) for v in (45.123, 0.99996, 22713.0, 3.2e-13, 0.0)]
        ['45.1', '1.00', '22700', '3.2e-13', '0']
    """
    if not math.isfinite(x):
        return "not finite" if math.isnan(x) else ("∞" if x > 0 else "−∞")
    if x == 0:
        return "0"
    rounded = float(f"{x:.{n - 1}e}")
    power = math.floor(math.log10(abs(rounded)))
    if power < -3 or power >= 7:
        mantissa, exponent = f"{x:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{rounded:.{max(0, n - 1 - power)}f}"


COUNTED = ("tensors",)
"""Units of things that come whole."""


def quantity(x: float | None, unit: str = "", n: int = 3) -> str:
    """A value with its unit, scaled: seconds to ms, bytes to MB (powers of 1000), counts to M.

    Example:
        >>> quantity(0.0451, "s"), quantity(90.9e6, "B"), quantity(22_713_216, ""), quantity(1.36e9, "MAC")
        ('45.1 ms', '90.9 MB', '22.7 M', '1.36 GMAC')
        >>> quantity(0.00512, "J"), quantity(2.5, "J")
        ('5.12 mJ', '2.50 J')
        >>> quantity(0.91, ""), quantity(94.26, "%"), quantity(None), quantity(12, ""), quantity(10, "tensors")
        ('0.910', '94.3 %', '–', '12', '10 tensors')
    """
    if x is None:
        return "–"
    if not math.isfinite(x):
        return digits(x)
    if unit == "s":
        return duration(x, n)
    if unit in ("B", "MAC", "MACs") or (unit == "" and float(x).is_integer() and abs(x) >= 1000):
        return _scaled(x, "B" if unit == "B" else "", n) + ("MAC" if unit.startswith("MAC") else "")
    if unit == "J":
        return _joules(x, n)
    if unit == "":
        return decimal(x) if not float(x).is_integer() else str(int(x))
    return f"{x:.0f} {unit}" if unit in COUNTED else f"{digits(x, n)} {unit}"


def _scaled(x: float, unit: str, n: int) -> str:
    steps = _STEPS[unit]
    value, level = float(x), 0
    while level < len(steps) - 1 and abs(float(f"{value:.{n - 1}e}")) >= 1000:
        value, level = value / 1000, level + 1
    text = str(int(value)) if level == 0 and value.is_integer() else digits(value, n)
    return text + steps[level] if unit == "B" else f"{text} {steps[level]}"


def _joules(x: float, n: int) -> str:
    size = float(f"{abs(x):.{n - 1}e}")
    for scale, name in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")):
        if size >= scale:
            return f"{digits(x / scale, n)} {name}"
    return "0 J" if x == 0 else f"{digits(x / 1e-9, n)} nJ"


def duration(x: float, n: int = 3) -> str:
    """Seconds as µs, ms, s, min or h.

    Example:
        >>> duration(7e-6), duration(0.00512), duration(3.2), duration(250), duration(9000)
        ('7.00 µs', '5.12 ms', '3.20 s', '4 min 10 s', '2 h 30 min')
    """
    size = abs(x)
    if size >= 3600:
        minutes = round(size / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    if size >= 120:
        return f"{round(size) // 60} min {round(size) % 60} s"
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if float(f"{size:.{n - 1}e}") >= scale:
            return f"{digits(x / scale, n)} {name}"
    return "0 s" if x == 0 else f"{digits(x / 1e-9, n)} ns"


def decimal(x: float) -> str:
    """A figure of quality: three decimals, or significant digits where these would hide it."""
    return f"{x:.3f}" if 0.01 <= abs(x) < 10 or x == 0 else digits(x)


def times(ratio: float | None) -> str:
    """A ratio, such as ``0.495×``."""
    if ratio is None:
        return "–"
    return f"{ratio:.3f}×" if 0.001 <= abs(ratio) < 0.9995 else f"{digits(ratio)}×"


def count(n: int) -> str:
    """A whole number, its thousands apart.

    Example:
        >>> count(30522)
        '30\u202f522'
    """
    return f"{n:,}".replace(",", "\u202f")


def percent(fraction: float) -> str:
    """A fraction in percent, such as ``46 %``; one decimal below 10 %."""
    return f"{100 * fraction:.0f} %" if abs(fraction) >= 0.0995 else f"{digits(100 * fraction, 2)} %"


def family(row: Row) -> Family:
    """Whether a row tells of size, of time (less is better in both), of quality, or that a check held.

    Example:
        >>> family(Row("latency", "s")), family(Row("MACs", "MAC")), family(Row("cosine"))
        ('latency', 'size', 'quality')
    """
    name = row.what.lower()
    if row.unit == "s":
        return "latency"
    if row.unit in _LESS or name.startswith(("param", "mac", "bytes", "size", "peak", "price of")):
        return "size"
    checked = row.dense is None and row.ok is not None and name.startswith(_CHECKS)
    return "check" if row.unit == "relative" or checked else "quality"


def cells(row: Row) -> dict[str, str]:
    """The texts of one line of the table: dense, pruned, interval, ratio, asked, gloss."""
    values = [v for v in (row.dense, row.pruned, row.asked, row.low, row.high) if v is not None]
    plain = row.unit == "" and family(row) == "quality" and any(not float(v).is_integer() for v in values)

    def show(v: float | None) -> str:
        return decimal(v) if plain and v is not None and math.isfinite(v) else quantity(v, row.unit)

    interval = ""
    if row.low is not None and row.high is not None:
        low, high = show(row.low), show(row.high)
        end = high[high.find(" ") :] if " " in high else ""
        interval = f"{low.removesuffix(end)} to {high}" if end else f"{low} to {high}"
    return {
        "dense": show(row.dense),
        "pruned": show(row.pruned),
        "interval": interval,
        "ratio": times(row.ratio),
        "asked": "" if row.asked is None else f"{_sign(row)} {show(row.asked)}".strip(),
        "gloss": "" if "faster" in row.note or "slower" in row.note else gloss(row),  # said once
    }


def _sign(row: Row) -> str:
    if family(row) in ("size", "latency"):
        return "≤"
    if row.pruned is None or row.asked is None or row.ok is None or row.what == "sparsity":  # met from both sides
        return ""
    return "≥" if row.ok == (row.pruned >= row.asked) else "≤"


def gloss(row: Row) -> str:
    """The ratio in words, never a gain where the row's own note says that it is noise.

    Example:
        >>> gloss(Row("latency", "s", 0.04, 0.02)), gloss(Row("parameters", "", 100.0, 46.0))
        ('2.00× faster', '54 % smaller')
    """
    ratio = row.ratio
    if ratio is None or ratio <= 0 or not math.isfinite(ratio) or "noise" in row.note:
        return ""
    kind = family(row)
    if kind == "latency" and f"{ratio:.2f}" != "1.00":
        return f"{1 / ratio:.2f}× faster" if ratio < 1 else f"{ratio:.2f}× slower"
    if kind == "size" and f"{ratio:.2f}" != "1.00":
        less, more = (
            ("less", "more") if row.unit in ("J", "g") or row.what.startswith("price") else ("smaller", "larger")
        )
        return f"{percent(1 - ratio)} {less}" if ratio < 1 else f"{percent(ratio - 1)} {more}"
    return ""


def find(rows: Sequence[Row], kind: Family, start: str = "") -> Row | None:
    """The row of a family that speaks for it: the first one with a limit, else the first."""
    fits = [r for r in rows if family(r) == kind and r.what.lower().startswith(start) and r.pruned is not None]
    asked = [r for r in fits if r.asked is not None]
    return next(iter(asked or fits), None)


def target_of(row: Row, sections: Mapping[str, Any]) -> str:
    """The runtime of a latency row: the measured target that its name mentions, or the only one there is."""
    names = list(dict.fromkeys(m["target"] for m in sections.get("measurements") or ()))
    named = [n for n in names if n in row.what]
    return max(named, key=len) if named else (names[0] if len(names) == 1 else "")


def rows_of(report: Report) -> tuple[Row, ...]:
    """The rows; a latency change within both models' spreads together is noted as noise, unless a note judged it."""
    spreads: dict[str, float] = {}
    for m in report.sections.get("measurements") or ():
        spreads[m["target"]] = spreads.get(m["target"], 0.0) + (m.get("spread") or 0.0)
    out = []
    for row in report.rows:
        noise = spreads.get(target_of(row, report.sections), 0.0) if family(row) == "latency" else 0.0
        lost = row.ratio is not None and abs(1 - row.ratio) <= noise and not row.note and noise > 0
        out.append(replace(row, note="within noise") if lost else row)
    return tuple(out)


def passed(report: Report) -> bool:
    """Nothing failed: not the report, no row, no parity check, not the verdict."""
    parity = all(p["ok"] for p in report.sections.get("parity") or ())
    verdict = report.sections.get("verdict") or {"ok": True}
    return bool(report.ok and verdict["ok"] and parity and all(r.ok is not False for r in report.rows))


def sentence(report: Report) -> str:
    """The verdict in one plain sentence: the one given in the sections, or one made from the rows.

    Example:
        >>> rows = (Row("latency", "s", 0.0451, 0.0223, 0.02255, True), Row("cosine", "", 1.0, 0.91),
        ...         Row("parameters", "", 22.7e6, 10.4e6))
        >>> sentence(Report(True, 1e-13, rows))
        'Half the latency: 2.02× faster, cosine 0.910, 46 % of the parameters'
    """
    given = report.sections.get("verdict")
    if given:
        return str(given["words"])
    report = replace(report, rows=rows_of(report))
    problems = _problems(report)
    gains = _gains(report)
    if problems:
        return "; ".join(problems)
    return _lead(report.rows) + ", ".join(gains) if gains else "Every check holds"


def _problems(report: Report) -> list[str]:
    missed: dict[bool, list[str]] = {False: [], True: []}
    for row in report.rows:
        if row.ok is False:
            text = cells(row)
            asked = f" (asked {text['asked']})" if text["asked"] else ""
            value = f" {text['pruned']}" if row.pruned is not None else ""
            missed[family(row) == "check"].append(row.what + value + asked)
    out = ["Check failed: " + "; ".join(missed[True])] if missed[True] else []
    out += ["Limit not met: " + "; ".join(missed[False])] if missed[False] else []
    wrong = [p for p in report.sections.get("parity") or () if not p["ok"]]
    if wrong:
        out.append("Parity failed: " + "; ".join(f"{p['what']} {digits(p['max_error'], 2)}" for p in wrong))
    if not report.ok and not out:
        out = [f"A check failed: masked and shrunk differ by {digits(report.max_error, 2)} relative"]
    return out


def _gains(report: Report) -> list[str]:
    latency, quality = find(report.rows, "latency"), find(report.rows, "quality")
    params = find(report.rows, "size", "param") or find(report.rows, "size")
    out = []
    if latency is not None and latency.ratio is not None:
        where = target_of(latency, report.sections)
        out.append((gloss(latency) or "latency unchanged within the noise") + (f" on {where}" if where else ""))
    if quality is not None:
        out.append(f"{quality.what} {cells(quality)['pruned']}")
    if params is not None and params.ratio is not None:
        out.append(f"{percent(params.ratio)} of the {params.what}")
    return out


def _lead(rows: Sequence[Row]) -> str:
    latency = find(rows, "latency")
    if latency is None or latency.ratio is None or not gloss(latency):
        return ""
    for fraction, name in _FRACTIONS:
        if abs(latency.ratio / fraction - 1) <= 0.02:
            return f"{name} the latency: "
    return ""
