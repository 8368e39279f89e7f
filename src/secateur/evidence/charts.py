"""Charts as inline SVG text: same input, same bytes; colours follow the page's light or dark style sheet."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from secateur.types import Floats

# Stand-ins drawn by matplotlib, replaced by CSS variables afterwards, so that one chart serves both themes.
INK, MUTED, LINE, TRACK, ACCENT, PLAIN, BAD, CARD = (f"#00000{i}" for i in range(1, 9))
SERIES = tuple(f"#00001{i}" for i in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", TRACK: "track", ACCENT: "accent", PLAIN: "plain"}
_VARIABLES |= {BAD: "bad", CARD: "card"} | {c: f"series-{i}" for i, c in enumerate(SERIES, 1)}
WIDTH = 420.0
_LETTER = 6.1  # mean advance at 11 px; text is set in the reader's font, so leave some air
_LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "path.simplify": False,
}


@dataclass(frozen=True)
class Bar:
    """One bar: its label, length, the text at its end, and optionally a full length and a whisker."""

    label: str
    value: float
    text: str
    colour: str = ACCENT
    full: float | None = None
    whisker: float | None = None


@dataclass(frozen=True)
class Series:
    """One line: a name and a value at each position, NaN where there is none."""

    name: str
    values: tuple[float, ...]
    label: str = ""


def bars(key: str, title: str, about: str, rows: Sequence[Bar], height: float = 19.0) -> Markup:
    """Horizontal bars from zero on one scale.

    Args:
        key: unique on the page, a prefix of all ids.
        title: spoken name.
        about: spoken summary.
        rows: from the top.
        height: of one row, pixels.
    """
    labels = [shorten(r.label, 30) for r in rows]
    left = min(190.0, max(map(len, labels)) * _LETTER + 10)
    right = max(len(r.text) for r in rows) * _LETTER + 12
    ends = [v for r in rows for v in (r.value, r.full, r.whisker) if v is not None and math.isfinite(v)]
    scale = (WIDTH - left - right) / (max([*ends, 0.0]) or 1.0)
    with rc_context(_LOOK):
        figure, ax = _canvas(height * len(rows) + 4)
        for i, row in enumerate(rows):
            mid = height * (i + 0.5) + 2
            thick = min(13.0, height - 5)
            end = left + scale * max(0.0, row.value) if math.isfinite(row.value) else left
            if row.full is not None:
                _box(ax, left, mid - thick / 2, left + scale * row.full, thick, TRACK)
            _box(ax, left, mid - thick / 2, end, thick, row.colour)
            if row.whisker is not None and math.isfinite(row.whisker):
                tip = left + scale * row.whisker
                ax.plot([end, tip], [mid, mid], color=INK, lw=1)
                ax.plot([tip, tip], [mid - 4, mid + 4], color=INK, lw=1)
            ax.text(left - 8, mid, labels[i], ha="right", va="center_baseline", color=INK, size=11)
            edge = left + scale * max(
                v for v in (row.value, row.full, row.whisker, 0.0) if v is not None and math.isfinite(v)
            )
            ax.text(edge + 7, mid, _clean(row.text), va="center_baseline", color=INK, size=11)
        return _svg(figure, key, title, about)


def columns(key: str, title: str, about: str, rows: Sequence[Bar], limit: tuple[float, str] | None = None) -> Markup:
    """Vertical bars from zero, with an optional dashed line at a limit ``(value, text)``."""
    names = [_wrap(r.label, len(rows)) for r in rows]
    slanted = len(rows) > 6
    top, bottom = 30.0, 190.0
    height = bottom + (86 if slanted else 12 + 13 * max(n.count("\n") + 1 for n in names))
    values = [r.value for r in rows if math.isfinite(r.value)]
    scale = (bottom - top) / (max([*values, limit[0] if limit else 0.0, 0.0]) or 1.0)
    step = (WIDTH - 16) / len(rows)
    with rc_context(_LOOK):
        figure, ax = _canvas(height)
        ax.plot([8, WIDTH - 8], [bottom, bottom], color=LINE, lw=1)
        for i, row in enumerate(rows):
            mid, half = 8 + step * (i + 0.5), min(30.0, step * 0.34)
            if math.isfinite(row.value):
                peak = bottom - scale * row.value
                ax.add_patch(Rectangle((mid - half, peak), 2 * half, bottom - peak, fc=row.colour, lw=0))
                inside = step > 66 and bottom - peak > 40  # at the foot, where the dashed line rarely crosses the text
                colour = CARD if inside and row.colour != PLAIN else INK
                size = 11 if step > 60 else 9
                ax.text(
                    mid,
                    bottom - 9 if inside else peak - 6,
                    _clean(row.text),
                    ha="center",
                    color=colour,
                    size=size,
                )
            else:
                ax.text(mid, bottom - 6, "not measured", ha="center", color=MUTED, size=9)
        if limit:
            y = bottom - scale * limit[0]
            ax.plot([8, WIDTH - 8], [y, y], color=INK, lw=1.2, ls=(0, (4, 3)))
            ax.plot([WIDTH - 34, WIDTH - 8], [8, 8], color=INK, lw=1.2, ls=(0, (4, 3)))
            ax.text(WIDTH - 40, 12, _clean(limit[1]), ha="right", color=MUTED, size=10.5)
        _names(ax, names, [8 + step * (i + 0.5) for i in range(len(rows))], bottom, slanted)
        return _svg(figure, key, title, about)


def lines(key: str, title: str, about: str, names: Sequence[str], series: Sequence[Series]) -> Markup:
    """Lines over named positions, each labelled at its right end."""
    wrapped = [_wrap(n, len(names) + 2) for n in names]
    slanted = len(names) > 5
    top, bottom, left = 16.0, 190.0, 40.0
    room = min(230.0, max(len(s.name) + len(s.label) + 1 for s in series) * 6.7 + 12)
    height = bottom + (86 if slanted else 12 + 13 * max(n.count("\n") + 1 for n in wrapped))
    ticks = _ticks([v for s in series for v in s.values])
    step = (WIDTH - left - room - 24) / max(1, len(names) - 1)
    xs = [left + 18 + step * i for i in range(len(names))]
    with rc_context(_LOOK):
        figure, ax = _canvas(height)
        place = _grid(ax, ticks, left, WIDTH - room, top, bottom)
        ends = []
        for colour, one in zip(SERIES * len(series), series, strict=False):
            seen = [(x, place(v)) for x, v in zip(xs, one.values, strict=True) if math.isfinite(v)]
            if seen:
                px, py = zip(*seen, strict=True)
                ax.plot(px, py, color=colour, lw=2, marker="o", ms=5, mec=colour, mfc=colour)
                ends.append((py[-1], colour, f"{one.name} {one.label}".strip()))
        for y, (_, colour, text) in zip(_apart([e[0] for e in ends], top - 6, bottom), ends, strict=True):
            ax.text(WIDTH - room + 6, y, _clean(text), va="center_baseline", color=colour, size=11, weight="bold")
        _names(ax, wrapped, xs, bottom, slanted)
        return _svg(figure, key, title, about)


def curve(key: str, title: str, about: str, x: Sequence[float], y: Sequence[float], x_name: str) -> Markup:
    """One line over numbers; the axis is logarithmic beyond a factor of 20, long lines are averaged."""
    xs, ys = _thin(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    fine = ys[np.isfinite(ys)]
    log = fine.size > 0 and fine.min() > 0 and fine.max() / fine.min() > 20
    top, bottom, left = 14.0, 190.0, 46.0
    first, last = float(np.min(x)), float(np.max(x))
    zoom = (WIDTH - left - 26) / ((last - first) or 1.0)
    px = left + 6 + zoom * (xs - first)
    with rc_context(_LOOK):
        figure, ax = _canvas(bottom + 36)
        place = _grid(ax, _ticks([float(v) for v in ys], log), left, WIDTH - 8, top, bottom, log)
        py = np.array([place(float(v)) if math.isfinite(v) else math.nan for v in ys])
        ax.plot(px, py, color=ACCENT, lw=1.8)
        for t in _ticks([first, last]):
            if first <= t <= last:
                ax.text(
                    left + 6 + zoom * (t - first),
                    bottom + 15,
                    f"{t:,.10g}".replace(",", " "),
                    ha="center",
                    color=MUTED,
                    size=10.5,
                )
        ax.text((left + WIDTH) / 2, bottom + 31, _clean(x_name), ha="center", color=MUTED, size=10.5)
        return _svg(figure, key, title, about)


def shorten(text: str, most: int) -> str:
    """Printable text of at most ``most`` characters, an ellipsis in the middle.

    Example:
        >>> shorten("encoder.layer.11.output", 12)
        'encod…output'
    """
    clean = _clean(text)
    if len(clean) <= most:
        return clean
    return clean[: most // 2 - 1] + "…" + clean[len(clean) - (most - most // 2) :]


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _wrap(text: str, count: int) -> str:
    if count > 6:
        return shorten(text, 20)
    return "\n".join(textwrap.wrap(_clean(text), max(7, int(72 / count)))[:3]) or " "


def _canvas(height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose coordinates are pixels from the top left."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), frameon=False)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(height, 0)
    ax.axis("off")
    return figure, ax


def _box(ax: Axes, x0: float, y: float, x1: float, thick: float, colour: str) -> None:
    ax.add_patch(Rectangle((x0, y), max(0.0, x1 - x0), thick, fc=colour, lw=0))


def _names(ax: Axes, names: Sequence[str], xs: Sequence[float], bottom: float, slanted: bool) -> None:
    for x, name in zip(xs, names, strict=True):
        if slanted:
            ax.text(
                x + 4,
                bottom + 12,
                name,
                ha="right",
                va="center",
                rotation=38,
                rotation_mode="anchor",
                color=MUTED,
                size=10,
            )
            continue
        for i, line in enumerate(name.split("\n")):
            ax.text(x, bottom + 16 + 13 * i, line, ha="center", color=MUTED, size=10.5)


def _ticks(values: Sequence[float], log: bool = False) -> list[float]:
    fine = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(fine), max(fine)
    if log:
        return [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.05 * (abs(low) or 1.0), high + 0.05 * (abs(high) or 1.0)
    return [float(t) for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _grid(
    ax: Axes, ticks: Sequence[float], x0: float, x1: float, top: float, bottom: float, log: bool = False
) -> _Place:
    place = _Place(ticks[0], ticks[-1], top, bottom, log)
    places = 0 if log else max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    two = any(abs(round(t, places) - t) > 1e-9 * max(1.0, abs(t)) for t in ticks)
    for t in ticks:
        ax.plot([x0, x1], [place(t)] * 2, color=LINE, lw=0.8)
        text = f"{t:g}" if log else f"{t:.{places + two}f}"
        ax.text(x0 - 6, place(t), text.replace("-", "−"), ha="right", va="center_baseline", color=MUTED, size=10.5)
    return place


@dataclass(frozen=True)
class _Place:
    """Value -> y in pixels."""

    low: float
    high: float
    top: float
    bottom: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = (math.log(t) if self.log else t for t in (self.low, self.high, value))
        return self.bottom - (self.bottom - self.top) * (v - low) / (high - low)


def _apart(ys: Sequence[float], top: float, bottom: float, gap: float = 14.0) -> list[float]:
    """The same heights, moved as little as needed so that texts there do not overlap."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    out = list(ys)
    for before, i in zip([None, *order], order, strict=False):
        out[i] = max(out[i], top if before is None else out[before] + gap)
    last = bottom
    for i in reversed(order):
        out[i] = min(out[i], last)
        last = out[i] - gap
    return out


def _thin(x: Floats, y: Floats, most: int = 300) -> tuple[Floats, Floats]:
    if len(x) <= most:
        return x, y
    parts = [p for p in np.array_split(np.arange(len(x)), most) if p.size]
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _svg(figure: Figure, key: str, title: str, about: str) -> Markup:
    """The figure as an SVG element that may stand in a page beside others."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's font sets the text
        FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ET.fromstring(out.getvalue().encode("utf-8", "replace"))
    box = root.attrib["viewBox"]
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
                parent.remove(child)
    used = {v[1:] for e in root.iter() for n, v in e.attrib.items() if n.endswith("href")}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        new = _attributes(element.attrib, key, used)
        element.attrib.clear()
        element.attrib.update(new)
    root.attrib.clear()
    label = f"{key}-title {key}-about"
    root.attrib.update({"class": "chart", "viewBox": box, "role": "img", "aria-labelledby": label})
    for name, text in (("desc", about), ("title", title)):
        spoken = ET.Element(name, {"id": f"{key}-{'about' if name == 'desc' else 'title'}"})
        spoken.text = _clean(text)
        root.insert(0, spoken)
    return Markup(ET.tostring(root, encoding="unicode"))


def _attributes(given: Mapping[str, str], key: str, used: Collection[str]) -> dict[str, str]:
    """Attributes under local names: ids of this chart alone, colours as CSS variables, the page's font."""
    new = {}
    for name, value in given.items():
        local = name.rpartition("}")[2]
        if local == "clip-path" or (local == "id" and value not in used) or value.startswith("rotate(-0 "):
            continue
        if local == "id":
            value = f"{key}-{value}"
        elif local == "href":
            value = f"#{key}-{value[1:]}"
        elif local == "style":
            value = _style(value)
        new[local] = value
    return new


def _style(value: str) -> str:
    """Older matplotlib writes the shorthand ``font: bold 11px 'DejaVu Sans'``, newer one property each."""
    value = re.sub(r"font: ((?:\w+ )*)([\d.]+)px [^;]*", _font, value)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    return re.sub(r"#0000[01]\d", lambda m: f"var(--{_VARIABLES.get(m[0], 'ink')})", value)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 700; " if match[1].strip() in ("700", "bold") else ""
    return f"{weight}font-size: {match[2]}px"
