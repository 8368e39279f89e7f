"""Which blocks can go, one after another, by what the model predicts without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import ArgumentError
from secateur.llm.blocks import blocks_of
from secateur.llm.shrink.effect import DENSE, Effects
from secateur.llm.shrink.tail import Tail
from secateur.llm.source import Source
from secateur.llm.walk import Walk, batches_of


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
    blocks = len(blocks_of(source.skeleton()))
    if not 0 < count < blocks:
        raise ArgumentError(f"{count} of {blocks} blocks are to go: drop at least one and keep at least one")
    batches = batches_of(tokens, batch)
    found: list[tuple[int, float]] = []
    for _ in range(count):
        gone = {b for b, _ in found}
        walk, effects = Walk.begin(source, batches, device=device, dtype=dtype), Effects(len(batches))
        for index in range(len(walk)):
            live = walk.live(index)
            tried = [] if index in gone else [(str(index), None)]
            effects.step(live, tried, gone=index in gone)
        tail = Tail(source, walk.paths, dtype, device)
        losses = effects.losses(len(walk), lambda i, hidden, tail=tail: tail(batches[i].to(device), hidden), batches)  # type: ignore[misc]
        order = sorted((loss, int(key)) for key, loss in losses.items() if key != DENSE)
        found.append((order[0][1], order[0][0]))
    return found
