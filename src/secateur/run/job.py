"""A run from checked arguments: load, prune, save, report; and the check of a folder that one wrote."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.calling import example_of
from secateur.choose.rank import Allocation
from secateur.errors import ArgumentError
from secateur.evidence.gather import PARITY
from secateur.evidence.verify import verify
from secateur.export.plans import load_plan
from secateur.export.prepare import batch_of, rebatched
from secateur.run import assemble
from secateur.run.data import load_data, load_example
from secateur.run.folder import RUN, Folder, read_arguments
from secateur.run.models import load_model
from secateur.run.pipeline import prune
from secateur.run.runfile import Cutting, RunFile
from secateur.run.saving import save
from secateur.run.subjects import known_example
from secateur.types import Batches, Criterion, Example, Plan, Report, Row, Scores, Target

ONNX = "model.onnx"


@dataclass(frozen=True, eq=False)
class Ready:
    """What the text of a run file's arguments stands for.

    Attributes:
        model, example: the dense model and what it is recorded and timed on. source: what builds its class again.
        data: batches, or None. on: the target, or None. criterion, allocation, normalize: as named.
    """

    model: nn.Module
    example: Example
    source: Any
    data: Batches | None
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
    if criterion.stat is not None and data is None:
        raise ArgumentError(f"criterion {arguments.criterion} needs data: add --data")
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
    return Ready(model, example, source, data, on, criterion, allocation, normalize)


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
        batches=ready.data,
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
    """Write a result folder, with the ONNX file where that is what was measured, and return the report in it."""
    if ready.on is not None and ready.on.runtime == "onnxruntime":
        tell("writing the ONNX file")
        report = _exported(small, ready.example, ready.data, folder, report)

    def extra(temporary: Path) -> None:
        for file in (folder.work / "onnx").glob("*"):
            file.rename(temporary / file.name)
        folder.sign(temporary)

    save(folder.path, small, plan, report, factory=ready.factory, overwrite=True, extra=extra)
    return report


def _exported(small: nn.Module, example: Example, data: Batches | None, folder: Folder, report: Report) -> Report:
    """Write the ONNX file that goes with the result, and how it agrees with torch on the example and data."""
    from secateur.export.onnx import parity, to_onnx

    (folder.work / "onnx").mkdir(exist_ok=True)
    file = to_onnx(small, example, folder.work / "onnx" / ONNX)
    inputs = {"the example": [example]}
    if data is not None:
        split = example_of(small)
        size = None if file.dynamic else batch_of(example)
        first = [split(batch)[0] for batch in itertools.islice(data, 2)]
        inputs["data"] = [e if size is None else rebatched(e, size) for e in first]
    found = []
    for what, examples in inputs.items():
        error = parity(file.path, small, examples)
        about = {"what": f"{ONNX} against torch on {what}", "max_error": error, "limit": PARITY}
        found.append({**about, "ok": error <= PARITY})
    ok = report.ok and all(p["ok"] for p in found)
    both = [*report.sections.get("parity", []), *found]
    return replace(report, ok=ok, sections={**report.sections, "parity": both})


def recheck(folder: Path, model: str | None = None, example: str | None = None) -> Report:
    """Check a folder anew: it loads, has its plan's shapes, masked equals shrunk, ONNX agrees with torch.

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
    file = folder / ONNX
    if not file.is_file():
        return report
    from secateur.export.onnx import parity

    error = parity(file, small, [given])
    row = Row("ONNX file against torch", "relative", pruned=error, asked=PARITY, ok=error <= PARITY)
    return replace(report, ok=report.ok and row.ok is True, rows=(*report.rows, row))


def with_command(report: Report, command: str) -> Report:
    """The report, with the command line that made it."""
    made: dict[str, Any] = {**report.sections.get("made", {}), "command": command}
    return replace(report, sections={**report.sections, "made": made})
