"""What is cut, and by which scores: slices, groups, criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from secateur.errors import PlanError

if TYPE_CHECKING:
    from secateur.graph.couple import Groups

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
