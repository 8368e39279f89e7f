"""The command that trains a pruned language model: ``secateur llm recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.llm import Device
from secateur.cli.options import Force, Json, Seed, print_json, say
from secateur.errors import ArgumentError, DataError

Pruned = Annotated[str, typer.Argument(help="Folder of the pruned model.", show_default=False)]


def recover(
    model: Pruned,
    dense: Annotated[str, typer.Option(help="Folder of the model that it was pruned from.")],
    text: Annotated[Path, typer.Option(help="Text file, UTF-8: any text that is like what the model is used for.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; the same command takes up a killed run.")],
    window: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Windows at once.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. (default: 1e-4; with --lora 1e-3)")] = None,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Train low-rank updates of this rank, and merge them.")
    ] = None,
    hidden: Annotated[float, typer.Option(min=0, help="Weight of the blocks' hidden states beside the logits.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of both models' distributions.")] = 1.0,
    held_out: Annotated[int, typer.Option(min=0, help="Windows to keep aside, by which the best are kept.")] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Run blocks again in the backward pass: less memory, more time.")
    ] = False,
    device: Device = "cpu",
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a pruned language model to say what the dense one says; its zeros stay zeros."""
    from secateur.llm.lora import Lora
    from secateur.llm.recover_folder import recover_folder
    from secateur.llm.texts import tokenizer_of, tokens_of

    if not temperature > 0:
        raise ArgumentError(f"--temperature {temperature:g}: give a number above 0; 1 is the models' own distributions")
    if not text.is_file():
        raise ArgumentError(f"--text {text}: no such file")
    try:
        ids = tokens_of([text.read_text(encoding="utf-8")], tokenizer_of(Path(dense).expanduser()))
    except UnicodeDecodeError as error:
        raise DataError(f"{text} is not UTF-8 text: {error}") from error
    if len(ids) < window * (held_out + 1):
        raise DataError(
            f"{text} has {len(ids)} tokens, too few for windows of {window} ({held_out} held out): give more text"
        )
    done = recover_folder(
        model, dense, ids[: len(ids) // window * window].view(-1, window), out, steps=steps, batch=batch,
        accumulate=accumulate, lr=lr, lora=None if lora is None else Lora(lora), hidden=hidden, temperature=temperature,
        held_out=held_out, checkpointing=checkpointing, seed=seed or 0, device=device, force=force,
    )  # fmt: skip
    if as_json:
        print_json({**done.told, "folder": str(done.folder)})
        return
    loss = done.told["loss"]
    say(
        f"loss on the text it was trained on: {loss[0]:.4g} at first, {loss[-1]:.4g} at last, in nats a token; "
        f"{done.told['seconds']:.0f} s, {done.told['stopped']}\nmodel: {done.folder}"
    )
