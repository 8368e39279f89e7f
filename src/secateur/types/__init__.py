"""The values that pass between the rooms: frozen, checked on construction."""

from secateur.types.budgets import Budget, Budgets, Cost, Limits
from secateur.types.plans import Plan, Report, Row
from secateur.types.runtimes import Artefact, Device, Elsewhere, Measurement, Target
from secateur.types.units import (
    Batches,
    Bools,
    Criterion,
    Example,
    Floats,
    Frozen,
    Group,
    Ints,
    Keep,
    Role,
    Scores,
    Setting,
    Slice,
    Weighing,
)

__all__ = [
    "Artefact",
    "Batches",
    "Bools",
    "Budget",
    "Budgets",
    "Cost",
    "Criterion",
    "Device",
    "Elsewhere",
    "Example",
    "Floats",
    "Frozen",
    "Group",
    "Ints",
    "Keep",
    "Limits",
    "Measurement",
    "Plan",
    "Report",
    "Role",
    "Row",
    "Scores",
    "Setting",
    "Slice",
    "Target",
    "Weighing",
]
