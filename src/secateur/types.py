"""The values that pass between the rooms: frozen, checked on construction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from secateur.errors import BudgetError, PlanError

if TYPE_CHECKING:
    from secateur.graph.couple import Groups
    from secateur.targets.layers import Layer
    from secateur.targets.meters import Meter

Example: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]
"""A tensor, a tuple of positional arguments, or a dict of keyword arguments of ``model.forward``."""

Batches: TypeAlias = Iterable[Any]
"""Examples, or pairs ``(example, targets)``."""

Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Keep: TypeAlias = Mapping[str, Bools]
"""Group name -> bool mask over its units; True keeps."""

Setting: TypeAlias = int | tuple[Any, ...]
"""What an attribute is set to; a tuple stands for a list or tuple of it."""

Role = Literal["out", "in"]


@dataclass(frozen=True, eq=False)
class Slice:
    """The positions that each unit of a group takes along one axis of one parameter or buffer.

    Attributes:
        name: parameter or buffer, as in ``state_dict``.
        dim: the axis.
        index: int64, shape (units, k): unit ``u`` owns positions ``index[u]``.
        role: ``"in"`` where a contraction sums over this axis of a weight (its inputs), else ``"out"``.
    """

    name: str
    dim: int
    index: Ints
    role: Role = "out"


@dataclass(frozen=True, eq=False)
class Group:
    """A family of interchangeable units: one width of the model.

    Attributes:
        name: the first producing weight and its axis, such as ``"encoder.0.fc1.weight"``.
        kind: ``channel``, ``neuron``, ``head``, ``head_dim``, ``expert``, ``hidden`` (of a recurrent layer),
            ``embedding`` or ``width``.
        units: how many there are.
        slices: what every unit takes from each tensor.
        module: path of the module in which the unit is produced.
        multiple: kept counts must be multiples of this, or a kernel would refuse them.
        least: so many must be kept: experts that a router chooses at a time.
    """

    name: str
    kind: str
    units: int
    slices: tuple[Slice, ...]
    module: str = ""
    multiple: int = 1
    least: int = 1

    def __post_init__(self) -> None:
        for s in self.slices:
            if s.index.shape[0] != self.units:
                raise PlanError(f"group {self.name}: slice {s.name} has {s.index.shape[0]} rows, not {self.units}")


@dataclass(frozen=True)
class Frozen:
    """An axis of a parameter that cannot be cut, wholly or in part, and why.

    Attributes:
        name: parameter. dim: its axis. size: how many of its positions are frozen.
        reason: what froze it. module: path of the module where that happened. line: source line of the call.
    """

    name: str
    dim: int
    size: int
    reason: str
    module: str
    line: str


@dataclass(frozen=True)
class Weighing:
    """How important each single weight is: larger is kept.

    Attributes:
        score: ``(model, weights, stats) -> {name: tensor of the weight's shape}``, of all weights at once.
        stat: what calibration data it needs: ``(model, batches, weights) -> stats``, or None.
    """

    score: Callable[[nn.Module, Mapping[str, Tensor], Any], dict[str, Tensor]]
    stat: Callable[[nn.Module, Any, Mapping[str, Tensor]], Any] | None = None


@dataclass(frozen=True)
class Criterion:
    """How important each unit is, or each single weight: larger is kept.

    Attributes:
        name: as it will stand in the plan.
        score: ``(model, group, stats) -> float64 array of shape (units,)``, or None if it scores weights alone.
        stat: what calibration data it needs: ``(model, batches) -> stats``, or None.
        weights: how it scores single weights, or None if it scores units alone.
    """

    name: str
    score: Callable[[nn.Module, Group, Any], Floats] | None = None
    stat: Callable[..., Any] | None = None
    weights: Weighing | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """One number a unit, by group; larger is kept.

    Attributes:
        groups: what was scored. values: group name -> float64 (units,). criterion: its name.
        normalization: how groups were made comparable. stats: the calibration data behind them, if any.
    """

    groups: Groups
    values: Mapping[str, Floats]
    criterion: str
    normalization: str = "none"
    stats: Any = None

    def __post_init__(self) -> None:
        for name, v in self.values.items():
            if not np.isfinite(v).all():
                raise PlanError(
                    f"criterion {self.criterion} gave {int((~np.isfinite(v)).sum())} scores that are not finite in "
                    f"group {name}: check the model's weights and the calibration data for NaN and inf"
                )


@dataclass(frozen=True, eq=False)
class Measurement:
    """Timings of one model on one target.

    Attributes:
        target: name of the runtime. seconds: float64 (repeats,), in the order they were taken.
        threads: intra-op threads. batch: leading size of the example. nbytes: size of the artefact on disk.
        peak_bytes: peak memory of a run if the target tells it, else None.
        note: what disturbed the timings, or "". load_seconds: what loading the artefact took, or None.
    """

    target: str
    seconds: Floats
    threads: int
    batch: int
    nbytes: int | None = None
    peak_bytes: int | None = None
    note: str = ""
    load_seconds: float | None = None

    @property
    def throughput(self) -> float:
        """Items of a batch a second, at the median."""
        return self.batch / self.median

    @property
    def median(self) -> float:
        """Median, seconds."""
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """95th percentile, seconds."""
        return float(np.percentile(self.seconds, 95))

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median: the relative noise of one timing."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float((high - low) / 2 / self.median)


@dataclass(frozen=True)
class Device:
    """Another machine on which a target runs.

    Attributes:
        machine: its processor, and how many cores it gives.
        versions: (package, version) of what runs there.
    """

    machine: str
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Target:
    """A runtime on which a model is measured.

    Attributes:
        name: as it stands in reports and on the command line.
        build: ``(model, example, threads) -> Artefact``: exports the model and returns something that runs.
        extra: the pip extra that brings the runtime, or "".
        threads: intra-op threads.
        export: ``(model, example, folder) -> file``: writes the file that ships into a folder, and all that goes
            with it; None where nothing is written.
        load: ``(file, example, threads) -> Artefact``: runs such a file, on this machine or on another; None likewise.
        device: the machine that it runs on, or None where that is this one.
        layer: ``(layer, threads) -> Artefact`` of one layer, quicker than ``build`` of a model of one; None where
            there is no such way.
    """

    name: str
    build: Callable[[nn.Module, Example, int], Artefact]
    extra: str = ""
    threads: int = 1
    export: Callable[[nn.Module, Example, Path], Path] | None = None
    load: Callable[[Path, Example, int], Artefact] | None = None
    device: Device | None = None
    layer: Callable[[Layer, int], Artefact] | None = None

    @property
    def runtime(self) -> str:
        """The name without the machine: ``onnxruntime`` of ``onnxruntime@10.0.0.7:8765``."""
        return self.name.partition("@")[0]


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """How an artefact is timed where it runs, if that is not in this process.

    Attributes:
        place: equal for artefacts that can take turns in one run.
        job: what the place knows it by.
        timings: ``(jobs, repeats, warmup, min_seconds) -> seconds of each, round by round``, by the clock there.
    """

    place: Any
    job: Any
    timings: Callable[[list[Any], int, int, float], list[list[float]]]


@dataclass(frozen=True, eq=False)
class Artefact:
    """A model made ready on a target.

    Attributes:
        run: runs it once on the example it was built with and returns its outputs as numpy arrays.
        nbytes: bytes on disk, or None. path: the exported file, or None.
        call: runs it on another example of the same structure.
        target, threads, batch: where it runs, on how many intra-op threads, and the leading size of its example.
        peak: peak memory of one run in bytes, or None where the runtime cannot tell.
        again: loads the exported file once more, or None where there is no file: a fresh place in memory for a
            timing that is to be independent, without another export.
        load_seconds: what loading the file (compiling it, where that is part of it) took, or None.
        elsewhere: how it is timed on another machine, or None where it runs on this one.
    """

    run: Callable[[], Any]
    call: Callable[[Example], list[npt.NDArray[Any]]]
    nbytes: int | None = None
    path: str | None = None
    target: str = ""
    threads: int = 1
    batch: int = 1
    peak: Callable[[], int | None] | None = None
    again: Callable[[], Artefact] | None = None
    load_seconds: float | None = None
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, eq=False)
class Cost:
    """What a budget limits.

    Attributes:
        name: ``params``, ``macs``, ``nbytes``, ``latency``, ``energy``.
        unit: ``""``, ``"MAC"``, ``"B"``, ``"s"``, ``"J"``.
        dense: the value of the uncut model.
        of: ``(groups, keep) -> value``: exact for counts, predicted for latency.
        build: for measured costs, ``model -> Artefact`` on the target, exported once for the same content; else None.
        measured: for measured costs, ``(cut model, again) -> value``, remembered, a second timing (``again``) apart
            from the first; None for exact ones.
        target: where a measured cost is measured. example: what on.
        meter: where the joules of an energy come from, else None; an estimate cannot be a budget.
        errors: ``() -> [(predicted, measured)]`` of every model that was measured through it; None for exact costs.
    """

    name: str
    unit: str
    dense: float
    of: Callable[[Groups, Keep], float]
    build: Callable[[nn.Module], Artefact] | None = None
    measured: Callable[[nn.Module, bool], float] | None = None
    target: Target | None = None
    example: Example | None = None
    meter: Meter | None = None
    errors: Callable[[], Sequence[tuple[float, float]]] | None = None


@dataclass(frozen=True, eq=False)
class Budget:
    """An upper limit on a cost.

    ``parts``: those it stands for, where it is several at once (its cost: the largest of cost / limit; its limit 1).

    Example:
        >>> import secateur as sc, torch
        >>> net = torch.nn.Linear(4, 2)
        >>> sc.Budget(sc.params(net), 6).limit
        6.0
        >>> sc.Budget.of_dense(sc.params(net), 0.5).limit
        5.0
    """

    cost: Cost
    limit: float
    fraction: float | None = None
    parts: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", float(self.limit))
        if self.cost.meter is not None and not self.cost.meter.measured:
            raise BudgetError(self.cost.meter.refusal)
        if not np.isfinite(self.limit) or self.limit <= 0:
            raise BudgetError(f"budget on {self.cost.name}: limit must be positive and finite, got {self.limit}")

    @classmethod
    def of_dense(cls, cost: Cost, fraction: float) -> Budget:
        """A fraction (0, 1] of the dense model's cost."""
        if not 0 < fraction <= 1:
            raise BudgetError(f"budget on {cost.name}: fraction must be in (0, 1], got {fraction}; 0.5 means half")
        return cls(cost, cost.dense * fraction, fraction)


Budgets: TypeAlias = Budget | Sequence[Budget]
"""One budget, or several that all have to hold."""


@dataclass(frozen=True)
class Limits:
    """What every allocation must respect.

    Attributes:
        multiple: kept counts are multiples of this (8 or 16 suits most kernels); a group smaller than it stays whole.
        minimum: fewest units kept in any group.
        max_sparsity: largest fraction removed from any one group.
        per_group: group name (or a glob) -> largest fraction removed there; 0 freezes it.
        by_kind: kind -> multiple, over ``multiple``: ``{"head": 1, "neuron": 32}``.
    """

    multiple: int = 1
    minimum: int = 1
    max_sparsity: float = 1.0
    per_group: Mapping[str, float] = field(default_factory=dict)
    by_kind: Mapping[str, int] = field(default_factory=dict)


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
