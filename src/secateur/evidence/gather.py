"""Everything a report says, gathered from one run."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from secateur.calling import run
from secateur.choose.budgets import parts_of
from secateur.digest import model_hash
from secateur.evidence.quality import Figure
from secateur.evidence.running_cost import Running, running_rows
from secateur.evidence.verify import verify
from secateur.export.prepare import array, output_tensors, snapshot
from secateur.graph.couple import Groups
from secateur.graph.rules import Rule
from secateur.targets.measure import compare, measure
from secateur.targets.memory import machine
from secateur.types import Artefact, Budget, Budgets, Cost, Example, Measurement, Plan, Report, Row, Target

TOLERANCE = 0.03
"""A measured figure holds up to this much over its limit: two runs of one model differ by as much."""


class StageLike(Protocol):
    """The model at one point of the line."""

    @property
    def name(self) -> str:
        """What was done."""
        ...

    @property
    def quality(self) -> Mapping[str, Figure]:
        """Figures by name."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...

    @property
    def history(self) -> Any:
        """What a recovery says of itself, or None."""
        ...


def environment() -> dict[str, Any]:
    """Versions and machine."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    for name in ("secateur", "onnxruntime", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": versions,
        "machine": {"processor": machine(), "system": platform.platform(), "cores": cores},
    }


def report_of(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    groups: Groups,
    example: Example,
    budget: Budgets,
    target: Target | None,
    stages: Sequence[StageLike],
    rules: Mapping[str, Rule] | None = None,
    running: Running | None = None,
) -> Report:
    """Verify, measure, and put everything into one report."""
    checked = verify(model, plan, small, example, rules=rules)
    budgets, full = parts_of(budget), groups.all_kept()
    rows = [
        _size("parameters", "", groups.params(full), groups.params(plan.keep), budgets, "params"),
        _size("MACs", "MAC", groups.macs(full), groups.macs(plan.keep), budgets, "macs"),
        _size("bytes of weights", "B", groups.nbytes(full), groups.nbytes(plan.keep), budgets, "nbytes"),
    ]
    timed, measurements, parity = _measured(model, small, example, budgets, target, running)
    rows += timed + quality_rows(stages[0].quality, stages[-1].quality) + list(checked.rows)
    ok = all(r.ok is not False for r in rows) and all(p["ok"] for p in parity)
    sections: dict[str, Any] = {
        "stages": [
            {"name": s.name, "quality": {k: f.value for k, f in s.quality.items()}, "seconds": s.seconds}
            | _stage_latency(i, measurements)
            for i, s in enumerate(stages)
        ],
        **_cut(groups, plan),
        "measurements": measurements,
        "parity": parity,
        **prediction_of(*(b.cost for b in budgets)),
        "made": made_section(plan.made.get("seed"), plan.made.get("model_sha256", ""), model_hash(small)),
    }
    sections["made"]["machine"] |= _devices(*(b.cost.target for b in budgets), target)
    histories = [s.history for s in stages if s.history is not None and len(s.history.loss) > 1]
    if histories:
        sections["history"] = {"loss": list(histories[-1].loss), "steps": list(histories[-1].steps)}
    return Report(ok, checked.max_error, tuple(rows), sections)


def _devices(*targets: Target | None) -> dict[str, str]:
    """The other machines that were measured on: processor and versions, by target."""
    there = {t.name: t.device for t in targets if t is not None and t.device is not None}
    return {name: f"{d.machine}; {', '.join(f'{k} {v}' for k, v in d.versions)}" for name, d in there.items()}


def prediction_of(*costs: Cost) -> dict[str, list[dict[str, Any]]]:
    """How predictions compared with measurements, a line a cost; nothing where nothing was both.

    Relative errors |predicted - measured| / measured: how many, their median, the largest.
    """
    found = []
    for cost in costs:
        pairs = np.array(cost.errors() if cost.errors is not None else (), float).reshape(-1, 2)
        if len(pairs) and cost.target is not None:
            errors = np.abs(pairs[:, 0] / pairs[:, 1] - 1)
            one = {"median": float(np.median(errors)), "worst": float(errors.max())}
            found.append({"cost": cost.name, "target": cost.target.name, "count": len(errors), **one})
    return {"prediction": found} if found else {}


def _cut(groups: Groups, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Widths before and after, and what was frozen."""
    kept = {name: int(mask.sum()) for name, mask in plan.keep.items()}
    widths = [
        {"group": g.name, "kind": g.kind, "module": g.module, "before": g.units, "after": kept[g.name]} for g in groups
    ]
    return {"widths": widths, "frozen": [dataclasses.asdict(f) for f in groups.frozen]}


def made_section(seed: int | None, dense: str, pruned: str) -> dict[str, Any]:
    """The command, seed, hashes, date, versions and machine."""
    return {
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]) if sys.argv else "",  # noqa: PTH119
        "seed": seed,
        "hashes": {"dense model": dense, "pruned model": pruned},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **environment(),
    }


def _size(what: str, unit: str, dense: float, pruned: float, budgets: Sequence[Budget], cost: str) -> Row:
    asked = min((b.limit for b in budgets if b.cost.name == cost), default=None)
    return Row(what, unit, float(dense), float(pruned), asked, None if asked is None else pruned <= asked)


def _measured(
    model: nn.Module,
    small: nn.Module,
    example: Example,
    budgets: Sequence[Budget],
    target: Target | None,
    running: Running | None = None,
) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, Any]]]:
    """Dense and pruned exported and timed in one interleaved run, on the budgets' targets and any other."""
    rows: list[Row] = []
    found: list[dict[str, Any]] = []
    parity: list[dict[str, Any]] = []
    wanted = (*(b.cost.target for b in budgets), target)
    targets = list({(t.name, t.threads): t for t in wanted if t is not None}.values())
    twice = len({t.name for t in targets}) < len(targets)
    for t in targets:
        here = [b for b in budgets if b.cost.target is not None and _same(b.cost.target, t)]
        on, build = _where(t, example, here[0] if here else None)
        artefacts = [build(m) for m in (model, small)]
        pair = measure(artefacts, repeats=80, peak=True)
        label = f"{t.name}, {t.threads} threads" if twice else t.name
        rows += _timed_rows(label, pair[0], pair[1], _of("latency", here))
        rows += _running_rows(label, artefacts, pair, _of("energy", here), running)
        for name, timing, net, a in zip(("dense", "pruned"), pair, (model, small), artefacts, strict=True):
            found.append(_timing(name, timing))
            error = difference(net, a, on)
            parity.append(
                {
                    "what": f"{name}, {label} against torch",
                    "max_error": error,
                    "limit": t.parity,
                    "ok": error <= t.parity,
                }
            )
    return rows, found, parity


def _same(a: Target, b: Target) -> bool:
    return (a.name, a.threads) == (b.name, b.threads)


def _of(cost: str, budgets: Sequence[Budget]) -> Budget | None:
    return next((b for b in budgets if b.cost.name == cost), None)


def _where(target: Target, example: Example, budget: Budget | None) -> tuple[Example, Callable[[nn.Module], Artefact]]:
    """What a model is measured on, and how it gets there: as the budget's own cost has it, where that is its target."""
    cost = None if budget is None else budget.cost
    if cost is not None and cost.build is not None and cost.target == target:
        return (example if cost.example is None else cost.example), cost.build
    return example, lambda model: target.build(model, example, target.threads)


def difference(model: nn.Module, artefact: Artefact, example: Example) -> float:
    """Largest relative difference between an artefact's outputs and torch's on an example."""
    with torch.inference_mode():
        ours = [array(t) for t in output_tensors(run(snapshot(model), example))]  # as targets run it
    theirs = [np.asarray(a) for a in artefact.call(example)]
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        if a.dtype.kind == "f":
            worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-30))
    return worst


def _timed_rows(label: str, dense: Measurement, pruned: Measurement, budget: Budget | None) -> list[Row]:
    note = compare(dense, pruned).words()
    asked = ok = None
    if budget is not None:
        asked = budget.limit if budget.fraction is None else budget.fraction * dense.median
        ok = pruned.median <= (1 + TOLERANCE) * asked
    rows = [
        Row(f"latency median, {label}", "s", dense.median, pruned.median, asked, ok, note=note),
        Row(f"latency p95, {label}", "s", dense.p95, pruned.p95),
    ]
    if dense.nbytes and pruned.nbytes:
        rows.append(Row(f"bytes on disk, {label}", "B", float(dense.nbytes), float(pruned.nbytes)))
    if dense.peak_bytes and pruned.peak_bytes:
        rows.append(Row(f"peak memory, {label}", "B", float(dense.peak_bytes), float(pruned.peak_bytes)))
    return rows


def _running_rows(
    label: str,
    artefacts: Sequence[Artefact],
    pair: Sequence[Measurement],
    budget: Budget | None,
    running: Running | None,
) -> list[Row]:
    """What running costs, where that was asked for or is the budget."""
    if budget is None:
        return [] if running is None else running_rows(running, artefacts, pair, label)
    asked = dataclasses.replace(running or Running(), meter=budget.cost.meter)
    return running_rows(asked, artefacts, pair, label, budget.limit, budget.fraction, TOLERANCE)


def _timing(name: str, m: Measurement) -> dict[str, Any]:
    return {
        "target": m.target,
        "model": name,
        "median_s": m.median,
        "p95_s": m.p95,
        "spread": m.spread,
        "threads": m.threads,
        "batch": m.batch,
        "nbytes": m.nbytes,
        "repeats": int(m.seconds.size),
    }


def _stage_latency(stage: int, measurements: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A stage has the latency of its widths: dense before the cut, pruned after."""
    name = "dense" if stage == 0 else "pruned"
    for m in measurements:
        if m["model"] == name:
            return {"latency_s": m["median_s"]}
    return {}


def quality_rows(first: Mapping[str, Figure], last: Mapping[str, Figure]) -> list[Row]:
    """A row a figure: of the dense model and of the pruned one."""
    rows = []
    for name, figure in last.items():
        bounded = bool(np.isfinite(figure.low) and np.isfinite(figure.high))
        rows.append(
            Row(
                name,
                "",
                first[name].value if name in first else None,
                figure.value,
                low=figure.low if bounded else None,
                high=figure.high if bounded else None,
            )
        )
    return rows
