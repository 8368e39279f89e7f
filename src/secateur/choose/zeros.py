"""From zeros to smaller: whole units that masks have emptied go, and the function stays what it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import named_tensors
from secateur.choose.together import together
from secateur.graph.couple import Groups
from secateur.graph.silent import silent
from secateur.types import Bools, Group


def zero_units(model: nn.Module, groups: Groups) -> dict[str, Bools]:
    """Masks of the units to keep, where all that go contribute nothing: the cut model computes the same.

    A unit goes where what makes it (weights and bias, and the scale and shift of a norm behind them) is zero and stays
    zero on its way, or where nothing reads it (its consumers' columns are zero). What becomes of other units by that
    counts too: a row that reads only units that go is empty. A zero row with a bias, or before a sigmoid, is a
    constant and stays. At least one unit of every group stays.

    Args:
        model: in which masks have left zeros. groups: of it, from `sc.couple`.

    Returns:
        group name -> bool (units,), for `sc.make_plan`.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = net[0].weight.data[3:].zero_()
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 4)))
        >>> sc.apply(sc.make_plan(groups, zero_units(net, groups)), net)[0].out_features
        3
    """
    parameters, buffers = named_tensors(model)
    tensors = {name: t.detach() for name, t in (parameters | buffers).items()}
    keep = groups.all_kept()
    for _ in range(len(groups) + 1):
        found = {g.name: _kept(g, silent(groups, g, tensors)) for g in groups}
        again = {**groups.all_kept(), **together(groups, found)}
        if all((again[name] == mask).all() for name, mask in keep.items()):
            break
        keep = again
        tensors = _emptied(groups, keep, tensors)
    return keep


def _kept(group: Group, gone: Bools) -> Bools:
    """All but as many of these as may go, the last ones first."""
    order = np.nonzero(gone)[0][::-1]
    count = len(order)
    while group.units - count < max(group.least, 1) or (group.units - count) % group.multiple:
        count -= 1
    mask = np.ones(group.units, bool)
    mask[order[: max(count, 0)]] = False
    return mask


def _emptied(groups: Groups, keep: dict[str, Bools], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with zeros in all that goes."""
    out = dict(tensors)
    for (name, dim), mask in groups.axes(keep).items():
        if out[name].is_floating_point():
            index = torch.from_numpy(np.nonzero(~mask)[0]).to(out[name].device)
            out[name] = out[name].index_fill(dim, index, 0)
    return out
