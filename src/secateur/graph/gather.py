"""Gather the smallest removable sets into groups of interchangeable units."""

from __future__ import annotations

import itertools

import numpy as np

from secateur.graph.axes import Axes
from secateur.graph.closure import Solution
from secateur.types import Group, Ints, Slice


def _positions(axes: Axes, solution: Solution) -> tuple[list[tuple[str, int]], Ints, Ints, Ints]:
    """Every position of every tensor axis that may go: (key, position, root); keys index the returned list."""
    keys: list[tuple[str, int]] = []
    which, where, root = [], [], []
    for index, name in axes.names.items():
        for d, ids in enumerate(axes.ids[index]):
            if ids is None:
                continue
            r = solution.root[ids]
            live = np.nonzero(~solution.pinned[r])[0]
            if len(live):
                which.append(np.full(len(live), len(keys)))
                where.append(live)
                root.append(r[live])
                keys.append((name, d))
    if not keys:
        none = np.zeros(0, np.int64)
        return [], none, none, none
    return keys, np.concatenate(which), np.concatenate(where), np.concatenate(root)


def gather(axes: Axes, solution: Solution) -> list[tuple[Group, tuple[Ints, ...]]]:
    """Units with the same signature (how many positions of which axes, and which axes on the way) are one group."""
    keys, which, where, root = _positions(axes, solution)
    if not keys:
        return []
    celled = np.zeros(axes.n, bool)
    celled[solution.cells.ravel()] = True
    random = np.random.default_rng(0).integers(1, 2**62, size=len(keys) + len(axes.births), dtype=np.int64)
    signature = np.zeros(axes.n, np.int64)
    with np.errstate(over="ignore"):
        np.add.at(signature, root, random[which])
        plain = ~celled[root]
        found = _plain_groups(keys, which[plain], where[plain], root[plain], signature)
        found += _celled_groups(axes, solution, keys, which, where, root, signature, random[len(keys) :])
    inputs = _input_ids(axes)
    labels = _labels(axes, solution)
    made, taken = [], set[str]()
    order = {name: i for i, name in enumerate(axes.graph.tensors)}
    found.sort(key=lambda f: min((order[keys[k][0]], keys[k][1]) for k, _ in f[1]))
    for roots, parts in found:
        slices = tuple(
            Slice(*keys[k], idx, "in" if _first(axes, keys[k]) in inputs else "out")
            for k, idx in sorted(parts, key=lambda p: (order[keys[p[0]][0]], keys[p[0]][1]))
        )
        if len(roots) < 1 or not any(s.name in axes.graph.floating for s in slices):
            continue
        made.append((_named(slices, roots, labels, taken), _compact(roots)))
    return made


def _first(axes: Axes, key: tuple[str, int]) -> int:
    """The first id of an axis of a tensor."""
    ids = axes.ids[axes.graph.tensors[key[0]].index][key[1]]
    return -1 if ids is None else int(ids[0])


def _compact(roots: Ints | list[Ints]) -> tuple[Ints, ...]:
    """One vector where every unit is a single root, else one vector a unit."""
    if isinstance(roots, np.ndarray):
        return (roots,)
    return (np.concatenate(roots),) if all(len(r) == 1 for r in roots) else tuple(roots)


def _input_ids(axes: Axes) -> set[int]:
    return {int(a.ravel()[0]) for a in axes.inputs if a.size}


def _labels(axes: Axes, solution: Solution) -> dict[int, str]:
    """Root -> the most telling label it was given."""
    rank = {k: i for i, k in enumerate(("embedding", "neuron", "channel", "width", "head_dim", "head"))}
    out: dict[int, str] = {}
    for kind in rank:
        for ids, label in axes.labels:
            if label == kind:
                out.update(dict.fromkeys(np.unique(solution.root[ids]).tolist(), kind))
    return out


def _named(slices: tuple[Slice, ...], roots: Ints | list[Ints], labels: dict[int, str], taken: set[str]) -> Group:
    rank = ("embedding", "neuron", "channel", "width", "head_dim", "head")
    kinds = [labels[int(r)] for r in np.atleast_1d(roots[0]) if int(r) in labels]
    kind = max(kinds, key=rank.index) if kinds else "neuron"
    makers = [s for s in slices if s.role == "out"] or list(slices)
    weights = [s for s in makers if s.name.endswith("weight")] or makers
    module = weights[0].name.rpartition(".")[0]
    base = f"{module or weights[0].name}:{kind}"
    name = base if base not in taken else next(n for i in itertools.count(2) if (n := f"{base}{i}") not in taken)
    taken.add(name)
    return Group(name, kind, len(roots), slices, module)


def _plain_groups(
    keys: list[tuple[str, int]], which: Ints, where: Ints, root: Ints, signature: Ints
) -> list[tuple[Ints | list[Ints], list[tuple[int, Ints]]]]:
    """Units of one root each, vectorised."""
    out: list[tuple[Ints | list[Ints], list[tuple[int, Ints]]]] = []
    if not len(root):
        return []
    roots = np.unique(root)
    _, family = np.unique(signature[roots], return_inverse=True)
    family_of = np.full(int(roots.max()) + 1, -1)
    family_of[roots] = family
    order = np.lexsort((where, which, family_of[root]))
    which, where, root = which[order], where[order], root[order]
    cuts = np.nonzero(np.diff(family_of[root]))[0] + 1
    rank = np.empty(len(family_of), np.int64)
    for ks, ps, rs in zip(np.split(which, cuts), np.split(where, cuts), np.split(root, cuts), strict=True):
        members, first = np.unique(rs, return_index=True)
        members = members[np.argsort(first, kind="stable")]  # by first position in the first axis
        rank[members] = np.arange(len(members))
        parts = []
        inner = np.nonzero(np.diff(ks))[0] + 1
        for k, p, r in zip(np.split(ks, inner), np.split(ps, inner), np.split(rs, inner), strict=True):
            by_unit = np.argsort(rank[r], kind="stable")
            parts.append((int(k[0]), p[by_unit].reshape(len(members), -1)))
        out.append((members, parts))
    return out


def _celled_groups(
    axes: Axes,
    solution: Solution,
    keys: list[tuple[str, int]],
    which: Ints,
    where: Ints,
    root: Ints,
    signature: Ints,
    random: Ints,
) -> list[tuple[list[Ints], list[tuple[int, Ints]]]]:
    """Units that are closures of several roots (heads, head dims, groups of a convolution)."""
    order = np.argsort(root, kind="stable")
    which, where, root = which[order], where[order], root[order]
    births, birth_of = np.array(axes.births), np.zeros(axes.n, np.int64)
    np.add.at(birth_of, solution.root, random[np.searchsorted(births, np.arange(axes.n), side="right") - 1])
    families: dict[tuple[int, ...], list[tuple[Ints, Ints, Ints]]] = {}
    defined = np.zeros(axes.n, bool)
    defined[solution.cells[:, 0]] = True
    for closure in solution.closures:
        lo, hi = np.searchsorted(root, closure), np.searchsorted(root, closure, side="right")
        count = hi - lo
        at = np.repeat(lo - np.cumsum(count) + count, count) + np.arange(count.sum())
        if not len(at):
            continue
        atoms = closure[~defined[closure]]  # rows and columns cut the same axes: told apart by where they were born
        sign = (int(signature[closure].sum()), int(birth_of[atoms].sum()), len(closure))
        families.setdefault(sign, []).append((closure, which[at], where[at]))
    out = []
    for units in families.values():
        # every unit of a family takes as many positions of each axis: one row a unit, axis after axis
        rows = np.stack([p[np.lexsort((p, w))] for _, w, p in units])
        axis, starts = np.unique(np.sort(units[0][1]), return_index=True)
        by_place = np.argsort(rows[:, 0], kind="stable")
        ends = [*starts[1:], rows.shape[1]]
        parts = [(int(k), rows[by_place, a:b]) for k, a, b in zip(axis, starts, ends, strict=True)]
        out.append(([units[i][0] for i in by_place], parts))
    return out
