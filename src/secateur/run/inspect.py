"""What can be cut in a model, what cannot and why, and what each layer costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
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
from secateur.graph.coverage import Coverage
from secateur.graph.depth import examine
from secateur.types import Example


def inspect(model: nn.Module, groups: Groups, example: Example, layers: bool = False) -> dict[str, Any]:
    """The facts of `secateur inspect`, as plain data.

    ``coverage`` says how many parameters some unit takes with it, by kind of unit (an entry between two widths counts
    under both), and what keeps each of the others whole. ``params`` and ``macs`` of a group are what one of its units
    costs: what goes when all but one are cut, shared evenly. A layer's MACs are counted by torch while the model runs
    on the example once. With ``layers``, ``layers_removable`` says which layers can go whole, what goes with each, and
    why every other child of a list of layers cannot: each is tried, in a few passes a layer.

    Raises:
        DataError: the model does not run on the example.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> found = inspect(net, sc.couple(sc.trace(net, x)), x)
        >>> found["params"], found["macs"], found["groups"][0]["params_per_unit"]
        (58, 48, 7.0)
        >>> found["coverage"]["by_kind"], found["coverage"]["whole"][0]["reason"]
        ({'neuron': 56}, 'is an output of the model')
    """
    full = groups.all_kept()
    params, macs = groups.params(full), groups.macs(full)
    found = {
        "model": type(model).__name__,
        "params": params,
        "macs": macs,
        "nbytes": groups.nbytes(full),
        "groups": [_group(groups, g.name, params, macs) for g in groups],
        "coverage": _coverage(groups.coverage()),
        "frozen": [dataclasses.asdict(f) for f in groups.frozen],
        "unknown": list(groups.unknown),
        "layers": _layers(model, example),
    }
    return {**found, "layers_removable": _removable(model, example)} if layers else found


def _removable(model: nn.Module, example: Example) -> dict[str, Any]:
    """Layers that can be dropped, in the order of the model, and why each other child of a container cannot."""
    can, cannot = examine(model, example)
    return {
        "can": [dataclasses.asdict(layer) for layer in can],
        "cannot": [{"path": path, "reason": reason} for path, reason in cannot.items()],
    }


def _coverage(found: Coverage) -> dict[str, Any]:
    return {
        "params": found.params,
        "prunable": found.prunable,
        "share": found.share,
        "by_kind": dict(found.by_kind),
        "whole": [dataclasses.asdict(w) for w in found.whole],
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
    """The same for a terminal: how much can be cut, groups, what is frozen, layers."""
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
    coverage = _coverage_table(found["coverage"])
    made = [(coverage, (0, 1)), (groups, (2, 3, 4)), (frozen, (1, 2)), (layers, (2, 3))]
    if "layers_removable" in found:
        made.append((_removable_table(found["layers_removable"], found["params"]), (1, 2)))
    for table, right in made:
        for i in right:
            table.columns[i].justify = "right"
    return [table for table, _ in made]


def _removable_table(found: Mapping[str, Any], params: int) -> Table:
    """Layers that can go whole, then those that cannot, by reason."""
    can, cannot = found["can"], found["cannot"]
    title = f"{len(can)} of {len(can) + len(cannot)} layers can be dropped, each by itself"
    table = Table("layer", "parameters", "of all", "can it go", title=title)
    for layer in can:
        kind = "yes: adds to what it gets" if layer["residual"] else "yes"
        share = f"{layer['params'] / params:.1%}" if params else ""
        table.add_row(*map(Text, (layer["path"], f"{layer['params']:,}", share, kind)))
    table.add_section()
    reasons: dict[str, list[str]] = {}
    for layer in cannot:
        reasons.setdefault(layer["reason"], []).append(layer["path"])
    for reason, paths in reasons.items():
        table.add_row(*map(Text, (", ".join(paths), "", "", f"no: {reason}")))
    return table


def _coverage_table(found: Mapping[str, Any]) -> Table:
    """What some unit takes, by kind; what none does, by reason, the largest first."""
    params = found["params"]
    title = f"{found['prunable']:,} of {params:,} parameters ({found['share']:.1%}) can be cut"
    caption = "a parameter between two widths counts under both" if len(found["by_kind"]) > 1 else None
    table = Table("parameters", "of all", "go with, or stay because it", "where", title=title, caption=caption)

    def row(entries: int, why: str, line: str) -> None:
        share = f"{entries / params:.1%}" if params else ""
        table.add_row(*map(Text, (f"{entries:,}", share, why, line)))

    for kind, entries in sorted(found["by_kind"].items(), key=lambda item: -item[1]):
        row(entries, f"{kind} units", "")
    table.add_section()
    reasons: Counter[tuple[str, str]] = Counter()
    for whole in found["whole"]:
        reasons[whole["reason"], whole["line"]] += whole["entries"]
    for (reason, line), entries in reasons.most_common():
        row(entries, reason, line)
    return table
