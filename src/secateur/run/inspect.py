"""What can be cut in a model, what cannot and why, and what each layer costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.calling import run
from secateur.errors import DataError
from secateur.export.prepare import first_line, snapshot
from secateur.graph.couple import Groups
from secateur.types import Example


def inspect(model: nn.Module, groups: Groups, example: Example) -> dict[str, Any]:
    """The facts of `secateur inspect`, as plain data.

    ``params`` and ``macs`` of a group are what one of its units costs: what goes when all but one are cut,
    shared evenly. A layer's MACs are counted by torch while the model runs on the example once.

    Raises:
        DataError: the model does not run on the example.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> found = inspect(net, sc.couple(sc.trace(net, x)), x)
        >>> found["params"], found["macs"], found["groups"][0]["params_per_unit"]
        (58, 48, 7.0)
    """
    full = groups.all_kept()
    params, macs = groups.params(full), groups.macs(full)
    return {
        "model": type(model).__name__,
        "params": params,
        "macs": macs,
        "nbytes": groups.nbytes(full),
        "groups": [_group(groups, g.name, params, macs) for g in groups],
        "frozen": [dataclasses.asdict(f) for f in groups.frozen],
        "unknown": list(groups.unknown),
        "layers": _layers(model, example),
    }


def _group(groups: Groups, name: str, params: int, macs: int) -> dict[str, Any]:
    g = groups[name]
    one = np.zeros(g.units, bool)
    one[0] = True
    keep = {**groups.all_kept(), name: one}
    return {
        "name": name,
        "kind": g.kind,
        "units": g.units,
        "module": g.module,
        "params_per_unit": (params - groups.params(keep)) / (g.units - 1),
        "macs_per_unit": (macs - groups.macs(keep)) / (g.units - 1),
        "tensors": [{"name": s.name, "dim": s.dim, "role": s.role} for s in g.slices],
    }


def _layers(model: nn.Module, example: Example) -> list[dict[str, Any]]:
    """Modules with parameters or work of their own, in the order of the model."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            run(snapshot(model), example)
    except Exception as error:
        raise DataError(f"{type(model).__name__} does not run on the example: {first_line(error)}") from error
    flops = {k: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    rows = []
    for path, module in model.named_modules():
        inside = [f"{prefix}.{path}.{n}" if path else f"{prefix}.{n}" for n, _ in module.named_children()]
        own = flops.get(f"{prefix}.{path}" if path else prefix, 0) - sum(flops.get(n, 0) for n in inside)
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if params or own > 0:
            rows.append({"name": path, "type": type(module).__name__, "params": params, "macs": max(own, 0) // 2})
    return rows


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The same for a terminal: groups, what is frozen, layers."""
    groups = Table("can be cut", "kind", "units", "parameters a unit", "MACs a unit", title="Groups")
    for g in found["groups"]:
        numbers = (f"{g['units']:,}", f"{g['params_per_unit']:,.0f}", f"{g['macs_per_unit']:,.0f}")
        groups.add_row(*map(Text, (g["name"], g["kind"], *numbers)))
    frozen = Table("cannot be cut", "axis", "positions", "because it", "where", title="Frozen")
    for f in found["frozen"]:
        frozen.add_row(*map(Text, (f["name"], str(f["dim"]), f"{f['size']:,}", f["reason"], f["line"])))
    layers = Table("layer", "type", "parameters", "MACs", title="Cost by layer")
    for row in found["layers"]:
        layers.add_row(*map(Text, (row["name"] or "(model)", row["type"], f"{row['params']:,}", f"{row['macs']:,}")))
    for table, right in ((groups, (2, 3, 4)), (frozen, (1, 2)), (layers, (2, 3))):
        for i in right:
            table.columns[i].justify = "right"
    return [groups, frozen, layers]
