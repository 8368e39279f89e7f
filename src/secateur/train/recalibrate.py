"""Batch norm statistics measured anew after a cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.calling import example_of, run
from secateur.errors import DataError
from secateur.train.batches import not_finite, one_epoch, source_of, to_device
from secateur.train.modes import kept_modes
from secateur.train.recovery import History, Recovery
from secateur.types import Batches, Plan

log = logging.getLogger("secateur")

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def recalibrate_bn(
    batches: Batches | Callable[[int], Batches], passes: int = 1, name: str = "bn recalibration"
) -> Recovery:
    """Recovery by measuring the running statistics of batch norms anew.

    Each batch norm's mean and variance are reset and become the plain average over the batches, ``1/k`` for
    the ``k``-th, of the batch's mean and (unbiased) variance; only batch norms are in training mode, no
    gradient is taken and nothing else changes. A model without batch norm is left as it is, and the history
    says so. A batch norm that the batches do not reach keeps its old statistics.

    Before `sc.refit` it does harm: the refit aims at the dense model's outputs, which fit the dense model's statistics.
    Use it after a refit, or instead of one.

    Args:
        batches: 50 to 100 batches of the training distribution, 64 or more examples each; with or without
            targets.
        passes: how often to go over them (more than once changes only what follows a random augmentation).
        name: as it stands in the report.

    Raises:
        ValueError: ``passes`` is less than 1.
        DataError: (when run) there are no batches, a batch holds NaN or inf or does not fit the model, or
            one-shot batches are to be passed more than once; the old statistics are back then.

    Sun et al., 2020 (EagleEye, arXiv:2007.02491).

    Example:
        >>> net = nn.BatchNorm1d(1)
        >>> history = recalibrate_bn([torch.tensor([[1.0], [3.0]])]).run(net, net, None)
        >>> net.running_mean.item(), net.running_var.item()
        (2.0, 2.0)
        >>> history.stopped
        'recalibrated 1 batch norms on 1 batches'
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")

    def run_(small: nn.Module, dense: nn.Module, plan: Plan | None) -> History:
        start = time.perf_counter()
        norms = {k: m for k, m in small.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
        if not norms:
            log.info("%s: the model has no batch norm with running statistics", name)
            return History(stopped="the model has no batch norm with running statistics: nothing to recalibrate")
        before = {k: (m.momentum, {s: _clone(m, s) for s in STATISTICS}) for k, m in norms.items()}
        done = False
        try:
            with kept_modes(small), torch.no_grad():
                n = _measure_(small, norms, batches, passes)
            _check(norms)
            done = True
        finally:
            for k, m in norms.items():
                momentum, old = before[k]
                m.momentum = momentum
                if not done or not m.num_batches_tracked:
                    _restore_(m, old)
        return History(
            seconds=time.perf_counter() - start,
            stopped=f"recalibrated {len(norms)} batch norms on {n} batches",
        )

    return Recovery(name, run_)


def _measure_(
    small: nn.Module,
    norms: dict[str, _BatchNorm],
    batches: Batches | Callable[[int], Batches],
    passes: int,
) -> int:
    source, split = source_of(batches, 0, shuffle=False), example_of(small)
    if source.once and passes > 1:
        raise DataError(f"{passes} passes need batches that can be gone over again: pass a list or a DataLoader")
    small.eval()
    for m in norms.values():
        m.reset_running_stats()
        m.momentum = None
        m.train()
    device = next((t.device for t in (*small.parameters(), *small.buffers())), torch.device("cpu"))
    numbers = count()
    done = 0
    for number in range(passes):
        for raw, i in zip(one_epoch(source, 0, number), numbers):  # noqa: B905 (the second has no end)
            bad = not_finite(raw)
            if bad:
                raise DataError(f"bn recalibration, batch {i}: {bad[0]}; clean the data")
            try:
                run(small, split(to_device(raw, device))[0])
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise DataError(f"bn recalibration, batch {i} does not fit the model: {error}") from error
            done += 1
    if not done:
        raise DataError("bn recalibration: batches is empty; give 50 to 100 batches of training data")
    return done


def _check(norms: dict[str, _BatchNorm]) -> None:
    for k, m in norms.items():
        if not all(torch.isfinite(getattr(m, s)).all() for s in STATISTICS[:2]):
            raise DataError(f"bn recalibration: the statistics of {k} became NaN or inf; the old ones are kept")


def _clone(m: _BatchNorm, statistic: str) -> Tensor:
    value: Tensor = getattr(m, statistic)
    return value.clone()


def _restore_(m: _BatchNorm, old: dict[str, Tensor]) -> None:
    for s, value in old.items():
        getattr(m, s).copy_(value)
