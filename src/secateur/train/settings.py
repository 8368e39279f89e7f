"""The settings of a distillation, checked when they are given and comparable between runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from secateur.train.losses import Loss


@dataclass(frozen=True, eq=False)
class Settings:
    """See ``distill``."""

    steps: int | None
    epochs: int | None
    loss: Loss
    weight_output: float
    hidden: Sequence[str] | Mapping[str, str]
    weight_hidden: float
    hidden_loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    hidden_mask: Callable[[Any], Tensor] | None
    lr: float
    warmup: float
    schedule: Callable[[int, int], float] | None
    betas: tuple[float, float]
    weight_decay: float
    clip: float | None
    accumulate: int
    keep_answers: bool
    ema: float | None
    trainable: Callable[[str], bool] | None
    dropout: bool
    batch_norm: bool
    validate_every: int | None
    patience: int | None
    checkpoint_every: float
    seed: int

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both (got {self.steps} and {self.epochs})")
        for key in ("steps", "epochs", "accumulate", "validate_every", "patience"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{key} must be a whole number of at least 1, got {value!r}")
        for key, low, high in (
            ("lr", 0, math.inf), ("warmup", 0, 1), ("weight_decay", 0, math.inf), ("clip", 0, math.inf),
            ("ema", 0, 1), ("weight_output", 0, math.inf), ("weight_hidden", 0, math.inf),
            ("checkpoint_every", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{key} must be between {low} and {high}, got {value!r}")
        if not self.weight_output and not (self.hidden and self.weight_hidden):
            raise ValueError("nothing to learn from: weight_output is 0 and no hidden states are matched")

    def factor(self, step: int, steps: int) -> float:
        """Of the learning rate at a step, from 0."""
        if self.schedule is not None:
            return self.schedule(step, steps)
        return warmup_cosine(step, steps, self.warmup)

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able: what must be equal for a run to be continued."""
        skip = {"checkpoint_every", "steps", "epochs", "keep_answers"}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in skip}


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero.

    ``(step + 1) / w`` in the first ``w = ceil(warmup * steps)`` steps, then ``(1 + cos(pi (step - w) / (steps
    - w))) / 2``.

    Example:
        >>> [round(warmup_cosine(i, 8, 0.5), 2) for i in range(9)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _plain(value: Any) -> Any:
    if isinstance(value, partial):
        return [
            _plain(value.func),
            *map(_plain, value.args),
            {k: _plain(v) for k, v in value.keywords.items()},
        ]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else type(value).__qualname__
