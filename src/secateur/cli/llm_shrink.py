"""``secateur llm shrink``: KV groups, neurons and layers out of a language model, for a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from secateur.llm.shrink.asked import Asked, Shrinking
    from secateur.llm.shrink.run import Shrunk
    from secateur.types import Target

KINDS = {"heads": "head", "neurons": "neuron"}
BUDGETS = "params, macs, kv, prefill or decode"


def shrink(
    model: LlmModel,
    out: Annotated[Path, typer.Option(help="Folder for the result; the same command takes up a killed run.")],
    budget: Annotated[
        list[str] | None, typer.Option(help=f"NAME=PERCENT of dense, several allowed: {BUDGETS}.")
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(help="Channels of the residual stream that stay: 90% or 512. (default: all)"),
    ] = None,
    score: Annotated[str, typer.Option(help="obs, flap, magnitude or taylor: which units go first.")] = "obs",
    kinds: Annotated[
        str | None,
        typer.Option(help="What budgets may take: heads, neurons, layers. (default: all; of flap's ranking no layers)"),
    ] = None,
    calibration: Calibration = None,
    samples: Samples = 128,
    window: Window = 2048,
    batch: Batch = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="All blocks alike, so that plain from_pretrained loads the result.")
    ] = False,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Layers alone, one by one: each time that without which perplexity is least."),
    ] = False,
    multiple: Annotated[int, typer.Option(min=1, help="Kept neurons are multiples of this.")] = 8,
    residual: Annotated[
        float, typer.Option(min=0, max=1, help="How much of what the stream has lost a refit makes up for.")
    ] = 1.0,
    target: Annotated[
        str, typer.Option(help="Where prefill and decode are timed: eager, onnxruntime, or module:target.")
    ] = "eager",
    memory: Memory = None,
    device: Device = "cpu",
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a language model down to a budget, without training: KV groups, neurons, layers, and residual width."""
    from secateur.llm.memory import bytes_in
    from secateur.llm.shrink.run import llm_shrink
    from secateur.run.assemble import target as target_of

    if not budget and kinds is None and width is not None:
        kinds = ""  # the width alone
    kinds = "layers" if greedy and kinds is None else kinds
    source, on = opened(model), target_of(target, 1)
    tokens = calibration_tokens(source, calibration, samples, window, seed or 0)
    how = replace(shrinking(score, kinds, uniform, multiple, residual, source, tokens, width), greedy=greedy)
    asked = [budget_of(text, tokens.shape[1], on) for text in budget or []]
    with block_progress() as told:
        limit = None if memory is None else bytes_in(memory)
        done = llm_shrink(
            source, tokens, asked, out, how, batch=batch, device=device, memory=limit, progress=told, force=force
        )
    if as_json:
        print_json(report_of(done))
        return
    Console().print(table_of(done))
    say(f"{len(done.choice.dropped)} of {len(done.rows)} blocks went whole; model: {done.folder}")


def shrinking(
    score: str,
    kinds: str | None,
    uniform: bool,
    multiple: int,
    residual: float,
    source: Any,
    tokens: Any,
    width: str | None = None,
) -> Shrinking:
    """What the options say.

    Raises:
        ArgumentError: one is unknown, or two do not go together.
    """
    from secateur.llm.shrink import options
    from secateur.llm.shrink.asked import Shrinking
    from secateur.llm.shrink.ladder import fluctuation
    from secateur.score.criteria import magnitude, obs

    by_rank = score == "flap" and not uniform
    default = "heads,neurons" if by_rank else "heads,neurons,layers"
    named = [k.strip() for k in (default if kinds is None else kinds).split(",") if k.strip()]
    if wrong := [k for k in named if k not in (*KINDS, "layers")]:
        raise ArgumentError(f"--kinds {wrong[0]!r}: write some of heads, neurons, layers, with commas between")
    if by_rank and "layers" in named:
        raise ArgumentError(
            "--kinds layers: flap ranks units alone, by which no layer goes; leave it out, or give --uniform"
        )
    criteria = {"obs": obs, "magnitude": magnitude, "flap": fluctuation}
    if score not in (*criteria, "taylor"):
        raise ArgumentError(f"--score {score!r}: write one of obs, flap, magnitude, taylor")
    criterion, stats = (criteria[score], None) if score in criteria else _taylor(source, tokens)
    flap = score == "flap"
    allocate = options.uniform if uniform else options.ranked if by_rank else options.mixed
    return Shrinking(
        criterion, stats, [KINDS[k] for k in named if k in KINDS], "layers" in named, allocate, uniform,
        {"neuron": multiple},
        None if flap else 1e-2, None if flap else 1e-2, residual, width=None if width is None else width_of(width),
    )  # fmt: skip


def width_of(text: str) -> float:
    """``90%`` as a part, ``512`` as a number of channels.

    Raises:
        ArgumentError: it is neither.

    Example:
        >>> width_of("90%"), width_of("512")
        (0.9, 512.0)
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (text.endswith("%") and value > 1) or (value > 1 and value != int(value)):
        raise ArgumentError(f"--width {text!r} is no number of channels and no part of them: write 512, or 90%")
    return value


def budget_of(text: str, window: int, target: Target | None = None) -> Asked:
    """``NAME=PERCENT`` as a budget; times on a target, on PyTorch eager by default.

    Raises:
        ArgumentError: it is not of that form.

    Example:
        >>> callable(budget_of("params=75%", 512))
        True
    """
    from secateur.llm.shrink import asked
    from secateur.targets.eager import eager

    name, _, value = text.partition("=")
    on = target or eager
    try:
        part = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise ArgumentError(f"--budget {text!r} is not NAME=PERCENT, such as params=75%; NAME is {BUDGETS}")
    known = {
        "params": lambda: asked.of_params(part),
        "macs": lambda: asked.of_macs(part, window),
        "kv": lambda: asked.of_kv(part, window),
        "prefill": lambda: asked.of_prefill(part, on, window),
        "decode": lambda: asked.of_decode(part, on),
    }
    if name not in known:
        raise ArgumentError(f"--budget {text!r}: {name!r} is not {BUDGETS}")
    return known[name]()


def _taylor(source: Any, tokens: Any) -> tuple[Any, Any]:
    """First-order terms of the loss of the next token: the whole model and its gradients are in memory for it."""
    from secateur.export.prepare import need
    from secateur.score.calibrate import contributions
    from secateur.score.criteria import taylor

    (transformers,) = need("huggingface", "transformers")
    whole = transformers.AutoModelForCausalLM.from_pretrained(source.folder, local_files_only=True)
    whole.config.use_cache = False
    batches = [{"input_ids": row[None], "labels": row[None]} for row in tokens]
    return taylor, contributions(whole, batches, lambda output, targets, generator: output.loss)


def report_of(done: Shrunk) -> dict[str, Any]:
    """What was asked and achieved, as JSON."""
    return {"folder": str(done.folder), **done.told}


def table_of(done: Shrunk) -> Table:
    """What was asked beside what was achieved, and what each block keeps."""
    table = Table("what", "dense", "asked", "achieved")
    for p in done.prices:
        unit = f" {p.unit}".rstrip()
        table.add_row(p.name, *(f"{v:,.6g}{unit}" for v in (p.dense, p.limit, done.reached[p.name])))
    if "params" not in done.reached:
        size = done.told["parameters"]
        table.add_row("params", f"{size['dense']:,}", "", f"{size['left']:,}")
    if "width" in done.told:
        width = done.told["width"]
        asked = f"{width['asked']:.4g}" if width["asked"] > 1 else f"{width['asked']:.1%}"
        table.add_row("width", str(width["dense"]), asked, str(width["left"]))
    table.add_section()
    for row in done.rows:
        kept = ", ".join(f"{name.rpartition(':')[2]} {n}" for name, n in row["kept"].items())
        error = max((after for _, after in row.get("errors", {}).values()), default=None)
        table.add_row(
            row["path"], "", "dropped" if row["dropped"] else kept, "" if error is None else f"error {error:.4f}"
        )
    return table
