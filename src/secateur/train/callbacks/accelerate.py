"""Sparse training in a loop of one's own with Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateur.errors import ArgumentError
from secateur.train.sparse import Method, Sparse

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *others: Any,
    method: Method,
    weights: Mapping[str, nn.Parameter] | None = None,
) -> tuple[Any, ...]:
    """`Accelerator.prepare`, and a `Sparse` on what it gives back, saved and loaded with the accelerator's state.

    Args:
        accelerator: yours. model, optimizer: as they go to ``accelerator.prepare``. others: loaders, a scheduler.
        method: such as `gmp`. weights: name -> parameter; `sc.prunable` by default.

    Returns:
        model, optimizer, the others, all prepared, and the `Sparse`, whose ``strip`` ends it.

    Raises:
        ArgumentError: accelerator is none: ``pip install 'secateur[huggingface]'`` brings it.

    Example:
        >>> from accelerate import Accelerator
        >>> from secateur.train.schedule import one_shot
        >>> from secateur.train.dynamic import gmp
        >>> net = nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net, optimizer, sparse = prepare(Accelerator(cpu=True), net, optimizer, method=gmp(one_shot(0.5)))
        >>> sparse.masks.sparsity
        0.5
    """
    for needed in ("prepare", "register_for_checkpointing"):
        if not hasattr(accelerator, needed):
            raise ArgumentError(
                f"accelerator must be an accelerate.Accelerator (pip install 'secateur[huggingface]'), "
                f"got {type(accelerator).__name__}"
            )
    ready = tuple(accelerator.prepare(model, optimizer, *others))
    sparse = Sparse(ready[0], ready[1], method, weights)
    accelerator.register_for_checkpointing(sparse)
    return (*ready, sparse)
