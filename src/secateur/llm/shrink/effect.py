"""What a cut in one block costs the model's predictions: measured, block after block, one block in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.atomic import write_bytes
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
        folder: where they are between two blocks, one in memory at a time, so that a killed run goes on; or None: all
            are in memory.
        every: which positions are compared: each ``every``-th. What lies behind the blocks works on each by itself.
        keys: what was changed, in the order of the blocks; the first is `DENSE`.
        held: the hidden states of each batch by key, in memory.

    Memory: the hidden states of these batches, once or a stream. Time: half a pass over them, a stream.
    """

    batches: int
    folder: Path | None = None
    every: int = 2
    keys: list[str] = field(default_factory=list)
    held: dict[str, list[Tensor]] = field(default_factory=dict)

    def step(self, live: Live, changed: Iterable[tuple[str, nn.Module | None]], gone: bool = False) -> None:
        """Take all streams through a block; ``changed`` begin here: another block in its place, or (None) no block.

        ``gone``: the block is not there: the streams pass it by.
        """
        at = live.index
        if at == 0:
            self.keys = [DENSE]
            self._put(0, DENSE, [live.hidden[i] for i in range(self.batches)])
        before, dense = self._keys(at), self._get(at, DENSE)
        new = []
        for key, module in changed:
            self._put(at + 1, key, [h if module is None else live.run(i, h, module) for i, h in enumerate(dense)])
            new.append(key)
        for key in before:
            hidden = self._get(at, key)
            self._put(at + 1, key, hidden if gone else [live.run(i, h) for i, h in enumerate(hidden)])
        self._seal(at + 1, [*before, *new])

    def divergences(self, blocks: int, logits: Logits) -> dict[str, float]:
        """Mean over the compared positions of ``KL(dense || changed)`` of the next token, in nats.

        Args:
            blocks: how many there are. logits: of hidden states at these positions.
        """
        right = [
            F.log_softmax(logits(i, self._compared(h)).float(), -1) for i, h in enumerate(self._get(blocks, DENSE))
        ]
        rows, found = sum(r.shape[:-1].numel() for r in right), {}
        for key in self._keys(blocks)[1:]:
            total = 0.0
            for number, hidden in enumerate(self._get(blocks, key)):
                left = F.log_softmax(logits(number, self._compared(hidden)).float(), -1)
                total += float((right[number].exp() * (right[number] - left)).sum().double())
            found[key] = max(total, 0.0) / rows
        return found

    def losses(
        self, blocks: int, scores: Callable[[Tensor, Tensor], Tensor], ids: Sequence[Tensor]
    ) -> dict[str, float]:
        """Mean negative log-likelihood of the next token, in nats, of every stream.

        Args:
            blocks: how many there are. scores: ``(tokens, hidden states) -> scores``, window by window.
            ids: of the batches, (samples, window).
        """
        found, rows = {}, sum(batch[:, 1:].numel() for batch in ids[: self.batches])
        for key in self._keys(blocks):
            total = 0.0
            for window, hidden in _windows(ids, self._get(blocks, key)):
                made = scores(window, hidden)[0, :-1].float()
                total += float(F.cross_entropy(made, window[0, 1:].to(made.device), reduction="sum"))
            found[key] = total / rows
        return found

    def _compared(self, states: Tensor) -> Tensor:
        return states[:, (states.shape[1] - 1) % self.every :: self.every]

    def _keys(self, block: int) -> list[str]:
        """The streams before a block: those of the last run, where that was killed."""
        if not self.keys and self.folder is not None:
            self.keys = json.loads((self.folder / f"{block:05}" / "keys.json").read_text(encoding="utf-8"))
        return self.keys

    def _get(self, block: int, key: str) -> list[Tensor]:
        if self.folder is None:
            return self.held[key]
        found = load_file(self.folder / f"{block:05}" / f"{key.replace('/', '-')}.safetensors")
        return [found[str(i)] for i in range(len(found))]

    def _put(self, block: int, key: str, hidden: list[Tensor]) -> None:
        if self.folder is None:
            self.held[key] = hidden
            return
        here = self.folder / f"{block:05}"
        here.mkdir(parents=True, exist_ok=True)
        whole = {str(i): h.cpu().contiguous() for i, h in enumerate(hidden)}
        save_file(whole, here / f"{key.replace('/', '-')}.safetensors")

    def _seal(self, block: int, keys: list[str]) -> None:
        self.keys = keys
        if self.folder is not None:
            write_bytes(self.folder / f"{block:05}" / "keys.json", json.dumps(keys).encode())
            shutil.rmtree(self.folder / f"{block - 2:05}", ignore_errors=True)


def _windows(ids: Sequence[Tensor], states: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """One at a time: what is made of all at once may be as large as the model."""
    for tokens, hidden in zip(ids, states, strict=False):
        yield from zip(tokens.split(1), hidden.split(1), strict=True)


def on_disk(memory: float | None, streams: int, tokens: int, skeleton: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the hidden states of so many streams go to disk: where they would take over a quarter of a limit."""
    width = getattr(getattr(skeleton, "config", None), "hidden_size", None) or 4096
    return memory is not None and streams * tokens * width * dtype.itemsize > memory / 4
