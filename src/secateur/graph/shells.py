"""Fake tensors, quickly made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map


def call_op(mode: FakeTensorMode, op: Any, args: Any, kwargs: Any) -> Any:
    """What an op makes of fake tensors. Ops that write get fakes of real ones: these would be written into indeed."""
    if not op._schema.is_mutable:
        return op(*args, **kwargs)
    own: dict[int, Tensor] = {}

    def fake(item: Any) -> Any:
        if not isinstance(item, Tensor) or isinstance(item, FakeTensor):
            return item
        made = mode.from_tensor(item)
        own[id(made)] = item
        return made

    out = op(*tree_map(fake, args), **tree_map(fake, kwargs))
    return tree_map(lambda t: own.get(id(t), t), out)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Much is made here and nothing of it in cycles: searching for them would take as long as the work.

    What is young at the end is declared old, or the first search afterwards would make up for all that was left out.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else the caller froze objects of its own
            gc.freeze()
            gc.unfreeze()
        if was_on:
            gc.enable()


Shell: TypeAlias = tuple[Tensor, torch.device]
"""How to make a fake tensor again: its meta tensor, and its device."""


def shell_of(out: Tensor) -> Shell | None:
    """The shell of a fake tensor; None for one that knows its value, or is not strided."""
    if out.__class__ is FakeTensor and out.constant is None and out.layout == torch.strided:
        with torch._C._DisableTorchDispatch():
            elem = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
        return elem, out.fake_device
    return None


def fake_of(mode: FakeTensorMode, tensor: Any) -> Any:
    """The fake of an example's tensor; other leaves as they are."""
    if not isinstance(tensor, Tensor):
        return tensor
    odd = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.device.type == "meta"
    if odd or type(tensor) is not Tensor or tensor.layout != torch.strided:
        return mode.from_tensor(tensor)
    elem = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return fake(mode, (elem, tensor.device))


def fake(mode: FakeTensorMode, shell: Shell) -> Tensor:
    """A fake tensor as its constructor makes it, without its checks, which take five times as long."""
    elem, device = shell
    with torch._C._DisableTorchDispatch():  # making one is no op of the model
        state = mode.__dict__.get("_secateur_state")
        if state is None:
            state = mode.__dict__["_secateur_state"] = dict(vars(FakeTensor(mode, elem, device)))
        made = Tensor._make_subclass(FakeTensor, elem, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(state)
        vars(made)["_fake_device"] = device
    return made
