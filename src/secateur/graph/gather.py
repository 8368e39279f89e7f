"""Gather the smallest removable sets into groups of interchangeable units."""

from __future__ import annotations

import itertools

import numpy as np

from secateur.graph.axes import Axes
from secateur.graph.closure import Solution
from secateur.types import Group, Ints, Slice


def _positions(axes: Axes, solution: Solution) -> tuple[list[tuple[str, int]], Ints, Ints, Ints]:
    """Every position of every tensor axis that may go, axis by axis: number of its key, position, root."""
    keys: list[tuple[str, int]] = []
    vectors: list[Ints] = []
    for index, name in axes.names.items():
        for d, ids in enumerate(axes.ids[index]):
            if ids is not None:
                keys.append((name, d))
                vectors.append(ids)
    sizes = np.array([v.size for v in vectors], np.int64)
    which = np.repeat(np.arange(len(keys)), sizes)
    where = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    root = solution.root[np.concatenate(vectors)] if keys else np.zeros(0, np.int64)
    live = ~solution.pinned[root]
    return keys, which[live], where[live], root[live]


def gather(axes: Axes, solution: Solution) -> list[tuple[Group, tuple[Ints, ...]]]:
    """Units with the same signature (how many positions of which axes, and which axes on the way) are one group."""
    keys, which, where, root = _positions(axes, solution)
    if not len(root):
        return []
    celled = np.zeros(axes.n, bool)
    celled[solution.cells.ravel()] = True
    random = np.random.default_rng(0).integers(1, 2**62, size=len(keys) + len(axes.births), dtype=np.int64)
    signature = np.zeros(axes.n, np.int64)
    with np.errstate(over="ignore"):
        np.add.at(signature, root, random[which])
        plain = ~celled[root]
        found = _plain_groups(which[plain], where[plain], root[plain], signature)
        found += _celled_groups(axes, solution, keys, which, where, root, signature, random[len(keys) :])
    inputs = _input_ids(axes)
    labels = _labels(axes, solution)
    made, taken = [], set[str]()
    found.sort(key=lambda f: f[1][0][0])  # keys are numbered in the order of the model, and so are parts
    for roots, parts in found:
        slices = tuple(Slice(*keys[k], idx, "in" if _first(axes, keys[k]) in inputs else "out") for k, idx in parts)
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


_KINDS = ("embedding", "neuron", "channel", "width", "head_dim", "hidden", "head", "expert")
"""From the least telling label to the most."""


def _labels(axes: Axes, solution: Solution) -> Ints:
    """By root, the number of the most telling label that it was given; -1 where it was given none."""
    out = np.full(axes.n, -1)
    for ids, label in sorted(axes.labels, key=lambda given: _KINDS.index(given[1])):
        out[solution.root[ids]] = _KINDS.index(label)
    return out


def _named(slices: tuple[Slice, ...], roots: Ints | list[Ints], labels: Ints, taken: set[str]) -> Group:
    most = int(labels[np.atleast_1d(roots[0])].max())
    kind = "neuron" if most < 0 else _KINDS[most]
    makers = [s for s in slices if s.role == "out"] or list(slices)
    weights = [s for s in makers if s.name.endswith("weight")] or makers
    module = weights[0].name.rpartition(".")[0]
    base = f"{module or weights[0].name}:{kind}"
    name = base if base not in taken else next(n for i in itertools.count(2) if (n := f"{base}{i}") not in taken)
    taken.add(name)
    return Group(name, kind, len(roots), slices, module)


def _plain_groups(
    which: Ints, where: Ints, root: Ints, signature: Ints
) -> list[tuple[Ints | list[Ints], list[tuple[int, Ints]]]]:
    """Units of one root each, vectorised; positions come axis by axis, in order."""
    if not len(root):
        return []
    members, first = np.unique(root, return_index=True)
    rank, family = np.empty((2, len(signature)), np.int64)
    rank[members[np.argsort(first, kind="stable")]] = np.arange(len(members))
    family[members] = np.unique(signature[members], return_inverse=True)[1]
    order = np.lexsort((rank[root], which, family[root]))  # unit by unit of an axis, axis by axis of a family
    which, where, root = which[order], where[order], root[order]
    of = family[root]
    units = np.bincount(family[members])
    cuts = np.nonzero((of[1:] != of[:-1]) | (which[1:] != which[:-1]))[0] + 1
    found: dict[int, tuple[Ints | list[Ints], list[tuple[int, Ints]]]] = {}
    for lo, hi in itertools.pairwise([0, *cuts.tolist(), len(root)]):
        f = int(of[lo])
        if f not in found:
            found[f] = root[lo : hi : (hi - lo) // int(units[f])], []
        found[f][1].append((int(which[lo]), where[lo:hi].reshape(int(units[f]), -1)))
    return list(found.values())


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
    if not solution.closures:
        return []
    order = np.argsort(root, kind="stable")
    which, where, root = which[order], where[order], root[order]
    births, birth_of = np.array(axes.births), np.zeros(axes.n, np.int64)
    np.add.at(birth_of, solution.root, random[np.searchsorted(births, np.arange(axes.n), side="right") - 1])
    birth_of[solution.cells[:, 0]] = 0  # rows and columns cut the same axes: only where they were born tells them apart
    flat, sizes = np.concatenate(solution.closures), np.array([len(c) for c in solution.closures])
    starts = np.cumsum(sizes) - sizes
    low = np.searchsorted(root, flat)
    count = np.searchsorted(root, flat, side="right") - low
    at = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
    owner = np.repeat(np.repeat(np.arange(len(sizes)), sizes), count)
    order = np.lexsort((where[at], which[at], owner))
    which, where = which[at][order], where[at][order]  # closure by closure, axis by axis
    length = np.bincount(owner, minlength=len(sizes))
    first = np.cumsum(length) - length
    signs = (np.add.reduceat(signature[flat], starts), np.add.reduceat(birth_of[flat], starts), sizes)
    families: dict[tuple[int, ...], list[int]] = {}
    for i, sign in enumerate(zip(*(s.tolist() for s in signs), strict=True)):
        if length[i]:
            families.setdefault(sign, []).append(i)
    out = []
    for units in families.values():
        # every unit of a family takes as many positions of each axis: one row a unit, axis after axis
        rows = where[first[units][:, None] + np.arange(length[units[0]])]
        axis, begin = np.unique(which[first[units[0]] :][: length[units[0]]], return_index=True)
        by_place = np.argsort(rows[:, 0], kind="stable")
        ends = [*begin[1:], rows.shape[1]]
        parts = [(int(k), rows[by_place, a:b]) for k, a, b in zip(axis, begin, ends, strict=True)]
        out.append(([solution.closures[units[i]] for i in by_place], parts))
    return out
