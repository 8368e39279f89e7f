"""Batches in an order that is a function of seed and epoch, so that a resumed run sees the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from secateur.calling import tensors_of
from secateur.digest import digest_of
from secateur.errors import DataError
from secateur.train.modes import Rng
from secateur.types import Batches

_END = object()


@dataclass(frozen=True)
class Source:
    """Where batches come from.

    Attributes:
        epoch: ``(epoch, skip) -> iterator`` over one epoch without its first ``skip`` batches.
        length: batches in an epoch, or None where that is not known.
        once: there is one epoch only.
        pure: drawing a batch uses no random generator.
    """

    epoch: Callable[[int, int], Iterator[Any]]
    length: int | None
    once: bool = False
    pure: bool = False


def source_of(batches: Batches | Callable[[int], Batches], seed: int, shuffle: bool = True) -> Source:
    """A source for a list (shuffled anew each epoch), a DataLoader, an iterable, or a function of the epoch.

    Raises:
        DataError: it is none of these, or an empty list.

    Example:
        >>> list(source_of([1, 2, 3], seed=0, shuffle=False).epoch(0, 1))
        [2, 3]
    """
    given: Any = batches
    if isinstance(given, (Tensor, Mapping, str, bytes)):
        raise DataError(f"batches is one {type(given).__name__}, not an iterable of batches: pass [batch]")
    if isinstance(given, DataLoader):
        return _from_loader(given)
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise DataError("batches is a Dataset of single samples: pass DataLoader(dataset, batch_size=...)")
    if isinstance(given, Sequence):
        return _from_sequence(given, seed, shuffle)
    if isinstance(given, Iterable):
        if iter(given) is given:
            return Source(lambda epoch, skip: itertools.islice(given, skip, None), None, once=True)
        return Source(lambda epoch, skip: itertools.islice(given, skip, None), _len(given))
    if callable(given):
        return Source(lambda epoch, skip: itertools.islice(given(epoch), skip, None), None)
    raise DataError(
        f"batches must be a list, a DataLoader, an iterable or a function of the epoch, got {type(given).__name__}"
    )


def _from_sequence(batches: Sequence[Any], seed: int, shuffle: bool) -> Source:
    if not len(batches):
        raise DataError("batches is empty: give at least one batch")

    def epoch(number: int, skip: int) -> Iterator[Any]:
        order = np.random.default_rng([seed % 2**63, number]).permutation(len(batches))
        return (batches[i] for i in (order.tolist() if shuffle else range(len(batches)))[skip:])

    return Source(epoch, len(batches), pure=isinstance(batches, (list, tuple)))


def _from_loader(loader: DataLoader[Any]) -> Source:
    def epoch(number: int, skip: int) -> Iterator[Any]:
        batch_sampler = getattr(loader, "batch_sampler", None)
        holders = (loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        for h in holders:
            if isinstance(getattr(h, "generator", None), torch.Generator):
                h.generator.manual_seed(int(torch.randint(2**62, ()).item()))  # type: ignore[union-attr]
            if callable(getattr(h, "set_epoch", None)):
                h.set_epoch(number)  # type: ignore[union-attr]
        return itertools.islice(iter(loader), skip, None)

    return Source(epoch, _len(loader))


def _len(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def one_epoch(source: Source, seed: int, number: int = 0, skip: int = 0) -> Iterator[Any]:
    """The batches of one epoch without its first ``skip``.

    While a batch is drawn, the random generators are the data's own, seeded by ``(seed, number)``: what the
    model draws in between does not change the data.
    """
    if source.pure:
        yield from source.epoch(number, skip)
        return
    rng = Rng.seeded(seed, number)
    batches: Iterator[Any] | None = None
    while True:
        outer = rng.swap()
        try:
            batches = batches if batches is not None else source.epoch(number, skip)
            batch = next(batches, _END)
        finally:
            rng = outer.swap()
        if batch is _END:
            return
        yield batch


def stream(source: Source, seed: int, epoch: int = 0, skip: int = 0) -> Iterator[tuple[int, int, Any]]:
    """``(epoch, position, batch)`` without end, from a place on.

    Raises:
        DataError: an epoch is empty, or a one-shot iterator ended.
    """
    for number in itertools.count(epoch):
        position = skip
        for batch in one_epoch(source, seed, number, skip):
            yield number, position, batch
            position += 1
        if position == 0:
            raise DataError(f"batches is empty in epoch {number}: give at least one batch")
        if source.once:
            raise DataError(
                f"batches is a one-shot iterator and ended after {position} batches, but more are needed: "
                "pass a list, a DataLoader or a function of the epoch"
            )
        skip = 0


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device; other leaves as they are."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(v, device) for v in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(v, device) for v in batch)
    return batch


def not_finite(batch: Any) -> list[str]:
    """Which tensors of a batch hold NaN or inf, in words."""
    bad = []
    for i, t in enumerate(tensors_of(batch)):
        if t.is_floating_point() and not torch.isfinite(t).all():
            count = int((~torch.isfinite(t)).sum())
            bad.append(f"tensor {i} of shape {tuple(t.shape)} has {count} values that are NaN or inf")
    return bad


def batch_digest(batch: Any) -> str:
    """SHA-256 of a batch's tensors."""
    return digest_of((str(i), t) for i, t in enumerate(tensors_of(batch)))
