"""The alignment staircase as a drawing: latency against width, aligned and unaligned counts."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib import rc_context

from secateur.evidence.charts import _LOOK, ACCENT, BAD, INK, MUTED, PLAIN, WIDTH, _canvas, _grid, _svg, _ticks


def staircase(key: str, title: str, about: str, points: Sequence[tuple[int, float, bool]]) -> Markup:
    """Points ``(width, milliseconds, aligned)`` over the width, and steps through the aligned ones.

    Args:
        key: unique on the page, a prefix of all ids.
        title: spoken name.
        about: spoken summary.
        points: at least one.
    """
    points = sorted(points)
    top, bottom, left = 30.0, 220.0, 52.0
    low, high = points[0][0], points[-1][0]
    zoom = (WIDTH - left - 30) / ((high - low) or 1)
    with rc_context(_LOOK):
        figure, ax = _canvas(bottom + 40)
        place = _grid(ax, _ticks([p[1] for p in points]), left, WIDTH - 8, top, bottom)

        def at(width: int) -> float:
            return left + 10 + zoom * (width - low)

        aligned = [(at(w), place(s)) for w, s, even in points if even]
        if len(aligned) > 1:  # a width costs what the next aligned one does: the step stands to its left
            xs, ys = zip(*aligned, strict=True)
            ax.step(xs, ys, where="pre", color=PLAIN, lw=1.4)
        for colour, even in ((BAD, False), (ACCENT, True)):
            mine = [(at(w), place(s)) for w, s, e in points if e == even]
            if mine:
                xs, ys = zip(*mine, strict=True)
                ax.plot(xs, ys, ls="", marker="o", ms=6, mec=colour, mfc=colour)
        last = float("-inf")
        for width, _, even in points:
            if even and at(width) - last >= 34:
                last = at(width)
                ax.text(last, bottom + 16, str(width), ha="center", color=MUTED, size=10.5)
        ax.text((left + WIDTH) / 2, bottom + 33, "width", ha="center", color=MUTED, size=10.5)
        ax.text(8, 14, "ms", color=MUTED, size=10.5)
        for x, colour, text in ((210, ACCENT, "multiple of 8"), (315, BAD, "any other")):
            ax.plot([x], [11], ls="", marker="o", ms=6, mec=colour, mfc=colour)
            ax.text(x + 8, 15, text, color=INK, size=10.5)
        return _svg(figure, key, title, about)
