"""Parameters by the names they have without wrappers, and the tensors behind sharded ones."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from secateur.errors import ArgumentError

_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_BEFORE = re.compile(r"^(?:module\.|_orig_mod\.)+")


def bare(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, `DataParallel`, `AveragedModel` and `torch.compile`.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> bare(AveragedModel(nn.DataParallel(net)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def bare_name(name: str, named: Any = ()) -> str:
    """A parameter's name without what wrappers put into it; ``module.`` goes only where ``named`` has not such a name.

    Example:
        >>> bare_name("module._orig_mod.layers.0._orig_mod.weight")
        'layers.0.weight'
    """
    inside = _INSIDE.sub("", name)
    return inside if inside in named else _BEFORE.sub("", inside)


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by their bare names, shared ones by each of theirs."""
    return {_INSIDE.sub("", n): p for n, p in bare(model).named_parameters(remove_duplicate=False)}


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank (each must ask); any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_as(tensor: Tensor, like: Any) -> Tensor:
    """The part of a whole tensor that this rank holds of one sharded like another."""
    if not hasattr(like, "device_mesh"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    whole_one = tensor.to(like.device)
    return local(distribute_tensor(whole_one, like.device_mesh, like.placements, src_data_rank=None))


def own(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that steps, inside a wrapper without hooks such as Accelerate's.

    Raises:
        ArgumentError: it is no optimizer.

    Example:
        >>> own("adam")
        Traceback (most recent call last):
        secateur.errors.ArgumentError: optimizer must be a torch.optim.Optimizer, got 'adam'
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_post_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not hasattr(inner, "_optimizer_step_post_hooks"):
        raise ArgumentError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    return inner  # type: ignore[no-any-return]


def skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step under way changes nothing: a fused optimizer under a gradient scaler that found inf."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def unscale_(optimizer: torch.optim.Optimizer) -> None:
    """Divide gradients by the scale that a fused optimizer would divide them by in its step."""
    scale = getattr(optimizer, "grad_scale", None)
    if not isinstance(scale, Tensor):
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.div_(scale)
    optimizer.grad_scale = torch.ones_like(scale)  # type: ignore[attr-defined]
