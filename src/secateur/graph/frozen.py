"""What cannot be cut, and the first reason found: read off the solution of a graph's constraints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from secateur.graph.axes import Axes
from secateur.graph.closure import Solution
from secateur.graph.recorded import NOWHERE
from secateur.types import Frozen, Ints


def frozen_axes(axes: Axes, solution: Solution) -> Iterator[Frozen]:
    """Parameter axes with positions that stay, each with the first reason found."""
    first = _first_pins(axes, solution)
    for index, name in axes.names.items():
        for d, ids in enumerate(axes.ids[index]):
            if ids is None or name not in axes.graph.parameters:
                continue
            roots = solution.root[ids]
            stuck = solution.pinned[roots]
            if stuck.any():
                known = first[roots[stuck]]
                known = known[known >= 0]
                pin = axes.pins[int(known[0])] if len(known) else None
                reason, place = (pin.reason, pin.place) if pin else ("meets an axis that must stay", NOWHERE)
                yield Frozen(name, d, int(stuck.sum()), reason, place.module, place.line)
    yield from _frozen_parts(axes, solution, first)


def _frozen_parts(axes: Axes, solution: Solution, first: Ints) -> Iterator[Frozen]:
    """Rows or columns of a view that stay although the axis itself can be cut the other way (head dims, mostly)."""
    if not axes.cells:
        return
    x, y, z = (solution.root[np.concatenate(ids)] for ids in zip(*axes.cells, strict=True))
    home = np.full(axes.n, -1)
    homes = [(name, d) for name in axes.names.values() if name in axes.graph.parameters for d in range(2)]
    homes = [(n, d) for n, d in homes if d < axes.graph.tensors[n].ndim]
    for k in range(len(homes) - 1, -1, -1):
        ids = axes.ids[axes.graph.tensors[homes[k][0]].index][homes[k][1]]
        if ids is not None:
            home[solution.root[ids]] = k
    sizes: dict[tuple[int, int], int] = {}
    for part in (y, z):
        live = solution.pinned[part] & ~solution.pinned[x] & (home[x] >= 0) & (first[part] >= 0)
        for code in np.unique(home[x[live]] * axes.n + part[live]).tolist():
            key = code // axes.n, int(first[code % axes.n])
            sizes[key] = sizes.get(key, 0) + 1
    for (k, pin), size in sizes.items():
        (name, d), why = homes[k], axes.pins[pin]
        if size > 1:
            yield Frozen(name, d, size, f"in a view of it: {why.reason}", why.place.module, why.place.line)


def _first_pins(axes: Axes, solution: Solution) -> Ints:
    """Root -> the first pin that reaches it, directly or through cells; -1 where none does."""
    first = np.full(axes.n, len(axes.pins))
    for i, pin in enumerate(axes.pins):
        np.minimum.at(first, solution.root[pin.ids], i)
    if axes.cells:
        x, y, z = (solution.root[np.concatenate(ids)] for ids in zip(*axes.cells, strict=True))
        before = -1
        while before != (before := int(first.sum())):
            for a, b in ((x, y), (x, z), (y, x), (z, x)):
                reached = solution.pinned[a] & solution.pinned[b]
                np.minimum.at(first, b[reached], first[a[reached]])
    return np.where(first < len(axes.pins), first, -1)
