"""What a cut in one block costs the model's predictions: measured, block after block, one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.llm.live import Live

Logits = Callable[[int, Tensor], Tensor]
"""``(batch number, hidden states behind the last block) -> scores of the next token``."""

DENSE = "dense"
"""The stream that nothing was changed in."""


@dataclass(eq=False)
class Effects:
    """Streams that leave the dense one at one block each, and go on through dense blocks.

    Attributes:
        batches: how many of the calibration batches they run on, from the first.
        folder: where they are between two blocks, for a run that is killed, or None.
        every: which positions are compared: each ``every``-th. What lies behind the blocks works on each by itself.
        streams: what was changed -> hidden states of each batch.

    Memory: the hidden states of these batches, a stream. Time: half a pass over them, a stream.
    """

    batches: int
    folder: Path | None = None
    every: int = 4
    streams: dict[str, list[Tensor]] = field(default_factory=dict)

    def step(self, live: Live, changed: Iterable[tuple[str, nn.Module | None]], gone: bool = False) -> None:
        """Take all streams through a block; ``changed`` begin here: another block in its place, or (None) no block.

        ``gone``: the block is not there: the streams pass it by.
        """
        if live.index == 0:
            self.streams = {DENSE: [live.hidden[i] for i in range(self.batches)]}
        elif not self.streams:
            self._read(live.index)
        dense = self.streams[DENSE]
        new = {
            key: [h if module is None else live.run(i, h, module) for i, h in enumerate(dense)]
            for key, module in changed
        }
        for key, hidden in self.streams.items() if not gone else ():
            self.streams[key] = [live.run(i, h) for i, h in enumerate(hidden)]
        self.streams |= new
        self._write(live.index + 1)

    def divergences(self, logits: Logits) -> dict[str, float]:
        """Mean over the compared positions of ``KL(dense || changed)`` of the next token, in nats.

        Args:
            logits: of hidden states at these positions.
        """
        total, rows = dict.fromkeys(self.streams.keys() - {DENSE}, 0.0), 0
        for number, hidden in enumerate(self.streams[DENSE]):
            right = F.log_softmax(logits(number, self._compared(hidden)).float(), -1)
            rows += right.shape[:-1].numel()
            for key in total:
                left = F.log_softmax(logits(number, self._compared(self.streams[key][number])).float(), -1)
                total[key] += float((right.exp() * (right - left)).sum().double())
        return {key: max(value, 0.0) / rows for key, value in total.items()}

    def _compared(self, states: Tensor) -> Tensor:
        return states[:, (states.shape[1] - 1) % self.every :: self.every]

    def losses(self, logits: Logits, ids: Sequence[Tensor]) -> dict[str, float]:
        """Mean negative log-likelihood of the next token, in nats, of every stream."""
        total, rows = dict.fromkeys(self.streams, 0.0), 0
        for number, batch in enumerate(ids[: self.batches]):
            rows += batch[:, 1:].numel()
            for key, hidden in self.streams.items():
                scores = logits(number, hidden[number])[:, :-1].flatten(0, 1).float()
                total[key] += float(F.cross_entropy(scores, batch[:, 1:].flatten().to(scores.device), reduction="sum"))
        return {key: value / rows for key, value in total.items()}

    def _write(self, block: int) -> None:
        if self.folder is None:
            return
        flat = {f"{i}/{key}": h.contiguous() for key, hidden in self.streams.items() for i, h in enumerate(hidden)}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{block:05}.part"
        save_file(flat, part)
        part.replace(self.folder / f"{block:05}.safetensors")
        for old in self.folder.glob("*.safetensors"):
            if int(old.stem) < block - 1:
                old.unlink()

    def _read(self, block: int) -> None:
        assert self.folder is not None, "a stream that goes on needs the folder that it was kept in"
        flat: Mapping[str, Tensor] = load_file(self.folder / f"{block:05}.safetensors")
        for name in sorted(flat, key=lambda n: int(n.partition("/")[0])):
            self.streams.setdefault(name.partition("/")[2], []).append(flat[name])


def finish(effects: Effects, blocks: int, logits: Logits) -> dict[str, float]:
    """`Effects.divergences` behind the last block, read back where the run was killed there."""
    if not effects.streams:
        effects._read(blocks)
    with torch.no_grad():
        return effects.divergences(logits)
