"""Several processes on one model: each runs a part of the calibration data, and solves a part of the matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def rank() -> int:
    """Which process this is; 0 if it is the only one.

    Example:
        >>> rank(), size()
        (0, 1)
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """How many processes there are: as many as ``torch.distributed`` was set up with."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def everyones(value: Any) -> list[Any]:
    """What each process gives, by rank."""
    if size() == 1:
        return [value]
    out: list[Any] = [None] * size()
    dist.all_gather_object(out, value)
    return out


def sum_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over the processes, in place."""
    if size() > 1:
        for t in tensors:
            dist.all_reduce(t)


def sent_(tensor: Tensor, owner: int) -> None:
    """Replace a tensor by the one that a process has, in place."""
    if size() > 1:
        whole = tensor.contiguous()
        dist.broadcast(whole, owner)
        tensor.copy_(whole)


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


def first_tells(value: Any) -> Any:
    """What the first process gives."""
    return everyones(value)[0]


def own_device(device: torch.device | str) -> torch.device:
    """The device of this process: of several, ``cuda`` stands for one of its own."""
    if str(device) == "cuda" and size() > 1:
        return torch.device("cuda", rank() % torch.cuda.device_count())
    return torch.device(device)
