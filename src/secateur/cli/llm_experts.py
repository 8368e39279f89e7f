"""The command for mixtures of experts: ``secateur llm experts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secateur.cli.llm import (
    Batch,
    Calibration,
    Device,
    LlmModel,
    Memory,
    Samples,
    Window,
    block_progress,
    calibration_tokens,
    opened,
)
from secateur.cli.options import Force, Json, Seed, print_json, say
from secateur.errors import ArgumentError


def experts(
    model: LlmModel,
    remove: Annotated[int, typer.Option(min=1, help="Experts that go, of every layer that has any.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; the same command takes up a killed run.")],
    score: Annotated[
        str, typer.Option(help="reap, activation_norm, frequency, random, or module:score: the lowest go.")
    ] = "reap",
    merge: Annotated[
        str | None, typer.Option(help="outputs or logits: by what those that go are added to the most alike.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Match the neurons of experts before they are merged.")
    ] = False,
    calibration: Calibration = None,
    samples: Samples = 128,
    window: Window = 2048,
    batch: Batch = None,
    memory: Memory = None,
    device: Device = "cpu",
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take experts out of a mixture-of-experts language model: those that add least to the tokens they are given."""
    from secateur.llm.memory import bytes_in
    from secateur.llm.prune_experts import llm_prune_experts

    chosen, merged = _score(score, seed or 0), _merge(merge, align)
    limit = None if memory is None else bytes_in(memory)
    source = opened(model)
    ids = calibration_tokens(source, calibration, samples, window, seed or 0)
    with block_progress() as told:
        done = llm_prune_experts(
            source,
            ids,
            out,
            remove,
            score=chosen,
            merge=merged,
            batch=batch,
            memory=limit,
            device=device,
            force=force,
            progress=told,
        )
    banks = [bank for row in done.rows for bank in row["banks"]]
    if as_json:
        print_json({"folder": str(done.folder), "removed": remove, "banks": banks})
        return
    Console().print(_table(banks))
    say(f"{remove} experts less in each of {len(banks)} layers\nmodel: {done.folder}")


def _score(name: str, seed: int) -> Any:
    from secateur.llm import experts as scores
    from secateur.run.names import resolve

    known = {
        "reap": scores.reap, "activation_norm": scores.activation_norm, "frequency": scores.frequency,
        "random": scores.random_experts(seed),
    }  # fmt: skip
    return resolve(name, known, "score")


def _merge(name: str | None, align: bool) -> Any:
    from dataclasses import replace

    from secateur.llm.merging import BY_LOGITS, BY_OUTPUTS

    known = {"outputs": BY_OUTPUTS, "logits": BY_LOGITS}
    if name is None:
        if align:
            raise ArgumentError("--align is for experts that are merged: give --merge outputs or logits too")
        return None
    if name not in known:
        raise ArgumentError(f"--merge {name!r}: write outputs or logits")
    return replace(known[name], align=align)


def _table(banks: list[dict[str, Any]]) -> Table:
    """What went and what stayed, by layer."""
    table = Table("experts", "kept", "removed", "least routed", "score of the best that went")
    for bank in banks:
        gone = sorted(set(range(bank["before"])) - set(bank["kept"]))
        table.add_row(
            bank["experts"],
            f"{len(bank['kept'])} of {bank['before']}",
            " ".join(map(str, gone)),
            f"{min(bank['routed']):,} of {bank['tokens']:,} tokens",
            f"{max(bank['score'][j] for j in gone):.4g}",
        )
    return table
