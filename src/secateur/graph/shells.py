"""Fake tensors, quickly: what an op makes of given shapes is worked out once a process and remembered."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

_MOST = 100_000
_known: dict[Any, tuple[type | None, tuple[Any, ...]]] = {}


def call_fake(mode: FakeTensorMode, op: Any, args: Any, kwargs: Any) -> Any:
    """What ``op`` returns under a fake tensor mode; shapes that it met before are not worked out again.

    The mode itself spends some 0.3 ms a call; a remembered one takes a tenth. Outputs carry no aliasing: shapes,
    strides, types and devices are all that a recording asks for. In-place ops return their own argument.
    """
    try:
        key = (op, _facts(args), _facts(kwargs))
        known = _known.get(key)
    except (TypeError, _Constant):
        return _work_out(mode, op, args, kwargs)
    if known is not None:
        container, specs = known
        with torch._C._DisableTorchDispatch():  # making one is no op of the model
            made = [args[s] if s.__class__ is int else _fake(mode, s) for s in specs]
        return made[0] if container is None else container(made)
    before = [_fact(a) if isinstance(a, Tensor) else None for a in args]
    out = _work_out(mode, op, args, kwargs)
    many = type(out) in (tuple, list)
    specs = tuple(_spec(o, args, before) for o in (out if many else [out]))
    if all(s is not None for s in specs):
        if len(_known) > _MOST:
            _known.clear()
        _known[key] = (type(out) if many else None, specs)
    return out


def _work_out(mode: FakeTensorMode, op: Any, args: Any, kwargs: Any) -> Any:
    """Ask the mode; ops that write get fake copies of real tensors, for it would write into them indeed."""
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


class _Constant(Exception):
    """A fake tensor that still knows its value: its ops may be asked for it."""


def _facts(item: Any) -> Any:
    if isinstance(item, Tensor):
        return _fact(item)
    if isinstance(item, (list, tuple)):
        return tuple([_facts(x) for x in item])
    if isinstance(item, dict):
        return tuple([(k, _facts(v)) for k, v in item.items()])
    return (item.__class__ is bool, item.__class__ is float, item)


def _fact(t: Tensor) -> tuple[Any, ...]:
    if isinstance(t, FakeTensor) and t.constant is not None:
        raise _Constant
    return (t.shape, t.stride(), t.dtype, t.device)


def _spec(out: Any, args: Any, before: list[Any]) -> Any:
    """How to make an output again: the number of the argument that it is, or its facts; None if neither."""
    for i, a in enumerate(args):
        if out is a:
            return i if before[i] == _fact(a) else None
    if out.__class__ is FakeTensor and out.constant is None and out.layout == torch.strided:
        with torch._C._DisableTorchDispatch():
            elem = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
        return elem, out.device
    return None


def fake_of(mode: FakeTensorMode, tensor: Any) -> Any:
    """The fake of an example's tensor; other leaves as they are."""
    if not isinstance(tensor, Tensor):
        return tensor
    odd = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.device.type == "meta"
    if odd or type(tensor) is not Tensor or tensor.layout != torch.strided:
        return mode.from_tensor(tensor)
    elem = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return _fake(mode, (elem, tensor.device))


def _fake(mode: FakeTensorMode, spec: tuple[Tensor, torch.device]) -> Tensor:
    """A fake tensor as its constructor makes it, without its checks, which take five times as long."""
    elem, device = spec
    state = mode.__dict__.get("_secateur_state")
    if state is None:
        state = mode.__dict__["_secateur_state"] = dict(vars(FakeTensor(mode, elem, device)))
    made = Tensor._make_subclass(FakeTensor, elem, False, dispatch_device=True, device_for_backend_keys=device)
    torch._C._set_throw_on_mutable_data_ptr(made)
    vars(made).update(state)
    vars(made)["_fake_device"] = device
    return made
