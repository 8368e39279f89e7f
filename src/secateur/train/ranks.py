"""Masks on several ranks: the same on each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.errors import PlanError
from secateur.export.masks import pack, unpack


def group_of(model: nn.Module) -> Any:
    """The process group of a `DistributedDataParallel` model, those of a sharded model's mesh, else None."""
    inner: Any = model
    while isinstance(getattr(inner, "_orig_mod", None), nn.Module):
        inner = inner._orig_mod
    if isinstance(inner, DistributedDataParallel):
        return inner.process_group
    mesh = next((p.device_mesh for p in inner.parameters() if hasattr(p, "device_mesh")), None)
    return None if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]


def everyone(model: nn.Module) -> Any:
    """The model's own group, or all processes where a framework has several and keeps the wrapper to itself."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return group_of(model) or (dist.group.WORLD if several else None)


def _groups(group: Any) -> list[Any]:
    """One after another they reach all ranks; none where there is one process."""
    if not dist.is_available() or not dist.is_initialized():
        return []
    given = group if isinstance(group, (list, tuple)) else [dist.group.WORLD if group is None else group]
    return [g for g in given if dist.get_world_size(g) > 1]


def from_first(masks: Mapping[str, Tensor], group: Any) -> dict[str, Tensor]:
    """The masks of the group's first rank, on every rank: a broadcast of their bits."""
    groups = _groups(group)
    if not groups or not masks:
        return dict(masks)
    packed = [pack(m) for m in masks.values()]
    bits = torch.cat(packed)
    for g in groups:
        dist.broadcast(bits, dist.get_global_rank(g, 0), group=g)
    parts = bits.split([len(p) for p in packed])
    return {n: unpack(b, tuple(m.shape)) for (n, m), b in zip(masks.items(), parts, strict=True)}


def check_same(masks: Mapping[str, Tensor], group: Any = None) -> None:
    """Compare masks across ranks; every rank must call it.

    Raises:
        PlanError: they differ; names which, on every rank.
    """
    told = [f"{n} {tuple(m.shape)}".encode() + pack(m).cpu().numpy().tobytes() for n, m in masks.items()]
    device = next((m.device for m in masks.values()), torch.device("cpu"))
    names = hashlib.sha256(repr(list(masks)).encode()).digest()
    _same([names], device, group, lambda bad: "ranks mask different weights: make the masks alike on all of them")
    _same(
        [hashlib.sha256(t).digest() for t in told],
        device,
        group,
        lambda bad: (
            f"ranks disagree on the masks of {[list(masks)[i] for i in bad][:10]}: call masks.broadcast_(), "
            "or seed what chooses them alike"
        ),
    )


def _same(digests: list[bytes], device: torch.device, group: Any, told: Any) -> None:
    mine = torch.tensor([int.from_bytes(d[:7], "little") for d in digests], dtype=torch.int64, device=device)
    least, most = mine.clone(), mine.clone()
    for g in _groups(group):
        dist.all_reduce(least, dist.ReduceOp.MIN, g)
        dist.all_reduce(most, dist.ReduceOp.MAX, g)
    bad = (least != most).nonzero()[:, 0].tolist()
    if bad:
        raise PlanError(told(bad))
