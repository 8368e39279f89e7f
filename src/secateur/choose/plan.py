"""Plans: which units stay, worked out to the last tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.choose.together import together
from secateur.errors import PlanError
from secateur.graph.couple import Groups
from secateur.types import Keep, Plan


def make_plan(groups: Groups, keep: Keep, made: Mapping[str, Any] | None = None) -> Plan:
    """Work out what a choice of units means for every tensor and every constant in the code.

    Raises:
        PlanError: a group would lose all its units, or a mask does not fit its group.
        CoupleError: a size in the code cannot follow this cut.
    """
    full = groups.all_kept()
    for name, mask in keep.items():
        if name not in full or mask.shape != full[name].shape:
            expected = full[name].shape if name in full else sorted(full)
            raise PlanError(f"mask for group {name!r} has shape {mask.shape}; expected {expected}")
        if not mask.any():
            raise PlanError(f"group {name!r} would lose all of its {mask.size} units; keep at least one")
        if mask.sum() < groups[name].least:
            least = groups[name].least
            raise PlanError(f"group {name!r} would keep {mask.sum()} units; {least} are chosen at a time: keep {least}")
        if mask.sum() % groups[name].multiple:
            multiple = groups[name].multiple
            raise PlanError(f"group {name!r} would keep {mask.sum()} units; its kernels need a multiple of {multiple}")
    keep = {name: np.asarray(keep.get(name, mask), bool) for name, mask in full.items()}
    attributes, sizes = groups.repairs(keep)
    return Plan(
        keep=keep,
        axes=groups.axes(keep),
        attributes={
            (a.module, a.path): (groups.graph.attributes[a], new)
            for a, new in sorted(attributes.items(), key=lambda item: (item[0].module, item[0].path))
        },
        renumber=groups.renumbered(keep),
        kinds={g.name: g.kind for g in groups},
        made=dict(made or {}),
        sizes=dict(sorted(sizes.items())),
    )


def random_plan(groups: Groups, sparsity: float, seed: int) -> Plan:
    """Remove ``round(sparsity * units)`` random units of every group, at least one staying.

    Fewer go where kernels need multiples or routers choose several experts, and none of a group that cannot go
    together with the ones before it.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.25, seed=0).removed
        2
    """
    if not 0 <= sparsity < 1:
        raise PlanError(f"sparsity is the fraction removed, in [0, 1); got {sparsity}")
    rng = np.random.default_rng(seed)
    keep = {}
    for g in groups:
        mask = np.ones(g.units, bool)
        kept = max(g.least, g.units - round(sparsity * g.units))
        kept = min(g.units, -(-kept // g.multiple) * g.multiple)
        mask[rng.permutation(g.units)[: g.units - kept]] = False
        keep[g.name] = mask
    return make_plan(groups, together(groups, keep), {"criterion": "random_plan", "sparsity": sparsity, "seed": seed})
