"""From constraints to units: connected components, then the smallest sets that may go together.

Feasible sets are closed under union, so the units are the smallest closures of single ids. Linear in the number of
ids and constraints up to sorting; components of equal structure (the layers of a transformer) are solved once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.axes import Axes, Pin
from secateur.graph.recorded import NOWHERE
from secateur.graph.residual import pin_residual
from secateur.graph.rules.experts import settle
from secateur.types import Bools, Ints

MOST_WORK = 5_000_000_000
"""Cells times seeds of a connected set of views beyond which its units are not searched for: some twenty seconds."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Ids reduced to roots.

    Attributes:
        root: id -> smallest id it is tied to. pinned: by root, must stay. cells: (n, 3) roots x == y or z that remain.
        closures: the smallest removable sets of roots that take part in cells.
    """

    root: Ints
    pinned: Bools
    cells: Ints
    closures: tuple[Ints, ...]


def components(n: int, pairs: Sequence[tuple[Ints, Ints]]) -> Ints:
    """Smallest label of each node's component, by vectorised hooking and pointer jumping.

    Example:
        >>> components(5, [(np.array([0, 3]), np.array([2, 4]))])
        array([0, 1, 0, 3, 3])
    """
    parent = np.arange(n)
    if not pairs:
        return parent
    a, b = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    while True:
        ra, rb = parent[a], parent[b]
        differ = ra != rb
        if not differ.any():
            return parent
        a, b, ra, rb = a[differ], b[differ], ra[differ], rb[differ]
        np.minimum.at(parent, np.maximum(ra, rb), np.minimum(ra, rb))
        while True:
            grand = parent[parent]
            if (grand == parent).all():
                break
            parent = grand


def solve(axes: Axes) -> Solution:
    """Reduce the constraints and find the closures."""
    root = components(axes.n, axes.ties)
    pin_residual(axes, root)
    settle(axes, root)
    pinned = np.zeros(axes.n, bool)
    for pin in axes.pins:
        pinned[root[pin.ids]] = True
    cells = np.concatenate([np.stack(c, 1) for c in axes.cells]) if axes.cells else np.zeros((0, 3), np.int64)
    root, pinned, cells = _simplify(axes.n, root, pinned, cells)
    bearing = np.zeros(axes.n, bool)  # roots that stand for positions of a parameter or buffer
    for index in axes.names:
        for ids in axes.ids[index]:
            if ids is not None:
                bearing[root[ids]] = True
    closures, tangled = _closures(cells, pinned, bearing)
    for nodes in tangled:
        axes.pins.append(Pin(nodes, "is a row and a column of too many views at once to be told apart", NOWHERE))
        pinned[nodes] = True
    return Solution(root, pinned, cells, tuple(closures))


def _unique_rows(rows: Ints, n: int) -> Ints:
    """Distinct rows, sorted by (y, z, x) with y <= z."""
    x, y, z = rows[:, 0], np.minimum(rows[:, 1], rows[:, 2]), np.maximum(rows[:, 1], rows[:, 2])
    order = np.lexsort((x, z, y))
    x, y, z = x[order], y[order], z[order]
    new = np.ones(len(x), bool)
    new[1:] = (x[1:] != x[:-1]) | (y[1:] != y[:-1]) | (z[1:] != z[:-1])
    return np.stack([x[new], y[new], z[new]], 1)


def _simplify(n: int, root: Ints, pinned: Bools, cells: Ints) -> tuple[Ints, Bools, Ints]:
    """Pinned or repeated factors turn cells into ties, until nothing changes."""
    while len(cells):
        cells = _unique_rows(root[cells], n)
        x, y, z = cells.T
        before = pinned.sum()
        for v in (y, z):
            pinned[v[pinned[x]]] = True
        pinned[x[pinned[y] & pinned[z]]] = True
        ties = [(x[m], v[m]) for m, v in ((pinned[y], z), (pinned[z], y), (y == z, y)) if (x[m] != v[m]).any()]
        same = (y[1:] == y[:-1]) & (z[1:] == z[:-1]) & (x[1:] != x[:-1])
        if same.any():
            ties.append((x[1:][same], x[:-1][same]))
        if not ties and pinned.sum() == before:
            break
        if ties:
            further = components(n, ties)
            still = np.zeros(n, bool)
            still[further[np.nonzero(pinned)[0]]] = True
            root, pinned = further[root], still
    if len(cells):
        x, y, z = cells.T
        trivial = pinned[y] | pinned[z] | (y == z)
        cells = cells[~trivial]
    return root, pinned, cells


def _closures(cells: Ints, pinned: Bools, bearing: Bools) -> tuple[list[Ints], list[Ints]]:
    """Smallest closures of every connected set of cells, and the sets that would take too long.

    Sets of equal structure are solved once.
    """
    if not len(cells):
        return [], []
    nodes, local = np.unique(cells, return_inverse=True)
    local = local.reshape(cells.shape)
    part = components(len(nodes), [(local[:, 0], local[:, 1]), (local[:, 0], local[:, 2])])
    order = np.argsort(part[local[:, 0]], kind="stable")
    cuts = np.nonzero(np.diff(part[local[order, 0]]))[0] + 1
    known: dict[bytes, list[Ints]] = {}
    out: list[Ints] = []
    tangled: list[Ints] = []
    for block in np.split(local[order], cuts):
        mine, renamed = np.unique(block, return_inverse=True)
        renamed = renamed.reshape(block.shape)
        dead, bears = pinned[nodes[mine]], bearing[nodes[mine]]
        if len(block) * int((~dead).sum() - len(np.unique(renamed[:, 0]))) > MOST_WORK:
            tangled.append(nodes[mine])
            continue
        key = renamed.tobytes() + dead.tobytes() + bears.tobytes()
        if key not in known:
            known[key] = _minimal(_grow_all(renamed, dead), bears)
        out += [nodes[mine[c]] for c in known[key]]
    return out, tangled


def _grow_all(cells: Ints, dead: Bools) -> list[Bools]:
    """One closure for every atom (an id that no cell defines): what must go when it goes."""
    n = len(dead)
    x, y, z = cells.T
    uses: list[list[int]] = [[] for _ in range(n)]
    for a, b, c in cells.tolist():
        uses[b].append(a)
        uses[c].append(a)
    weight = np.maximum(np.array([len(u) for u in uses]), 1)
    defined = np.isin(np.arange(n), x[(x != y) & (x != z)])
    out = []
    for seed in np.nonzero(~defined & ~dead)[0]:
        gone = np.zeros(n, bool)
        _spread(gone, uses, [int(seed)])
        while True:
            open_ = gone[x] & ~gone[y] & ~gone[z]  # a cell that is gone needs its row or its column gone
            if not open_.any():
                break
            candidates, count = np.unique(np.concatenate([y[open_], z[open_]]), return_counts=True)
            alive = ~dead[candidates]
            if not alive.any():
                gone[:] = False
                break
            candidates, count = candidates[alive], count[alive]
            _spread(gone, uses, [int(candidates[np.argmax(count / weight[candidates])])])
        if gone.any() and not (gone & dead).any():
            out.append(gone)
    return out


def _spread(gone: Bools, uses: list[list[int]], fresh: list[int]) -> None:
    while fresh:
        node = fresh.pop()
        if not gone[node]:
            gone[node] = True
            fresh += [u for u in uses[node] if not gone[u]]


def _minimal(closures: list[Bools], bears: Bools) -> list[Ints]:
    """Distinct closures that are not unions of smaller ones, as far as parameters and buffers go."""
    distinct: dict[tuple[int, ...], tuple[int, ...]] = {}
    for c in closures:
        seen, whole = tuple(np.nonzero(c & bears)[0].tolist()), tuple(np.nonzero(c)[0].tolist())
        if seen and len(whole) < len(distinct.get(seen, (0, *whole))):
            distinct[seen] = whole
    sets = list(distinct)
    holding: dict[int, list[int]] = defaultdict(list)
    for i, s in enumerate(sets):
        for node in s:
            holding[node].append(i)
    out = []
    for s in sets:
        inside = Counter(i for node in s for i in holding[node])
        covered: set[int] = set()
        for i, k in inside.items():
            if k == len(sets[i]) < len(s):
                covered.update(sets[i])
        if len(covered) < len(s):
            out.append(np.array(distinct[s]))
    return out
