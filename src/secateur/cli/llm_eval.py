"""The command that judges language models: ``secateur llm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateur.cli.options import Force, Json, Threads, block_progress, print_json, say
from secateur.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from secateur.llm.evaluate import Evaluation

DTYPES = ("float32", "bfloat16", "float16")


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(help="Folder of a language model: that secateur wrote, or of transformers.", show_default=False),
    ],
    text: Annotated[list[Path], typer.Option(help="Text file (UTF-8) to score; several are joined by blank lines.")],
    dense: Annotated[
        Path | None, typer.Option(help="Folder of the dense model: agreement, figures side by side.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens that the model sees at once.")] = 512,
    stride: Annotated[int | None, typer.Option(help="From one window to the next. (default: the window)")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Of the text, at most. (default: all)")] = None,
    batch: Annotated[int, typer.Option(help="Windows that run at once.")] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 to compute in. (default: as stored)")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    speed: Annotated[bool, typer.Option("--speed", help="Time prefill and decode, and measure memory.")] = False,
    target: Annotated[
        list[str] | None, typer.Option(help="With --speed: eager, onnxruntime, or module:target. (default: eager)")
    ] = None,
    threads: Threads = None,
    prompt: Annotated[int, typer.Option(help="With --speed: tokens of the prompt.")] = 128,
    steps: Annotated[int, typer.Option(help="With --speed: tokens written after it.")] = 16,
    repeats: Annotated[int, typer.Option(help="With --speed: rounds at least.")] = 10,
    tasks: Annotated[Path | None, typer.Option(help="Folder of lm-eval tasks (YAML) with local data.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each task, at most.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.html.")] = None,
    beside: Annotated[list[Path] | None, typer.Option(help="Other evaluations, for the trade-off on the page.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the model card, README.md, into MODEL.")] = False,
    base_model: Annotated[str | None, typer.Option(help="Of the card: the dense model's name on the Hub.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Judge a language model as it was saved: perplexity, agreement with the dense one, speed, tasks."""
    from secateur.llm.card import check_card, write_card
    from secateur.llm.evaluate import Asked, read_evaluation
    from secateur.llm.evaluate import evaluate as judge
    from secateur.run.assemble import target as target_of

    if (target or threads) and not speed:
        raise ArgumentError("--target and --threads say where generation is timed: give --speed as well")
    others = [read_evaluation(path) for path in beside or ()]
    targets = tuple(target_of(name, threads or 1) for name in target or ["eager"]) if speed else ()
    asked = Asked(
        tuple(text), window, stride, batch, tokens, _dtype(dtype), targets, prompt, steps, repeats, tasks, limit, device
    )  # fmt: skip
    if card:
        check_card(model, force)
    with block_progress() as tell:
        found = judge(model, asked, dense, tell)
    written = [] if out is None else _write(found, out, others)
    if card:
        written.append(write_card(model, found, base_model, force))
    if as_json:
        from secateur.evidence.report import finite

        print_json(finite(dict(found.data)))
        return
    Console().print(table_of(found))
    for path in written:
        say(f"written: {path}")


def _write(found: Evaluation, out: Path, others: list[Evaluation]) -> list[Path]:
    from secateur.atomic import write_bytes
    from secateur.evidence.llm_page import render_llm

    page = render_llm(found.data, [o.data for o in others])
    data = found.save(out)
    write_bytes(out / "evaluation.html", page.encode("utf-8", "xmlcharrefreplace"))
    return [data, out / "evaluation.html"]


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise ArgumentError(f"--dtype {name!r}: write {', '.join(DTYPES)}")
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def table_of(found: Evaluation) -> Table:
    """The figures for a terminal, the protocol below them."""
    from secateur.evidence import words

    data: Any = found.data
    table = Table(title=Text(str(data["model"]), style="bold"), caption=f"{data['protocol']['words']}; intervals: 95 %")
    beside = data["dense"] is not None
    table.add_column("")
    for name in (*(("dense",) if beside else ()), "this model", *(("ratio",) if beside else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in found.rows:
        text = words.cells(row)
        ours = text["pruned"] + (f"\n{text['interval']}" if text["interval"] else "")
        note = "" if row.what == "perplexity" else row.note
        cells = [row.what, *([text["dense"]] if beside else []), ours, *([text["ratio"]] if beside else []), note]
        table.add_row(*map(Text, cells))
    for t in data["tasks"]:
        figures = ["" if v is None else words.decimal(v) for v in (t["dense"], t["pruned"])]
        error = "" if t["standard_error"] is None else f"± {words.decimal(t['standard_error'])}"
        cells = [
            f"{t['task']}: {t['metric']}",
            *([figures[0]] if beside else []),
            figures[1],
            *([""] if beside else []),
        ]
        table.add_row(*map(Text, [*cells, error]))
    return table
