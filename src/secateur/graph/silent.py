"""Units that already contribute nothing, because weights of them are zero: what can go and leave the function alone.

Cutting a unit equals zeroing all that it has (masked == shrunk). Where a part of it is zero already, zeroing the rest
changes nothing if no sum runs over the unit's positions while neither factor is zero there: the analysis that coupling
makes (zeros.py), here with only those tensors as zeros that are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from secateur.errors import PlanError
from secateur.graph.axes import Axis
from secateur.graph.couple import Groups
from secateur.graph.statistics import kept_in
from secateur.graph.zeros import Flags, Zeros, is_followed
from secateur.types import Bools, Group, Ints


def silent(groups: Groups, group: Group, tensors: Mapping[str, Tensor]) -> Bools:
    """Which units can go without any change of the function, bool (units,); in doubt, False.

    A unit whose weights are zero but not its bias, or the shift of its norm, says a constant: it is not silent.

    Args:
        groups: the coupled model. group: one of its groups. tensors: parameters and buffers by name.
    """
    zero = _zero(group, tensors)
    out = np.zeros(group.units, bool)
    kinds, which = np.unique(zero, axis=0, return_inverse=True)
    for k, signature in enumerate(kinds):
        units = np.nonzero(which.reshape(-1) == k)[0]
        if signature.all() or (signature.any() and _unheard(groups, group, signature, units)):
            out[units] = True
    return out & _free_of_statistics(groups, group, out)


def _zero(group: Group, tensors: Mapping[str, Tensor]) -> Bools:
    """Whether all that a unit takes along a slice is zero, bool (units, slices)."""
    columns = []
    for s in group.slices:
        t = tensors[s.name].detach()
        if not (t.is_floating_point() or t.is_complex()):  # positions: they are renumbered
            columns.append(np.ones(group.units, bool))
            continue
        index = torch.from_numpy(s.index.reshape(-1)).to(t.device)
        rows = t.index_select(s.dim, index).movedim(s.dim, 0).reshape(group.units, -1)
        columns.append((rows == 0).all(1).cpu().numpy())
    return np.stack(columns, 1)


def _unheard(groups: Groups, group: Group, signature: Bools, units: Ints) -> bool:
    """Whether units with zeros in just these slices can go, by the graph alone."""
    axes = copy.copy(groups._axes)
    axes.pins = []  # those of the coupling hold anyway
    known: dict[int, Flags] = {}
    for s, is_zero in zip(group.slices, signature, strict=True):
        value = groups.graph.tensors[s.name]
        flags = known.setdefault(value.index, [True] * value.ndim)
        flags[s.dim] = flags[s.dim] and bool(is_zero)
    zeros = Zeros(axes, known)
    for call in groups.graph.calls:
        live: list[Axis] = [a for v in call.inputs for a in axes[v] if a is not None]
        if live and not is_followed(call):
            axes.pin("goes into an op that is not looked into", *live)
        elif live or any(v is not None and v.index in axes.ids for v in call.outs):
            zeros.follow(call)
    mask = np.ones(group.units, bool)
    mask[units] = False
    gone = groups.removed({group.name: mask})
    return not any(gone[groups._solution.root[p.ids]].any() for p in axes.pins)


def _free_of_statistics(groups: Groups, group: Group, out: Bools) -> bool:
    """Whether no mean, norm or choice runs over what would go: zeros count there."""
    mask = ~out
    mask[0] |= not mask.any()
    try:
        return bool(mask.all()) or not kept_in(groups, groups.axes({group.name: mask}))
    except PlanError:
        return False
