"""The loop of a distillation: steps, records, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.calling import tensors_of
from secateur.errors import DataError
from secateur.products import fast_for
from secateur.train.batches import Source, not_finite, one_epoch
from secateur.train.modes import train_mode_
from secateur.train.resume import save
from secateur.train.run import Run, averaged, look_, objective


def train_(
    r: Run,
    batches: Iterator[tuple[int, int, Any]],
    folder: Path | None,
    made: Mapping[str, Any],
    interrupted: list[int],
    tell: Callable[[int, str], None],
) -> Any:
    """Steps until they are done or validation stops; returns the last batch."""
    s, at = r.settings, r.at
    every = s.validate_every or max(1, r.total // 20)
    before, begun = at.seconds, time.perf_counter()
    saved_at, micro, raw = begun, 0, None
    train_mode_(r.small, s.dropout, s.batch_norm)
    while at.step < r.total and not (s.patience and at.stale >= s.patience):
        epoch, position, raw = next(batches)
        with fast_for(r.small):
            loss = objective(r, raw, lasting=True) / s.accumulate
            if not loss.requires_grad:
                raise ValueError(
                    "the loss does not depend on any trained parameter: look at trainable, loss and hidden"
                )
            r.pending.append((f"loss of batch {position} of epoch {epoch}", loss.detach(), raw))
            loss.backward()
        micro = (micro + 1) % s.accumulate
        if micro:
            continue
        _step_(r)
        at.step, at.epoch, at.position = at.step + 1, epoch, position + 1
        now = time.perf_counter()
        at.seconds = before + now - begun
        if at.step % every == 0 or at.step == r.total:
            _record_(r)
        tell(at.step, f"loss {at.loss[-1]:.4g}" if at.loss else "")
        if folder is not None and (interrupted or now - saved_at >= s.checkpoint_every):
            save(r, folder, made, raw)
            saved_at = time.perf_counter()
        if interrupted:
            raise KeyboardInterrupt
    return raw


def _step_(r: Run) -> None:
    s, optimizer = r.settings, r.optimizer
    assert optimizer is not None
    if s.clip is not None:
        norm = torch.nn.utils.clip_grad_norm_(r.learned.values(), s.clip)
        r.pending.append(("norm of the gradient", norm, r.pending[-1][2]))
    if r.device.type == "cpu" or r.at.step % 16 == 0:  # elsewhere each look waits for the device
        look_(r)
    for group in optimizer.param_groups:
        group["lr"] = s.lr * s.factor(r.at.step, r.total)
    optimizer.step()
    optimizer.zero_grad()
    if r.ema:
        assert s.ema is not None
        decay = min(s.ema, (1 + r.at.step) / (10 + r.at.step))  # a short memory at first
        weights = [r.learned[f"weights/{k}"].data for k in r.ema]
        torch._foreach_lerp_(list(r.ema.values()), weights, 1 - decay)


def _record_(r: Run) -> None:
    look_(r)
    at = r.at
    at.steps.append(at.step)
    at.loss.append(math.fsum(at.window) / len(at.window))
    at.window.clear()
    if r.validation is None:
        return
    value = validate_(r)
    at.validation.append(value)
    at.stale += 1
    if at.best is None or value < at.best:
        take_best_(r, value)


def take_best_(r: Run, value: float) -> None:
    """Remember the weights as they are."""
    r.at.best, r.at.best_step, r.at.stale = value, r.at.step, 0
    with averaged(r):
        r.best = {k: v.clone() for k, v in r.weights().items()}


def validate_(r: Run) -> float:
    """The objective over the validation batches, each weighted by its rows, or the user's own figure."""
    total, count = 0.0, 0
    with averaged(r), torch.no_grad():
        r.small.eval()
        if isinstance(r.validation, Source):
            for i, raw in enumerate(one_epoch(r.validation, r.settings.seed)):
                with fast_for(r.small):
                    value, rows = objective(r, raw, r.validation.pure).item(), len(tensors_of(r.split(raw)[0])[0])
                if not math.isfinite(value):
                    raise DataError(
                        f"validation batch {i}: loss is {value}; {(not_finite(raw) or ['it is finite'])[0]}"
                    )
                total, count = total + value * rows, count + rows
        elif r.validation is not None:
            total, count = float(r.validation(r.small)), 1
    train_mode_(r.small, r.settings.dropout, r.settings.batch_norm)
    if not count or not math.isfinite(total):
        raise DataError(f"validation gave {total} over {count} rows: give data that are neither empty nor NaN")
    return total / count
