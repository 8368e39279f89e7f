"""Which blocks can go, one after another, by what the model predicts without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.atomic import write_bytes
from secateur.digest import digest_of
from secateur.errors import ArgumentError
from secateur.llm.blocks import blocks_of
from secateur.llm.shrink.effect import DENSE, Effects, on_disk
from secateur.llm.shrink.options import Choice, Menu, Price, fits, refuse
from secateur.llm.shrink.prices import Anatomy, droppable
from secateur.llm.shrink.tail import Tail
from secateur.llm.source import Source
from secateur.llm.walk import Progress, Walk, batches_of


def greedy_depth(
    source: Source,
    tokens: Tensor | Sequence[Tensor],
    count: int,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[tuple[int, float]]:
    """Blocks in the order in which they go, each with the mean negative log-likelihood without it and those before.

    In every round each block that is left is tried out, and the one goes whose absence leaves the lowest perplexity
    (SLEB, arXiv:2402.09025); ties go to the earlier block.

    Args:
        source: the model. tokens: int64 (samples, window). count: how many go.
        batch: samples at once. device, dtype: to compute in.

    Raises:
        ArgumentError: none are to go, or as many as there are.

    Time: ``count`` rounds of half a pass a block. Memory: one block, and the hidden states once for every block.
    """
    paths = blocks_of(source.skeleton())
    if not 0 < count < len(paths):
        raise ArgumentError(f"{count} of {len(paths)} blocks are to go: drop at least one and keep at least one")
    batches, found = batches_of(tokens, batch), list[tuple[int, float]]()
    for _ in range(count):
        found.append(_next(source, batches, [b for b, _ in found], device, dtype))
    return found


def until_met(
    anatomy: Anatomy,
    menu: Menu,
    prices: Sequence[Price],
    batches: Sequence[Tensor],
    notes: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Blocks go one after another, as in `greedy_depth`, until the budgets hold; a killed run goes on at its round.

    Args:
        menu: of which nothing but blocks is taken. batches: that perplexity is taken on.
        notes: a folder, where the order of this model on these batches is kept.
        memory: bytes that the process may take: hidden states that do not fit go to disk, beside the notes.

    Raises:
        BudgetError: they hold with no blocks that can go; names the closest. Or a block does not fit into the memory.
    """
    can = droppable(anatomy)
    about = f"{anatomy.source.identity()} {dtype} {can.tolist()}"
    file = notes / f"{digest_of([(about, torch.zeros(0)), *((str(i), b) for i, b in enumerate(batches))])}.json"
    found: list[tuple[int, float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    many = 0
    while True:
        gone = tuple(sorted(b for b, _ in found[:many]))
        choice = Choice({f.name: f.units for f in menu.families if f.block not in gone}, gone, 0.0)
        if fits(choice, menu, prices):
            return choice
        left = [b for b in range(menu.blocks) if can[b] and b not in gone]
        if not left or many == menu.blocks - 1:
            can &= np.arange(menu.blocks) != (np.argmin(prices[0].dropped) if can.all() else -1)  # one always stays
            refuse(replace(menu, drop=np.where(can, 0.0, np.inf)), prices)
        if many == len(found):
            if progress is not None:
                progress(many, menu.blocks, f"layer {many + 1} that goes")
            found.append(_next(anatomy.source, batches, list(gone), device, dtype, left, memory, notes / "states"))
            notes.mkdir(parents=True, exist_ok=True)
            write_bytes(file, json.dumps(found).encode())
        many += 1


def _next(
    source: Source,
    batches: Sequence[Tensor],
    gone: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype,
    tried: Sequence[int] | None = None,
    memory: float | None = None,
    place: Path | None = None,
) -> tuple[int, float]:
    """The block whose absence, beside those that are gone, leaves the least loss; and that."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)  # of a round that was killed
    walk = Walk.begin(source, batches, device=device, dtype=dtype, memory=memory, moments=0, folder=place)
    large = on_disk(memory, 1 + len(walk), sum(b.numel() for b in batches), walk.skeleton, dtype)
    effects = Effects(len(batches), place / "streams" if place is not None and large else None)
    for index in range(len(walk)):
        mine = index not in gone and (tried is None or index in tried)
        effects.step(walk.live(index), [(str(index), None)] if mine else [], gone=index in gone)
    tail = Tail(source, walk.paths, dtype, device)
    losses = effects.losses(len(walk), lambda ids, hidden: tail(ids.to(device), hidden), batches)
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
    loss, block = min((loss, int(key)) for key, loss in losses.items() if key != DENSE)
    return block, loss
