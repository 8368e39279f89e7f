"""The commands for many budgets at once: ``secateur front | take``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.options import (
    BUDGET,
    MODEL,
    UNVERIFIED,
    AllocationName,
    BatchSize,
    ByKind,
    CriterionName,
    Data,
    Example_,
    Force,
    Ignore,
    Json,
    MaxSparsity,
    Minimum,
    Multiple,
    PerGroup,
    RunYaml,
    Seed,
    TargetName,
    Threads,
    pairs,
    print_json,
    progress,
    say,
)
from secateur.errors import ArgumentError


def front(
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    points: Annotated[int | None, typer.Option(help="How many budgets. (default: 8)")] = None,
    highest: Annotated[str | None, typer.Option("--from", help="The first budget. (default: 90%)")] = None,
    lowest: Annotated[str | None, typer.Option("--to", help="The last budget. (default: 30%)")] = None,
    cost: Annotated[str | None, typer.Option(help="latency, params, macs or nbytes. (default: latency)")] = None,
    baselines: Annotated[
        int | None, typer.Option(help="Budgets at which uniform and random stand beside. (default: all; 0 for none)")
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="module:callable that judges a model, higher is better; else fidelity to dense.")
    ] = None,
    target: TargetName = None,
    data: Data = None,
    out: Annotated[str | None, typer.Option(help="Folder for the front; the same command goes on in it.")] = None,
    example: Example_ = None,
    criterion: CriterionName = None,
    allocation: AllocationName = None,
    normalization: Annotated[
        str | None, typer.Option(help="How groups are made comparable. (default: by_mean)")
    ] = None,
    recover: Annotated[
        list[str] | None, typer.Option(help="refit, recalibrate_bn, distill:steps=500,lr=5e-4, ...; in order.")
    ] = None,
    multiple: Multiple = None,
    by_kind: ByKind = None,
    minimum: Minimum = None,
    max_sparsity: MaxSparsity = None,
    per_group: PerGroup = None,
    ignore: Ignore = None,
    batch_size: BatchSize = None,
    run: RunYaml = None,
    seed: Seed = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Many budgets from one calibration: quality against measured latency, each point kept as a plan."""
    from secateur.evidence.front import front_data, front_table
    from secateur.run.folder import claim
    from secateur.run.frontfile import check_front, execute_front
    from secateur.run.runfile import read_run_file

    given = {
        "model": model, "points": points, "from": highest, "to": lowest, "cost": cost, "baselines": baselines,
        "quality": quality, "target": target, "data": data, "out": out, "example": example, "criterion": criterion,
        "allocation": allocation, "normalization": normalization, "recover": recover, "multiple": multiple,
        "minimum": minimum, "max_sparsity": max_sparsity, "ignore": ignore,
        "by_kind": pairs("--by-kind", by_kind, int), "per_group": pairs("--per-group", per_group, float),
        "batch_size": batch_size, "seed": seed, "threads": threads,
    }  # fmt: skip
    explicit = {k: v for k, v in given.items() if v is not None and v != []}
    where = f"run file {run}" if run else "arguments"
    arguments = check_front({**(read_run_file(run) if run else {}), **explicit}, where)
    if arguments.out is None:
        raise ArgumentError("no output folder: give --out DIR")
    kept = {k: v for k, v in arguments.arguments().items() if k != "out"}
    with claim(arguments.out, kept, force) as folder:
        if folder.resumed:
            say(f"going on with the unfinished front in {folder.path}")
        try:
            found = execute_front(arguments, folder, progress)
        except KeyboardInterrupt:
            say(f"the points that are done are in {folder.path}; the same command goes on")
            raise
    if as_json:
        print_json({**front_data(found), "folder": str(folder.path)})
    else:
        console = Console()
        console.print(front_table(found))
        console.print(f"front: {folder.path}\nreport: {folder.path / 'report.html'}", markup=False, soft_wrap=True)
    if not any(p.done for p in found.points):
        raise typer.Exit(BUDGET)


def take(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder that secateur front wrote.", show_default=False)],
    point: Annotated[int, typer.Option(help="Which point, from 1.")],
    out: Annotated[str, typer.Option(help="Folder for the result.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one point of a front as a result folder, measured and verified anew."""
    from secateur.evidence.report import to_json, to_table
    from secateur.run.folder import claim
    from secateur.run.take import execute_take, point_arguments

    kept = {k: v for k, v in point_arguments(folder, point).arguments().items() if k != "out"}
    with claim(out, kept, force) as result:
        report = execute_take(folder, point, result, shlex.join(["secateur", *ctx.obj]), progress)
    if as_json:
        print_json({**to_json(report), "folder": str(result.path)})
    else:
        console = Console()
        console.print(to_table(report))
        console.print(f"model: {result.path}\nreport: {result.path / 'report.html'}", markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(UNVERIFIED)
