"""Sizes of recorded values after a cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from secateur.graph.couple import Groups
from secateur.graph.recorded import Value
from secateur.types import Ints, Keep


@dataclass(frozen=True, eq=False)
class Extents:
    """The kept sizes of the dims of some values: one count a distinct dim, however many values share it.

    Attributes:
        groups: what is cut. slots: ``{value index: one slot a dim}``: positions in what a call returns.
    """

    groups: Groups
    slots: dict[int, tuple[int, ...]]
    _constants: Ints
    _roots: Ints
    _starts: Ints

    def __call__(self, keep: Keep) -> Ints:
        """Every distinct size under a keep, int64 (slots,); linear in the positions that can go.

        Example:
            >>> import numpy as np, torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> groups = sc.couple(sc.trace(net, torch.zeros(3, 4)))
            >>> hidden = groups.graph.calls[-1].inputs[1]
            >>> found = extents(groups, [hidden])
            >>> found({"0:neuron": np.arange(8) < 5})[list(found.slots[hidden.index])].tolist()
            [3, 5]
        """
        sizes = self._constants.copy()
        if self._starts.size:
            kept = np.add.reduceat((~self.groups.removed(keep)[self._roots]).astype(np.int64), self._starts)
            sizes[: self._starts.size] += kept
        return sizes


def extents(groups: Groups, values: Iterable[Value]) -> Extents:
    """Gather the dims of values: those that no unit touches are constants, the others follow what is kept."""
    can = np.zeros(groups._axes.n, bool)
    for units in groups._roots.values():
        for unit in units:
            can[unit] = True
    live: dict[bytes, tuple[int, Ints, int]] = {}
    fixed: dict[int, int] = {}
    found: dict[int, list[tuple[bytes | None, int]]] = {}
    for value in values:
        dims: list[tuple[bytes | None, int]] = []
        for axis, size in zip(groups._axes[value], value.shape, strict=True):
            roots = None if axis is None else groups._solution.root[axis.ravel()]
            if roots is None or not (hit := can[roots]).any():
                fixed.setdefault(size, len(fixed))
                dims.append((None, size))
            else:
                key = roots.tobytes()
                live.setdefault(key, (len(live), roots[hit], int((~hit).sum())))
                dims.append((key, size))
        found[value.index] = dims
    slots = {
        index: tuple(len(live) + fixed[size] if key is None else live[key][0] for key, size in dims)
        for index, dims in found.items()
    }
    vectors = [v for _, v, _ in live.values()]
    constants = np.array([*(c for *_, c in live.values()), *fixed], np.int64)
    starts = np.cumsum([0, *map(len, vectors)])[:-1].astype(np.int64)
    joined = np.concatenate(vectors) if vectors else np.zeros(0, np.int64)
    return Extents(groups, slots, constants, joined, starts)
