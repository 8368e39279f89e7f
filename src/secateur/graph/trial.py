"""Trying a change of a model: on a copy that shares its parameters, with what comes out compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import run
from secateur.graph.copying import duplicate
from secateur.types import Example


def shell(model: nn.Module) -> nn.Module:
    """An evaluation copy of everything but the parameters, which it shares: change no value of theirs."""
    return duplicate(model, {id(p): p for p in model.parameters()}).eval()


@contextmanager
def plainly() -> Iterator[None]:
    """No gradients, and none of the kernels that torch takes only where no hooks are."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def attempt(model: nn.Module, example: Example) -> Any:
    """What a model makes of a copy of an example: caches among the inputs are written to."""
    with plainly():
        return run(model, copy.deepcopy(example))


def apart(left: Sequence[Tensor], right: Sequence[Tensor]) -> str:
    """What tells two lists of outputs apart; "" if they are the same up to the rounding of a few operations."""
    shapes = [tuple(t.shape) for t in left], [tuple(t.shape) for t in right]
    if shapes[0] != shapes[1]:
        return f"its outputs have shapes {shapes[1]}, not {shapes[0]}"
    worst = 0.0
    for x, y in zip(left, right, strict=True):
        if x.dtype != y.dtype:
            return f"its outputs have dtype {y.dtype}, not {x.dtype}"
        if not x.numel() or torch.equal(x, y):
            continue
        if not (x.dtype.is_floating_point or x.dtype.is_complex):
            return "its outputs are others"
        finite = x.abs()[torch.isfinite(x)]
        scale = float(finite.max()) if finite.numel() else 1.0
        if not torch.allclose(x, y, rtol=0, atol=4 * torch.finfo(x.dtype).eps * scale, equal_nan=True):
            worst = max(worst, float((x - y).abs().nan_to_num(torch.inf).max()) / max(scale, 1e-300))
    return f"its outputs are {worst:.1g} away, relative to the largest" if worst else ""
