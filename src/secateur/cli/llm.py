"""The commands for language models: ``secateur llm prune | ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secateur.cli.llm_eval import evaluate
from secateur.cli.options import EXITS, Force, Json, Seed, print_json, say
from secateur.cli.options import block_progress as block_progress
from secateur.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.llm.prune import Pruned

app = typer.Typer(name="llm", help="Prune language models, one block in memory at a time.", no_args_is_help=True)
app.command("eval", epilog=EXITS)(evaluate)

MODEL = "Folder of a transformers model (config.json and safetensors), or a .gguf file."
METHODS = "magnitude, wanda, ria, sparsegpt, least_squares, admm, alps, dsnot"

LlmModel = Annotated[str, typer.Argument(help=MODEL, show_default=False)]
Calibration = Annotated[
    Path | None, typer.Option(help="Text file, UTF-8; or .safetensors with `tokens`, int64 (samples, window).")
]
Samples = Annotated[int, typer.Option(min=1, help="Windows of calibration text.")]
Window = Annotated[int, typer.Option(min=2, help="Tokens of a window.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Windows at once: fewer take less memory. (default: about 4096 tokens)")
]
Memory = Annotated[str | None, typer.Option(help="What the process may take, such as 8GB. (default: no limit)")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]


@app.command(epilog=EXITS)
def prune(
    model: LlmModel,
    out: Annotated[Path, typer.Option(help="Folder for the result; the same command takes up a killed run.")],
    method: Annotated[
        str | None, typer.Option(help=f"{METHODS}, or module:solver. (default: admm, with --cross)")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="unstructured, per_row, 2:4, 4:8, n:m, block:4x1, or module:pattern.")
    ] = "unstructured",
    sparsity: Annotated[float | None, typer.Option(help="Fraction removed. (default: 0.5, or the pattern's)")] = None,
    calibration: Calibration = None,
    samples: Samples = 128,
    window: Window = 2048,
    batch: Batch = None,
    allocation: Annotated[
        str, typer.Option(help="uniform, owl or measured: how dense each block becomes.")
    ] = "uniform",
    only: Annotated[list[str] | None, typer.Option(help="Glob over matrices; nothing else is pruned.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Glob over matrices that stay dense.")] = None,
    held: Annotated[float, typer.Option(min=0, max=0.5, help="Part of the calibration kept aside to choose by.")] = 0.0,
    cross: Annotated[
        bool, typer.Option("--cross", help="Make up for what earlier layers lost: reproduce the dense model's outputs.")
    ] = False,
    memory: Memory = None,
    device: Device = "cpu",
    format_: Annotated[
        str, typer.Option("--format", help="dense, or sparse: kept weights and a bit for each.")
    ] = "dense",
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Zero single weights of a language model: in a pattern, by calibration text, without training."""
    from secateur.llm.memory import bytes_in
    from secateur.llm.prune import Pruning, llm_prune

    if format_ not in ("dense", "sparse"):
        raise ArgumentError(f"--format {format_!r}: write dense or sparse")
    how = Pruning(
        solver_named(method or "admm"), pattern_named(pattern), sparsity,
        tuple(only or ()), tuple(ignore or ()), held, cross or method is None,
    )  # fmt: skip
    limit = None if memory is None else bytes_in(memory)
    source = opened(model)
    ids = calibration_tokens(source, calibration, samples, window, seed or 0)
    with block_progress() as told:
        done = llm_prune(
            source, ids, how, out,
            allocation=allocation_named(allocation), batch=batch, memory=limit, device=device, force=force,
            progress=told, packed=format_ == "sparse",
        )  # fmt: skip
    tell(done, as_json)


def tell(done: Pruned, as_json: bool) -> None:
    """Print what was done: JSON, or a table and the sums."""
    if as_json:
        print_json({**done.report, "folder": str(done.folder)})
        return
    Console().print(table_of(done))
    achieved = done.report["achieved"]
    say(
        f"{achieved['removed']:,} of {achieved['of_matrices']:,} weights of the blocks' matrices are zero "
        f"({achieved['sparsity']:.2%}; {achieved['sparsity_of_model']:.2%} of the model); "
        f"{done.report['seconds']:.0f} s, at most {done.report['peak_bytes'] / 1e9:.2f} GB\nmodel: {done.folder}"
    )


def opened(model: str) -> Any:
    """Where the weights of a model come from."""
    from secateur.llm.source import Source

    return Source.open(model)


def calibration_tokens(source: Any, file: Path | None, samples: int, window: int, seed: int) -> Tensor:
    """Windows of the text in a file, or the tokens in it.

    Raises:
        ArgumentError: there is no such file. DataError: it holds too little, or is not of the kind.
    """
    from secateur.errors import DataError
    from secateur.llm.texts import tokenizer_of, tokens_of, windows

    if file is None:
        raise ArgumentError("no calibration text: give --calibration FILE (UTF-8 text, or tokens as .safetensors)")
    if not file.is_file():
        raise ArgumentError(f"--calibration {file}: no such file")
    if file.suffix == ".safetensors":
        return _tokens_in(file)
    if source.folder is None:
        raise ArgumentError("the model has no tokenizer: give --calibration tokens as .safetensors")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from error
    return windows(tokens_of([text], tokenizer_of(source.folder)), samples, window, seed)


def _tokens_in(file: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from secateur.errors import DataError, FormatError

    try:
        found: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise FormatError(f"{file} is damaged, or no safetensors file ({error}): write it anew") from error
    if "tokens" not in found:
        raise DataError(f"{file} has no tensor `tokens`; it has {', '.join(found) or 'none'}")
    tokens = found["tokens"]
    if tokens.dim() != 2:
        raise DataError(
            f"`tokens` of {file} are {tokens.dtype} {tuple(tokens.shape)}; expected int64 (samples, window)"
        )
    return tokens


def solver_named(name: str) -> Any:
    """A solver by its public name, or ``module:name``."""
    from secateur.run.names import resolve
    from secateur.solve import admm, dsnot, least_squares, scores, sparsegpt
    from secateur.solve.solver import Solver

    known = {
        "magnitude": scores.magnitude_mask, "wanda": scores.wanda_mask, "ria": scores.ria_mask,
        "sparsegpt": sparsegpt.sparsegpt, "least_squares": least_squares.least_squares, "admm": admm.admm,
        "alps": admm.alps, "dsnot": dsnot.dsnot,
    }  # fmt: skip
    found = resolve(name, known, "method")
    if not isinstance(found, Solver):
        raise ArgumentError(f"--method {name} is {type(found).__name__}; expected a secateur Solver")
    return found


def pattern_named(name: str) -> Any:
    """A pattern by its public name, or ``module:name``."""
    from secateur.run.sparsefile import pattern

    return pattern(name)


def allocation_named(name: str) -> Any:
    """An allocation by its name."""
    from secateur.llm.allocate import measured, outliers, uniform
    from secateur.run.names import resolve

    return resolve(name, {"uniform": uniform, "owl": outliers(), "measured": measured()}, "allocation")


def _short(name: str, path: str) -> str:
    return name.removeprefix(path + ".").removesuffix(".weight")


def table_of(done: Pruned) -> Table:
    """Error and density by block."""
    table = Table("block", "matrices", "density", "relative error", "worst matrix", "seconds")
    for row in done.report["blocks"]:
        matrices = row["matrices"]
        size = sum(m["shape"][0] * m["shape"][1] for m in matrices)
        worst = max(matrices, key=lambda m: m["error"], default=None)
        mean = sum(m["error"] for m in matrices) / max(len(matrices), 1)
        table.add_row(
            str(row["index"]),
            str(len(matrices)),
            f"{sum(m['kept'] for m in matrices) / max(size, 1):.4f}",
            f"{mean:.4f}",
            "" if worst is None else f"{worst['error']:.4f} {_short(worst['name'], row['path'])}",
            f"{row['seconds']:.1f}",
        )
    return table
