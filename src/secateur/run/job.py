"""A run from checked arguments: load, prune, save, report; and the check of a folder that one wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.choose.rank import Allocation
from secateur.errors import ArgumentError
from secateur.evidence.verify import verify
from secateur.export.plans import load_plan
from secateur.run import assemble
from secateur.run.data import load_data, load_example
from secateur.run.folder import RUN, Folder, read_arguments
from secateur.run.models import load_model
from secateur.run.pipeline import prune
from secateur.run.runfile import Cutting, RunFile
from secateur.run.saving import save
from secateur.run.shipping import agreement, ship, shipped
from secateur.run.subjects import known_example
from secateur.types import Batches, Criterion, Example, Plan, Report, Row, Scores, Target


@dataclass(frozen=True, eq=False)
class Ready:
    """What the text of a run file's arguments stands for.

    Attributes:
        model, example: the dense model and what it is recorded and timed on. source: what builds its class again.
        data: batches, or None. calibration: those of them that the scores are calibrated on. on: the target, or None.
        criterion, allocation, normalize: as named.
    """

    model: nn.Module
    example: Example
    source: Any
    data: Batches | None
    calibration: Batches | None
    on: Target | None
    criterion: Criterion
    allocation: Allocation
    normalize: Callable[[Scores], Scores]

    @property
    def factory(self) -> str | None:
        """``module:factory``, where that made the model."""
        return self.source if isinstance(self.source, str) else None


def prepared(arguments: Cutting, tell: Callable[[str], None] = lambda words: None) -> Ready:
    """Names looked up, data and model loaded; everything that only names things before anything slow.

    Raises:
        SecateurError: a text names nothing, or the data or the model is refused.
    """
    criterion = assemble.criterion(arguments.criterion, arguments.seed)
    allocation = assemble.allocation(arguments.allocation)
    normalize = assemble.normalization(arguments.normalization)
    on = None if arguments.target is None else assemble.target(arguments.target, arguments.threads)
    data = None if arguments.data is None else load_data(arguments.data, arguments.batch_size)
    need = {"criterion": criterion.stat is not None, "allocation": allocation in assemble.BY_OUTPUTS}
    need |= {"normalization": normalize in assemble.BY_OUTPUTS}
    for what in (what for what, needed in need.items() if needed and data is None):
        raise ArgumentError(f"{what} {getattr(arguments, what)} needs data: add --data")
    assemble.recoveries(arguments.recover, data, arguments.seed)
    tell("loading the model")
    torch.manual_seed(arguments.seed)
    model, source = load_model(arguments.model)
    if source is None:
        raise ArgumentError(
            f"MODEL {arguments.model} is pruned already: prune the dense model, to a smaller budget, so that one "
            "plan says what was cut"
        )
    example = load_example(arguments.example, data, model)
    (allocation, normalize), rest = assemble.on_outputs((allocation, normalize), model, data, criterion)
    return Ready(model, example, source, data, rest, on, criterion, allocation, normalize)


def execute(
    arguments: RunFile, folder: Folder, command: str, tell: Callable[[str], None] = lambda words: None
) -> Report:
    """Carry out a run in its folder and return the report that was written there.

    Raises:
        SecateurError: a text names nothing, the data or the model is refused, or the budget cannot be met.
    """
    ready = prepared(arguments, tell)
    stages = assemble.recoveries(arguments.recover, ready.data, arguments.seed, folder.work)
    result = prune(
        ready.model,
        ready.example,
        budget=assemble.budget(arguments.budget, ready.model, ready.example, ready.on),
        criterion=ready.criterion,
        allocation=ready.allocation,
        batches=ready.calibration,
        recover=stages or None,
        target=ready.on,
        seed=arguments.seed,
        normalize=ready.normalize,
        limits=assemble.limits(arguments),
        ignore=tuple(arguments.ignore),
        running=assemble.running(arguments, ready.model),
        tell=tell,
    )
    return finish(ready, result.model, result.plan, with_command(result.report, command), folder, tell)


def finish(
    ready: Ready, small: nn.Module, plan: Plan, report: Report, folder: Folder, tell: Callable[[str], None]
) -> Report:
    """Write a result folder, with the file that the target runs if it runs one, and return the report in it."""
    place = folder.work / "exported"
    if ready.on is not None and ready.on.export is not None:
        tell(f"writing the file for {ready.on.name}")
        found = ship(small, ready.example, ready.data, ready.on, place)
        both = [*report.sections.get("parity", []), *found]
        ok = report.ok and all(p["ok"] for p in found)
        report = replace(report, ok=ok, sections={**report.sections, "parity": both})

    def extra(temporary: Path) -> None:
        for file in place.glob("*"):
            file.rename(temporary / file.name)
        folder.sign(temporary)

    save(folder.path, small, plan, report, factory=ready.factory, overwrite=True, extra=extra)
    return report


def recheck(folder: Path, model: str | None = None, example: str | None = None) -> Report:
    """Check a folder anew: it loads, has its plan's shapes, masked equals shrunk, the exported file agrees with torch.

    Args:
        folder: what ``secateur prune`` wrote.
        model: the dense model, if not where the run found it.
        example: text of an example, if not the run's.

    Raises:
        FormatError: a file is missing or damaged.
        SecateurError: the dense model or the example cannot be loaded.
    """
    plan, small = load_plan(folder), load_model(str(folder))[0]
    arguments = read_arguments(folder) if (folder / RUN).is_file() else {}
    torch.manual_seed(arguments.get("seed", 0))
    named = model or arguments.get("model")
    if named is None:
        raise ArgumentError(f"{folder} does not say which dense model it was made from: give --model")
    dense = load_model(named, None if model else folder)[0]
    given = load_example(example, None) if example else known_example(folder, dense)
    if given is None:
        raise ArgumentError(f"{folder} does not say which example it was made with: give --example")
    report = verify(dense, plan, small, given)
    file = shipped(folder)
    if file is None:
        return report
    on = assemble.target(str(arguments.get("target") or "onnxruntime").partition("@")[0], 1)
    found = agreement(file, small, [given], on, "the example")
    row = Row(found["what"], "relative", pruned=found["max_error"], asked=on.parity, ok=found["ok"])
    return replace(report, ok=report.ok and row.ok is True, rows=(*report.rows, row))


def with_command(report: Report, command: str) -> Report:
    """The report, with the command line that made it."""
    made: dict[str, Any] = {**report.sections.get("made", {}), "command": command}
    return replace(report, sections={**report.sections, "made": made})
