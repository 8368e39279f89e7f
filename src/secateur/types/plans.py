"""What was decided, and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.types.units import Bools, Setting


@dataclass(frozen=True, eq=False)
class Plan:
    """What is kept: plain data, saved as JSON and safetensors.

    Attributes:
        keep: group name -> bool (units,), True keeps.
        axes: (tensor name, dim) -> bool (size,), True keeps; only axes that lose something.
        attributes: ``(module path, attribute) -> (old, new)``: constants in the code that follow a size or count or
            number layers, and lists with an entry a layer.
        renumber: index buffer -> the (tensor, dim) axis whose positions it points at.
        sizes: sizes in the code that no attribute holds, ``(module path, torch function, which call of it in the
            module's forward, which int in that call) -> (old, new)``.
        kinds: group name -> kind.
        made: what made it: criterion, allocation, budget, seed, model hash, versions. No times, no measurements.
        layers: paths of layers that go whole, in the order of the model. All names in a plan are those of the whole
            model; where a layer goes, those behind it are renumbered in the cut one.
    """

    keep: Mapping[str, Bools]
    axes: Mapping[tuple[str, int], Bools]
    attributes: Mapping[tuple[str, str], tuple[Setting, Setting]]
    renumber: Mapping[str, Bools]
    kinds: Mapping[str, str]
    made: Mapping[str, Any]
    sizes: Mapping[tuple[str, str, int, int], tuple[int, int]] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @property
    def removed(self) -> int:
        """How many units go."""
        return int(sum((~k).sum() for k in self.keep.values()))


@dataclass(frozen=True)
class Row:
    """One line of a report: dense beside pruned, asked beside achieved.

    Attributes:
        what: the figure. unit: its unit. dense, pruned: values, None where it does not apply.
        asked: the limit that was set on ``pruned``, or None. ok: whether it holds, or None where nothing was asked.
        low, high: 95 % confidence interval of ``pruned``, or None. note: one clause, such as "within noise".
    """

    what: str
    unit: str = ""
    dense: float | None = None
    pruned: float | None = None
    asked: float | None = None
    ok: bool | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Pruned over dense."""
        return self.pruned / self.dense if self.dense and self.pruned is not None else None


@dataclass(frozen=True, eq=False)
class Report:
    """The evidence.

    Attributes:
        ok: nothing that was checked failed. max_error: largest relative error of masked against shrunk.
        rows: the table. sections: the rest, JSON-able, by name: ``stages``, ``widths``, ``frozen``, ``baselines``,
            ``measurements``, ``made``.
    """

    ok: bool
    max_error: float
    rows: tuple[Row, ...]
    sections: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)
