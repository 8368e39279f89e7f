"""Numbers of units that may be kept of a group."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from secateur.graph.axes import Axes
from secateur.graph.closure import Solution
from secateur.types import Group, Ints


def limited(axes: Axes, solution: Solution, group: Group, roots: tuple[Ints, ...]) -> Group:
    """The group with the multiple of its units that kernels need, and the fewest that must stay."""
    unit = roots[0][:1] if len(roots) == 1 and roots[0].ndim == 1 else roots[0]
    multiple, least = 1, 1
    for ids, k in axes.rounded:
        each = int(np.isin(solution.root[ids], unit).sum())
        if each:
            multiple = math.lcm(multiple, k // math.gcd(k, each))
    for ids, k in axes.least:
        each = int(np.isin(solution.root[ids], unit).sum())
        if each:
            least = max(least, -(-(k - int(solution.pinned[solution.root[ids]].sum())) // each))
    multiple = multiple if group.units % multiple == 0 else group.units
    return dataclasses.replace(group, multiple=multiple, least=min(least, group.units))
