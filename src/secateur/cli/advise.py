"""The commands that know before anything is cut: ``secateur advise``."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from secateur.cli.options import Data, Example_, Json, Model, Seed, Threads, print_json, progress, say, seed_

if TYPE_CHECKING:
    from secateur.types import Target


def advise(
    model: Model,
    target: Annotated[
        list[str] | None, typer.Option(help="onnxruntime, eager, or module:target; may be given again.")
    ] = None,
    example: Example_ = None,
    data: Data = None,
    threads: Threads = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of the example. (default: its own)")] = None,
    seconds: Annotated[float, typer.Option(help="To spend in all, shared by the targets.")] = 150,
    lower: Annotated[
        list[str] | None,
        typer.Option(help="A target of lower precision. (default: the target's own with _int8, if there is one)"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for advice.json and advice.html.")] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say what would make a model faster here, and what would not, before anything is trained."""
    from secateur.export.prepare import rebatched
    from secateur.run.advise import advise as ask
    from secateur.run.assemble import target as target_of
    from secateur.run.data import with_rows
    from secateur.run.subjects import model_and_example

    seed_(seed or 0)
    names = list(dict.fromkeys(target or ["onnxruntime"]))
    on = [target_of(name, threads or 1) for name in names]
    below = [target_of(name, threads or 1) for name in lower or ()]
    net, given = model_and_example(model, example, data)
    given = given if batch is None else rebatched(given, batch)
    if example and batch is not None:
        example = with_rows(example, batch)
    words = shlex.join([model, *(["--example", example] if example else ["--data", data] if data else [])])
    found = {}
    for name, one in zip(names, on, strict=True):
        siblings = below or [t for t in [_int8(one)] if t is not None]
        found[name] = ask(net, given, one, seconds / len(on), progress, lower=siblings, subject=words)
    pages = {}
    if out is not None:
        for name, advice in found.items():
            pages[name] = advice.save(out if len(found) == 1 else out / name.replace(":", "."))
    if as_json:
        told = [{**a.data(), **({"page": str(pages[n])} if n in pages else {})} for n, a in found.items()]
        print_json(told[0] if len(told) == 1 else told)
        return
    for name, advice in found.items():
        Console().print(advice.table())
        for note in advice.notes:
            say(note)
        if name in pages:
            say(f"page: {pages[name]}")


def _int8(target: Target) -> Target | None:
    """The same runtime in int8, where there is one: public, or beside the target."""
    from secateur.types import Target as Kind

    name = f"{target.name}_int8"
    for module in ("secateur", f"secateur.targets.{target.name}", f"secateur.targets.{name}"):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue
        if isinstance(found, Kind):
            return found
    return None
