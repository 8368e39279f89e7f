"""Training flags, gradients and random state: set for the time of a recovery, put back after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put back every module's training flag and every parameter's ``requires_grad`` on the way out."""
    training = [(m, m.training) for m in model.modules()]
    grads = [(p, p.requires_grad) for p in model.parameters()]
    dropout = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.RNNBase)]
    try:
        yield
    finally:
        for m, flag in training:
            m.training = flag
        for p, flag in grads:
            p.requires_grad_(flag)
        for rnn, p_drop in dropout:
            rnn.dropout = p_drop


def train_mode_(model: nn.Module, dropout: bool, batch_norm: bool) -> None:
    """Ready for gradients, with dropout and batch statistics only where asked for."""
    model.train(dropout)
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.train(batch_norm)
        elif isinstance(m, nn.RNNBase) and not dropout:
            m.train()  # cuDNN has no backward in eval mode
            m.dropout = 0.0


@dataclass(frozen=True, eq=False)
class Rng:
    """State of the random generators of torch (CPU), numpy and Python."""

    torch: Tensor
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> Rng:
        """The present state."""
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate())

    @classmethod
    def seeded(cls, *seed: int) -> Rng:
        """A state that is a function of the seed alone."""
        words = np.random.SeedSequence([s % 2**63 for s in seed]).generate_state(3)
        return cls(
            torch.Generator().manual_seed(int(words[0])).get_state(),
            np.random.RandomState(int(words[1])).get_state(),
            random.Random(int(words[2])).getstate(),
        )

    def set(self) -> None:
        """Make this the present state."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def swap(self) -> Rng:
        """Make this the present state and return the one before."""
        old = Rng.now()
        self.set()
        return old

    def to_json(self) -> dict[str, Any]:
        """Plain data: lists and numbers."""
        kind, keys, *rest = self.numpy
        return {
            "torch": self.torch.tolist(),
            "numpy": [kind, keys.tolist(), *rest],
            "python": [self.python[0], list(self.python[1]), self.python[2]],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Rng:
        """The inverse of ``to_json``."""
        kind, keys, *rest = data["numpy"]
        version, words, gauss = data["python"]
        return cls(
            torch.tensor(data["torch"], dtype=torch.uint8),
            (kind, np.array(keys, dtype=np.uint32), *rest),
            (version, tuple(words), gauss),
        )


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Seed the generators inside, and put them back on the way out."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    outer = Rng.seeded(seed).swap()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        outer.set()
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
