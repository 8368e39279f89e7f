"""Costs, budgets on them, and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import nn

from secateur.errors import BudgetError
from secateur.types.runtimes import Artefact, Target
from secateur.types.units import Example, Keep

if TYPE_CHECKING:
    from secateur.graph.couple import Groups
    from secateur.targets.meters import Meter


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
