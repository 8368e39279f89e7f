"""What a cut in one block costs the model's predictions: measured, block after block, one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.calling import tensors_of
from secateur.types import Example

Logits = Callable[[int, Tensor], Tensor]
"""``(batch number, hidden states behind the last block) -> logits``."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One block, and how it is called.

    Attributes:
        index, path: of the block. module: with its weights, in evaluation mode.
        calls: of each batch, everything but the hidden states, by name.
        stream: the name of the hidden states among them.
    """

    index: int
    path: str
    module: nn.Module
    calls: Sequence[Mapping[str, Any]]
    stream: str = "hidden_states"

    def example(self, number: int, hidden: Tensor) -> Example:
        """What the block is called with."""
        return {self.stream: hidden, **self.calls[number]}

    def __call__(self, number: int, hidden: Tensor, module: nn.Module | None = None) -> Tensor:
        """Hidden states behind the block, or behind another in its place."""
        with torch.no_grad():
            return tensors_of((module or self.module)(**self.example(number, hidden)))[0]


@dataclass(eq=False)
class Effects:
    """Streams that leave the dense one at one block each, and go on through dense blocks.

    Attributes:
        streams: what was changed -> hidden states of each batch.
    """

    streams: dict[Any, list[Tensor]] = field(default_factory=dict)

    def step(self, stage: Stage, dense: Sequence[Tensor], changed: Iterable[tuple[Any, nn.Module | None]]) -> None:
        """Take all streams through a block; ``changed`` begin here: another block in its place, or (None) no block."""
        for hidden in self.streams.values():
            for number, h in enumerate(hidden):
                hidden[number] = stage(number, h)
        for key, module in changed:
            self.streams[key] = [h if module is None else stage(number, h, module) for number, h in enumerate(dense)]

    def divergences(self, dense: Sequence[Tensor], logits: Logits) -> dict[Any, float]:
        """Mean over tokens of ``KL(dense || changed)`` of the next token, in nats."""
        total, rows = dict.fromkeys(self.streams, 0.0), 0
        for number, hidden in enumerate(dense):
            right = F.log_softmax(logits(number, hidden).float(), -1)
            rows += right.shape[:-1].numel()
            for key, streams in self.streams.items():
                left = F.log_softmax(logits(number, streams[number]).float(), -1)
                total[key] += float((right.exp() * (right - left)).sum().double())
        return {key: max(value, 0.0) / rows for key, value in total.items()}
