"""A distillation under way: its parts, and its objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import run
from secateur.errors import DataError
from secateur.train.batches import Source, not_finite, to_device
from secateur.train.hidden import paired, project
from secateur.train.recovery import History
from secateur.train.settings import Settings
from secateur.types import Example

Seen = dict[str, list[Tensor]]
Validation = Callable[[nn.Module], float] | Source | None


@dataclass
class At:
    """Where a run is: plain data, saved as JSON."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    initial: float | None = None
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    window: list[float] = field(default_factory=list)
    stopped: str = ""

    def history(self) -> History:
        """For the report."""
        return History(
            tuple(self.steps),
            tuple(self.loss),
            tuple(self.validation),
            self.seconds,
            self.best_step,
            self.stopped,
            self.initial,
        )


@dataclass
class Run:
    """A distillation under way.

    Attributes:
        learned: what the optimizer changes: ``weights/NAME`` and ``projection/PATH``.
        seen: hidden states of the small and of the dense model's last forward.
        pairs: student path -> teacher path.
        ema, best: copies by the name they have in the model.
        pending: ``(what, value, batch)`` of figures that were not yet looked at.
        answers: what the dense model answered to a batch, by the batch's identity, where that is kept.
    """

    small: nn.Module
    dense: nn.Module
    settings: Settings
    total: int
    split: Callable[[Any], tuple[Example, Any]]
    pairs: dict[str, str]
    seen: tuple[Seen, Seen]
    validation: Validation
    device: torch.device
    at: At = field(default_factory=At)
    learned: dict[str, nn.Parameter] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    ema: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    pending: list[tuple[str, Tensor, Any]] = field(default_factory=list)
    answers: dict[int, tuple[Any, Seen]] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """What training can change: trained parameters and all buffers."""
        trained = {k: p.data for k, p in self.small.named_parameters() if p.requires_grad}
        return trained | dict(self.small.named_buffers())


def objective(r: Run, raw: Any, lasting: bool) -> Tensor:
    """The loss of one batch: output and hidden states; ``lasting`` batches come back as the same object."""
    s, batch = r.settings, to_device(raw, r.device)
    example, _ = r.split(batch)
    for seen in r.seen:
        for states in seen.values():
            states.clear()
    teacher, taught = r.answers.get(id(raw)) or _answer(r, raw, example, lasting)
    student = run(r.small, example)
    total = torch.zeros((), device=r.device)
    if s.weight_output:
        loss = s.loss(student, teacher, batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(f"loss must return a scalar tensor, got {tuple(getattr(loss, 'shape', ()))} {type(loss)}")
        total = total + s.weight_output * loss
    if r.pairs and s.weight_hidden:
        mask = None if s.hidden_mask is None else s.hidden_mask(batch)
        terms = [
            s.hidden_loss(project(ours, theirs, r.learned.get(f"projection/{path}")), theirs, mask)
            for path, ours, theirs in paired(r.pairs, r.seen[0], taught)
        ]
        total = total + s.weight_hidden * torch.stack(terms).mean()
    return total


def _answer(r: Run, raw: Any, example: Example, lasting: bool) -> tuple[Any, Seen]:
    """What the dense model says, and its hidden states; kept for the next epoch where that was asked for."""
    with torch.no_grad():  # not inference_mode: its tensors cannot be saved for the student's backward
        output = run(r.dense, example)
    answer = output, {path: list(states) for path, states in r.seen[1].items()}
    if r.settings.keep_answers and lasting:
        r.answers[id(raw)] = answer
    return answer


def make_optimizer_(r: Run, projections: Mapping[str, Tensor]) -> None:
    """What is learned, its average, and AdamW over it; no weight decay on vectors."""
    s = r.settings
    r.learned = {f"weights/{k}": p for k, p in r.small.named_parameters() if p.requires_grad}
    if s.ema is not None:
        r.ema = {k.removeprefix("weights/"): p.detach().clone() for k, p in r.learned.items()}
    r.learned |= {f"projection/{k}": nn.Parameter(w.to(r.device)) for k, w in projections.items()}
    params = list(r.learned.values())
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": s.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = r.device.type in ("cpu", "cuda")
    r.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=s.lr, betas=s.betas, fused=fused)


def look_(r: Run) -> None:
    """Bring the pending figures to the host and stop at the first that is not finite."""
    if not r.pending:
        return
    values = torch.stack([v.to(torch.float64) for _, v, _ in r.pending]).tolist()
    for (what, _, batch), value in zip(r.pending, values, strict=True):
        if not math.isfinite(value):
            bad = not_finite(batch)
            raise DataError(
                f"distillation, step {r.at.step}: {what} is {value}; "
                + (f"in the batch {bad[0]}: clean the data" if bad else "the batch is finite: lower lr, or see loss")
            )
        if what.startswith("loss"):
            r.at.window.append(value * r.settings.accumulate)
    r.pending.clear()


@contextmanager
def averaged(r: Run) -> Iterator[None]:
    """The averaged weights in place of the last ones, where an average is kept."""

    def swap() -> None:
        for k, average in r.ema.items():
            p = r.learned[f"weights/{k}"]
            r.ema[k], p.data = p.data, average

    swap()
    try:
        yield
    finally:
        swap()


def copy_(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy ``weights/NAME`` into ``NAME`` where there is one."""
    with torch.no_grad():
        for k, v in into.items():
            if f"weights/{k}" in tensors:
                v.copy_(tensors[f"weights/{k}"])
