"""How true a pruned model stays to the dense one, on data that nothing was fitted on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import example_of, run, tensors_of
from secateur.errors import DataError
from secateur.evidence.quality import Figure, accuracy, agreement, cosine
from secateur.score.calibrate import quiet_eval
from secateur.types import Batches, Floats

EVERY = 4
"""One batch in so many is held back."""


@dataclass(frozen=True)
class Some:
    """Those batches whose position a function chooses, to be gone over many times."""

    batches: Batches
    chosen: Callable[[int], bool]

    def __iter__(self) -> Iterator[Any]:
        return (b for i, b in enumerate(self.batches) if self.chosen(i))


def held_back(batches: Batches) -> tuple[Batches, Batches]:
    """Batches to fit on, and those to judge on: every fourth, the last one where there are two or three.

    Data must come in the same order each time. A single batch serves both ends, since there is nothing else.

    Raises:
        DataError: there are none.

    Example:
        >>> fit, judge = held_back([0, 1, 2, 3, 4])
        >>> list(fit), list(judge)
        ([0, 1, 2, 4], [3])
    """
    count = sum(1 for _ in itertools.islice(batches, EVERY))
    if not count:
        raise DataError("data is empty: it must hold at least one batch")
    if count == 1:
        return batches, batches
    last = min(count, EVERY) - 1
    fit, judge = Some(batches, lambda i: i % EVERY != last), Some(batches, lambda i: i % EVERY == last)
    return (list(fit), judge) if isinstance(batches, Sequence) else (fit, judge)


def fidelity(dense: nn.Module, batches: Batches) -> Callable[[nn.Module], dict[str, Figure]]:
    """A function that judges a model by how near its outputs come to the dense model's.

    The first figure is the mean over items of the cosine between the first outputs,
    ``<a_i, b_i> / (|a_i| |b_i|)``, 0 where only one of them is zero. Where batches have classes as targets, the share
    of items on which both name the same class and the accuracy follow. The dense outputs are computed once and kept.

    Args:
        dense: the whole model.
        batches: examples, or pairs ``(example, targets)``; nothing should have been fitted on them.

    Raises:
        DataError: (when called) fewer than two items, or outputs that are not finite.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> fidelity(net, [torch.ones(4, 3)])(net)["fidelity to dense"].value
        1.0
    """
    split = example_of(dense)
    kept: list[Floats] = []

    def outputs(model: nn.Module) -> list[Floats]:
        with quiet_eval(model), torch.inference_mode():
            return [_rows(run(model, split(batch)[0])) for batch in batches]

    def judge(model: nn.Module) -> dict[str, Figure]:
        if not kept:
            kept.extend(outputs(dense))
        theirs = kept if model is dense else outputs(model)
        cosines = np.concatenate([_cosines(a, b) for a, b in zip(kept, theirs, strict=True)])
        beside = np.stack([cosines, np.sqrt(np.maximum(1 - cosines**2, 0.0))], axis=1)
        found = {"fidelity to dense": cosine(np.tile([1.0, 0.0], (len(cosines), 1)), beside)}
        labels = [split(batch)[1] for batch in batches]
        if all(_classes(t, a) for t, a in zip(labels, kept, strict=True)):
            whole, small = np.concatenate(kept), np.concatenate(theirs)
            found["agreement with dense"] = agreement(whole, small)
            found["accuracy"] = accuracy(small.argmax(axis=1), np.concatenate([t.cpu().numpy() for t in labels]))
        return found

    return judge


def _rows(output: Any) -> Floats:
    """The first floating output, one row an item."""
    for t in tensors_of(output):
        if t.is_floating_point():
            rows: Floats = t.detach().cpu().double().reshape(t.shape[0] if t.dim() else 1, -1).numpy()
            return rows
    raise DataError("fidelity: the model gives no floating-point tensor: give a quality function of your own")


def _cosines(a: Floats, b: Floats) -> Floats:
    if a.shape != b.shape or not np.isfinite(b).all():
        raise DataError(f"fidelity: outputs of shape {b.shape} beside {a.shape}, or not finite: nothing to compare")
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = norms[0] * norms[1]
    out = np.divide((a * b).sum(axis=1), both, out=np.zeros(len(a)), where=both > 0)
    out[(a == b).all(axis=1)] = 1.0  # exactly, rows of zeros too
    clipped: Floats = np.clip(out, -1.0, 1.0)
    return clipped


def _classes(targets: Any, outputs: Floats) -> bool:
    """Whether targets are one class an item."""
    return (
        isinstance(targets, Tensor)
        and targets.dim() == 1
        and not targets.is_floating_point()
        and len(targets) == len(outputs)
        and outputs.shape[1] > 1
        and 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]
    )
