"""The commands for sparse weights: ``secateur sparsify | tickets``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from secateur.cli.options import MODEL, UNVERIFIED, Data, Example_, Json, Seed, print_json, progress, say
from secateur.errors import ArgumentError


def sparsify(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    criterion: Annotated[str | None, typer.Option(help="How important each weight is. (default: magnitude)")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="unstructured, per_row, 2:4, block:4x1 or module:name. (default: unstructured)")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="Fraction removed. (default: 0.5, or the pattern's)")] = None,
    density: Annotated[str | None, typer.Option(help="How much goes where: even, ranked, ... (default: even)")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often to score and remove. (default: 1)")] = None,
    data: Data = None,
    example: Example_ = None,
    out: Annotated[str | None, typer.Option(help="Folder for the result.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Glob over parameters and modules that stay dense.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Glob; nothing else becomes sparse.")] = None,
    quality: Annotated[str | None, typer.Option(help="module:callable that judges a model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items in a batch of a data file. (default: 32)")] = None,
    run: Annotated[str | None, typer.Option(help="YAML file with the same arguments; those given here win.")] = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier result in the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Zero single weights: by a criterion, in a pattern, to a sparsity; with the evidence."""
    from secateur.evidence.report import to_json, to_table
    from secateur.run.folder import claim
    from secateur.run.runfile import read_run_file
    from secateur.run.sparsefile import check_sparse, execute_sparse

    given = {
        "model": model, "criterion": criterion, "pattern": pattern, "sparsity": sparsity, "density": density,
        "rounds": rounds, "data": data, "example": example, "out": out, "ignore": ignore, "only": only,
        "quality": quality, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    explicit = {k: v for k, v in given.items() if v is not None and v != []}
    where = f"run file {run}" if run else "arguments"
    arguments = check_sparse({**(read_run_file(run) if run else {}), **explicit}, where)
    if arguments.out is None:
        raise ArgumentError("no output folder: give --out DIR")
    kept = {k: v for k, v in arguments.arguments().items() if k != "out"}
    with claim(arguments.out, kept, force) as folder:
        report = execute_sparse(arguments, folder, shlex.join(["secateur", *ctx.obj]), progress)
    if as_json:
        print_json({**to_json(report), "folder": str(folder.path)})
    else:
        console = Console()
        console.print(to_table(report))
        page = folder.path / "report.html"
        console.print(f"model: {folder.path}\nreport: {page}", markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(UNVERIFIED)


def tickets(
    recipe: Annotated[
        str, typer.Argument(help="module:recipe: make_model, train, evaluate, ... as a dict.", show_default=False)
    ],
    rounds: Annotated[int, typer.Option(min=1, help="How often to prune and train again.")],
    out: Annotated[Path, typer.Option(help="Folder for the tickets; the same command goes on where it stopped.")],
    rate: Annotated[float | None, typer.Option(help="Fraction of what is left that goes each round.")] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Find lottery tickets: train, prune, rewind, again; beside their controls."""
    from secateur.run.recipe import given_recipe
    from secateur.train.tickets import tickets as find

    arguments = given_recipe(recipe, rate)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    )
    with bar:
        task = bar.add_task("starting")

        def tell(done: int, of: int, words: str) -> None:
            bar.update(task, completed=done, total=of, description=words)

        found = find(**arguments, rounds=rounds, folder=out, seed=seed or 0, tell=tell)
    if as_json:
        print_json({"rows": [r.data() for r in found.rows], "folder": str(out)})
        return
    Console().print(found.table())
    say(f"tickets: {out / 'tickets.csv'}\nplot: {out / 'tickets.png'}")
