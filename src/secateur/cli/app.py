"""The command line: ``secateur inspect | prune | front | take | sparsify | tickets | measure | verify | ...``."""

from __future__ import annotations

import logging
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from secateur.cli.advise import advise
from secateur.cli.front import front, take
from secateur.cli.llm import app as llm_app
from secateur.cli.llm_experts import experts
from secateur.cli.llm_recover import recover
from secateur.cli.llm_shrink import shrink
from secateur.cli.options import (
    BUDGET,
    ERROR,
    EXITS,
    INTERRUPTED,
    MODEL,
    OK,
    UNVERIFIED,
    USAGE,
    AllocationName,
    BatchSize,
    ByKind,
    Country,
    CriterionName,
    Data,
    Energy,
    Example_,
    Force,
    Ignore,
    Json,
    MaxSparsity,
    Minimum,
    Model,
    Multiple,
    PerGroup,
    PriceHour,
    PriceKwh,
    RunYaml,
    Seed,
    TargetName,
    Threads,
    Watts,
    log,
    one_or_all,
    pairs,
    print_json,
    progress,
    say,
    seed_,
)
from secateur.cli.sparse import sparsify, tickets
from secateur.cli.target import target as target_app
from secateur.errors import ArgumentError, BudgetError, SecateurError
from secateur.run.runfile import RunFile

if TYPE_CHECKING:
    from secateur.types import Report

app = typer.Typer(
    name="secateur",
    help="Prune a trained neural network to a measured budget.",
    epilog=EXITS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Stands anywhere.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Prune a trained neural network to a measured budget."""
    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        log.setLevel(logging.INFO)


@app.command(epilog=EXITS)
def inspect(
    model: Model,
    example: Example_ = None,
    data: Data = None,
    ignore: Ignore = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also try which layers can go whole.")] = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say what can be cut, what cannot and why, and what each layer costs."""
    from secateur.graph.couple import couple
    from secateur.graph.record import trace
    from secateur.run.inspect import inspect as look
    from secateur.run.inspect import tables
    from secateur.run.subjects import model_and_example

    seed_(seed or 0)
    net, given = model_and_example(model, example, data)
    found = look(net, couple(trace(net, given), ignore=ignore or ()), given, layers)
    if as_json:
        print_json(found)
        return
    console = Console()
    for table in tables(found):
        console.print(table)
    counts = f"{found['params']:,} parameters, {found['macs']:,} MACs, {found['nbytes']:,} bytes"
    console.print(f"{found['model']}: {counts}; {len(found['groups'])} groups can be cut")
    if found["unknown"]:
        console.print("without a rule, so what they touch is frozen: " + "; ".join(found["unknown"]), markup=False)


@app.command(epilog=EXITS)
def prune(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="latency=50%, latency=8ms, params=10M, macs=300M or nbytes=4MB; several all hold."),
    ] = None,
    target: TargetName = None,
    data: Data = None,
    out: Annotated[str | None, typer.Option(help="Folder for the result.")] = None,
    example: Example_ = None,
    criterion: CriterionName = None,
    allocation: AllocationName = None,
    normalization: Annotated[
        str | None, typer.Option(help="How groups are made comparable. (default: by_mean)")
    ] = None,
    recover: Annotated[
        list[str] | None,
        typer.Option(help="refit, recalibrate_bn, distill:steps=500,lr=5e-4, finetune=module:function; in order."),
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
    energy: Energy = False,
    watts: Watts = None,
    country: Country = None,
    price_per_hour: PriceHour = None,
    price_per_kwh: PriceKwh = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a smaller model that meets the budget, with the evidence that it is right."""
    from secateur.run.runfile import check_arguments, read_run_file

    given = {
        "model": model, "budget": one_or_all(budget), "target": target, "data": data, "out": out, "example": example,
        "criterion": criterion, "allocation": allocation, "normalization": normalization, "recover": recover,
        "multiple": multiple, "minimum": minimum, "max_sparsity": max_sparsity, "ignore": ignore,
        "by_kind": pairs("--by-kind", by_kind, int), "per_group": pairs("--per-group", per_group, float),
        "batch_size": batch_size, "seed": seed, "threads": threads, "energy": energy or None, "watts": watts,
        "country": country, "price_per_hour": price_per_hour, "price_per_kwh": price_per_kwh,
    }  # fmt: skip
    explicit = {k: v for k, v in given.items() if v is not None and v != []}
    where = f"run file {run}" if run else "arguments"
    arguments = check_arguments({**(read_run_file(run) if run else {}), **explicit}, where)
    if arguments.out is None:
        raise ArgumentError("no output folder: give --out DIR")
    report, folder = _prune(arguments, force, shlex.join(["secateur", *ctx.obj]))
    if as_json:
        from secateur.evidence.report import to_json

        print_json({**to_json(report), "folder": str(folder)})
    else:
        from secateur.evidence.report import to_table

        console = Console()
        console.print(to_table(report))
        console.print(f"model: {folder}\nreport: {folder / 'report.html'}", markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(UNVERIFIED)


def _prune(arguments: RunFile, force: bool, command: str) -> tuple[Report, Path]:
    """The run itself, inside its output folder."""
    from secateur.run.folder import claim
    from secateur.run.job import execute

    assert arguments.out is not None
    kept = {k: v for k, v in arguments.arguments().items() if k != "out"}
    with claim(arguments.out, kept, force) as folder:
        if folder.resumed:
            say(f"going on with the unfinished run in {folder.path}")
        report = execute(arguments, folder, command, progress)
    return report, folder.path


@app.command(epilog=EXITS)
def measure(
    models: Annotated[list[str], typer.Argument(help=f"{MODEL} An .onnx file may stand here too.", show_default=False)],
    target: TargetName = None,
    example: Example_ = None,
    data: Data = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds at least; every round runs each model once.")] = 50,
    energy: Energy = False,
    watts: Watts = None,
    country: Country = None,
    price_per_hour: PriceHour = None,
    price_per_kwh: PriceKwh = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Time models against each other in one run; the first is what the others are compared with."""
    from secateur.evidence.running_cost import running
    from secateur.run.assemble import target as target_of
    from secateur.run.subjects import costs, facts, timed, timings

    seed_(seed or 0)
    asked = running("cpu", energy, watts, country, price_per_hour, price_per_kwh)
    found, more = timed(models, target_of(target or "onnxruntime", threads or 1), example, data, repeats, asked)
    if as_json:
        print_json([told | cost for told, cost in zip(facts(models, found), more, strict=True)])
        return
    Console().print(timings(models, found))
    if asked is not None:
        Console().print(costs(models, more))


@app.command(epilog=EXITS)
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that secateur wrote.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="The dense model, if it is elsewhere now.")] = None,
    example: Example_ = None,
    as_json: Json = False,
) -> None:
    """Check a pruned folder anew: its files, its shapes, masked against shrunk, ONNX against torch."""
    from secateur.evidence.report import to_json, to_table
    from secateur.run.job import recheck

    report = recheck(folder, model, example)
    if as_json:
        print_json(to_json(report))
    else:
        Console().print(to_table(report))
    if not report.ok:
        raise typer.Exit(UNVERIFIED)


@app.command(epilog=EXITS)
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that secateur wrote.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Render report.html from report.json again, and say where it is."""
    from secateur.evidence.report import read_report, to_json, to_table, write_report

    found = read_report(folder)
    page = write_report(folder if folder.is_dir() else folder.parent, found)
    if as_json:
        print_json({**to_json(found), "page": str(page)})
    else:
        console = Console()
        console.print(to_table(found))
        console.print(f"report: {page}", markup=False, soft_wrap=True)


@app.command(epilog=EXITS)
def schema(
    of: Annotated[str, typer.Argument(help="prune, sparsify or front: the command whose run file it is.")] = "prune",
) -> None:
    """Print the JSON Schema of a run file."""
    from secateur.run.frontfile import FrontFile
    from secateur.run.runfile import schema as run_schema
    from secateur.run.sparsefile import SparseFile

    kinds: dict[str, type[RunFile | SparseFile | FrontFile]] = {
        "prune": RunFile,
        "sparsify": SparseFile,
        "front": FrontFile,
    }
    if of not in kinds:
        raise ArgumentError(f"{of!r} has no run files: write prune, sparsify or front")
    print_json(run_schema(kinds[of]))


app.command(epilog=EXITS)(sparsify)
app.command(epilog=EXITS)(tickets)
app.add_typer(target_app)
llm_app.command(epilog=EXITS)(experts)
llm_app.command(epilog=EXITS)(recover)
llm_app.command(epilog=EXITS)(shrink)
app.add_typer(llm_app)
for _command in (advise, front, take):
    app.command(epilog=EXITS)(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Example:
        >>> main(["schema", "--nonsense"])
        64
    """
    given = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in given, "--json" in given
    parsed = [a for a in given if a != "--debug"]
    try:
        code = app(parsed, prog_name="secateur", standalone_mode=False, obj=given)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        return _failed(INTERRUPTED, "interrupted", None, as_json)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(_code_of(error), _words_of(error), error, as_json)


def _code_of(error: Exception) -> int:
    if isinstance(error, ArgumentError) or hasattr(error, "format_message"):
        return USAGE
    return BUDGET if isinstance(error, BudgetError) else ERROR


def _words_of(error: Exception) -> str:
    if hasattr(error, "format_message"):  # the command line parser's own errors
        hint = getattr(getattr(error, "ctx", None), "command_path", "secateur")
        return f"{error.format_message().rstrip('.')}; see '{hint} --help'"
    if isinstance(error, SecateurError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _failed(code: int, words: str, error: Exception | None, as_json: bool) -> int:
    """One clear line on standard error; with --json the same on standard output as data."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(words.rpartition("; see ")[0])
        return code
    if as_json:
        closest, several = getattr(error, "closest", None), getattr(error, "several", False)
        kind = type(error).__name__ if error is not None else "Interrupted"
        told = {"type": kind, "message": words, "closest": closest, **({"several": True} if several else {})}
        print_json({"ok": False, "exit_code": code, "error": told})
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), " ".join(words.split())), soft_wrap=True)
    return code
