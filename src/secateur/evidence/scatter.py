"""A chart of points in a plane, by series, with their 95 % intervals: quality against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes

from secateur.evidence import charts
from secateur.evidence.charts import INK, LINE, MUTED, SERIES, WIDTH

Place: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Dot:
    """One point: where, its intervals (NaN where unknown), its label, and whether another one beats it."""

    x: float
    y: float
    x_low: float = math.nan
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Cloud:
    """The points of one method."""

    name: str
    dots: tuple[Dot, ...]


def scatter(
    key: str, title: str, about: str, clouds: Sequence[Cloud], x_name: str, y_name: str, scale: float = 1.0
) -> Markup:
    """Points joined by method from left to right, with bars over their intervals; hollow where another one beats it.

    Args:
        key: unique on the page, a prefix of all ids.
        title: spoken name.
        about: spoken summary.
        clouds: drawn in this order, each in a colour of its own.
        x_name, y_name: what the axes show.
        scale: what x is multiplied by for its axis, such as 1000 for milliseconds.
    """
    top, bottom, left, right = 22.0, 214.0, 52.0, WIDTH - 10
    dots = [d for c in clouds for d in c.dots]
    xs = [scale * v for d in dots for v in (d.x, d.x_low, d.x_high) if math.isfinite(v)]
    ys = [v for d in dots for v in (d.y, d.y_low, d.y_high) if math.isfinite(v)]
    across = charts._ticks([*xs, 0.0])
    first, last = across[0], across[-1]

    def at(x: float) -> float:
        return left + (right - left) * (scale * x - first) / (last - first)

    with rc_context(charts._LOOK):
        figure, ax = charts._canvas(bottom + 66)
        up = charts._grid(ax, charts._ticks(ys), left, right, top, bottom)
        for tick in across:
            x = at(tick / scale)
            ax.plot([x, x], [bottom, bottom + 4], color=LINE, lw=0.8)
            ax.text(x, bottom + 17, f"{tick:.10g}", ha="center", color=MUTED, size=10.5)
        ax.text((left + right) / 2, bottom + 34, charts._clean(x_name), ha="center", color=MUTED, size=10.5)
        ax.text(left - 44, 11, charts._clean(y_name), color=MUTED, size=10.5)
        for colour, cloud in zip(SERIES * len(clouds), clouds, strict=False):
            _draw(ax, cloud, colour, at, up)
        _legend(ax, clouds, bottom + 56)
        return charts._svg(figure, key, title, about)


def _draw(ax: Axes, cloud: Cloud, colour: str, at: Place, up: Place) -> None:
    line = sorted(cloud.dots, key=lambda d: d.x)
    ax.plot([at(d.x) for d in line], [up(d.y) for d in line], color=colour, lw=1.2, alpha=0.5)
    for d in line:
        x, y = at(d.x), up(d.y)
        if math.isfinite(d.x_low) and math.isfinite(d.x_high):
            ax.plot([at(d.x_low), at(d.x_high)], [y, y], color=colour, lw=1)
        if math.isfinite(d.y_low) and math.isfinite(d.y_high):
            ax.plot([x, x], [up(d.y_low), up(d.y_high)], color=colour, lw=1)
        fill = charts.CARD if d.hollow else colour
        ax.plot([x], [y], marker="o", ms=6, mec=colour, mfc=fill, mew=1.4)
        if d.label:
            ax.text(x + 6, y - 6, charts._clean(d.label), color=INK, size=10)


def _legend(ax: Axes, clouds: Sequence[Cloud], y: float) -> None:
    x = 12.0
    for colour, cloud in zip(SERIES * len(clouds), clouds, strict=False):
        ax.plot([x], [y], marker="o", ms=6, mec=colour, mfc=colour)
        name = charts._clean(cloud.name)
        ax.text(x + 8, y, name, va="center_baseline", color=INK, size=10.5)
        x += 26 + len(name) * 6.3
