"""What the commands share: exit codes, options, and how they speak."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from secateur.errors import ArgumentError

OK, ERROR, BUDGET, UNVERIFIED, USAGE, INTERRUPTED = 0, 1, 2, 3, 64, 130
EXITS = (
    "Exit codes: 0 done, and every check holds; 1 an error; 2 the budget cannot be met (the closest "
    "reachable is "
    "told); 3 verification failed; 64 the arguments or the run file are not valid; 130 interrupted."
)

log = logging.getLogger("secateur")

MODEL = "module:factory, a Hugging Face model folder, or a folder that secateur wrote."
Model = Annotated[str, typer.Argument(help=MODEL, show_default=False)]
Example_ = Annotated[
    str | None,
    typer.Option(
        "--example",
        help="A shape such as 1x3x224x224, ids=1x128:int64:30522,mask=1x128:ones, or module:callable.",
    ),
]
Data = Annotated[str | None, typer.Option("--data", help="module:callable, or a .npy, .npz or .safetensors file.")]
Energy = Annotated[bool, typer.Option("--energy", help="Also tell joules a run: measured where a counter is.")]
Watts = Annotated[float | None, typer.Option(help="Power drawn, an estimate for where no counter can be read.")]
Country = Annotated[str | None, typer.Option(help="ISO code such as FRA: the CO2 of a million inferences.")]
PriceHour = Annotated[float | None, typer.Option(help="Of the machine: the price of a million inferences.")]
PriceKwh = Annotated[float | None, typer.Option(help="Of electricity, for the same.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything that is drawn. (default: 0)")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the target. (default: 1)")]
TargetName = Annotated[
    str | None, typer.Option("--target", help="onnxruntime, eager, or module:target; onnxruntime@host:port elsewhere.")
]
ByKind = Annotated[list[str] | None, typer.Option(help="KIND=MULTIPLE, such as neuron=32.")]
Minimum = Annotated[int | None, typer.Option(help="Fewest units kept in any group.")]
MaxSparsity = Annotated[float | None, typer.Option(help="Largest fraction removed from any group.")]
PerGroup = Annotated[list[str] | None, typer.Option(help="GLOB=FRACTION: largest fraction there.")]
Ignore = Annotated[list[str] | None, typer.Option(help="Glob over parameters, modules, groups that stay.")]
BatchSize = Annotated[int | None, typer.Option(help="Items in a batch of a data file. (default: 32)")]
RunYaml = Annotated[str | None, typer.Option(help="YAML file with the same arguments; those given here win.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result in the output folder.")]
Multiple = Annotated[int | None, typer.Option(help="Kept counts are multiples of this.")]
CriterionName = Annotated[str | None, typer.Option(help="How important each unit is. (default: magnitude)")]
AllocationName = Annotated[
    str | None,
    typer.Option(help="How much goes where: uniform, global, knapsack, measured, or module:name. (default: global)"),
]


def print_json(value: Any) -> None:
    """JSON, to standard output."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def say(words: str) -> None:
    """Words for a person, to standard error."""
    Console(stderr=True).print(words, markup=False, soft_wrap=True)


def progress(words: str) -> None:
    """What is being done, on a terminal; elsewhere only with --verbose."""
    log.info("%s", words)
    console = Console(stderr=True)
    if console.is_terminal and not log.isEnabledFor(logging.INFO):
        console.print(Text(words, style="dim"))


def seed_(number: int) -> None:
    """Seed what torch draws."""
    import torch

    torch.manual_seed(number)


def pairs(option: str, values: list[str] | None, kind: type[int] | type[float]) -> dict[str, Any] | None:
    """``NAME=NUMBER`` options as a mapping."""
    if not values:
        return None
    found = {}
    for text in values:
        name, _, number = text.rpartition("=")
        try:
            found[name] = kind(number)
        except ValueError:
            name = ""
        if not name:
            raise ArgumentError(f"{option} {text!r} is not NAME=NUMBER")
    return found


def one_or_all(values: list[str] | None) -> str | list[str] | None:
    """An option that may be repeated: its text if it stands once, else all of them."""
    return values[0] if values and len(values) == 1 else values


class block_progress:
    """A bar by block on standard error, with the time left and the peak memory; without a terminal, the log."""

    def __enter__(self) -> Any:
        from secateur.llm.memory import peak_bytes

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[peak]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar.start()
        task = self.bar.add_task("reading", total=None, peak="")

        def told(done: int, of: int, words: str) -> None:
            peak = f"peak {peak_bytes() / 1e9:.2f} GB"
            log.info("%d of %d: %s, %s", done, of, words, peak)
            self.bar.update(task, completed=done, total=of, description=words, peak=peak)

        return told

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
