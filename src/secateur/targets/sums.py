"""Sums over a cost table, by kind of layer, of what a keep leaves of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.graph.couple import Groups, macs_of
from secateur.graph.extents import Extents
from secateur.graph.recorded import Graph
from secateur.targets.layers import Layers, layers_in, layers_of
from secateur.targets.table import Table
from secateur.types import Floats, Ints, Keep

OTHER = 0.005
"""Part of the multiply-accumulates that may be in no known layer before they are counted by themselves."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Seconds by kind: the kinds of layers that a model has, then elements written, then what is in neither.

    Attributes:
        layers: of the model. sizes: what tells their sizes. table: of the target. kinds: in the order of the sums.
        dense: widths of each layer.
        element, mac: seconds an element written, and a multiply-accumulate in no known layer.
    """

    layers: Layers
    sizes: Extents
    table: Table
    kinds: tuple[str, ...]
    dense: tuple[tuple[int, int], ...]
    element: float
    mac: float

    @classmethod
    def of(cls, groups: Groups, table: Table) -> Sums:
        """Find the layers of a model."""
        layers, under = layers_of(groups)
        sizes = under(groups.all_kept())
        dense = tuple(s.at(sizes.tolist()) for s in layers.sites)
        kinds = tuple(sorted({s.kind for s in layers.sites}))
        each = max(layers.elements(sizes) // max(len(layers.written), 1), 1)
        element = table.at("elements", (), (each, 1), (each, 1)) / each
        whole, known = groups.macs(groups.all_kept()), layers.macs(sizes.tolist())
        seconds = sum(table.at(s.kind, s.settings, d, d) for s, d in zip(layers.sites, dense, strict=True))
        rate = seconds / known if known else element
        mac = rate if whole - known > OTHER * whole else 0.0
        return cls(layers, under, table, (*kinds, "elements", *(("other",) if mac else ())), dense, element, mac)

    def __call__(self, keep: Keep) -> Floats:
        """Seconds under a keep, float64 (kinds,)."""
        sizes = self.sizes(keep)
        macs = self.sizes.groups.macs(keep) if self.mac else 0
        return self._summed(self.layers, sizes, macs)

    def of_graph(self, graph: Graph) -> Floats | None:
        """Seconds of a model that was cut, float64 (kinds,); None if its layers are others than the dense one's."""
        layers, sizes = layers_in(graph)
        alike = [s.kind for s in layers.sites] == [s.kind for s in self.layers.sites]
        return self._summed(layers, sizes, macs_of(graph) if self.mac else 0) if alike else None

    def _summed(self, layers: Layers, sizes: Ints, macs: int) -> Floats:
        found = dict.fromkeys(self.kinds, 0.0)
        listed, at = sizes.tolist(), self.table.at
        for site, dense in zip(layers.sites, self.dense, strict=True):
            found[site.kind] += at(site.kind, site.settings, site.at(listed), dense)
        found["elements"] = self.element * layers.elements(sizes)
        if self.mac:
            found["other"] = self.mac * max(macs - layers.macs(listed), 0)
        return np.array(list(found.values()))
