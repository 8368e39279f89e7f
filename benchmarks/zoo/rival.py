"""Torch-Pruning (github.com/VainF/Torch-Pruning) on a model of the zoo, by the recipes of its documentation.

Half of the channels by magnitude, output layers ignored, heads given by a table of the query, key and value layers,
and the attributes that its examples set by hand set afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateur.calling import as_call, run, tensors_of

RATIO = 0.5
_QUERIES = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v", "to_q", "to_k", "to_v", "kv")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


class _Late(BaseException):
    """The time is up; no handler of theirs catches it."""


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise once so many seconds of this process's time are spent, whatever runs.

    A timer of the process's time would make its clock coarse: the handler looks at the clock, and waits for the rest.
    """
    end = time.process_time() + seconds

    def late(signum: int, frame: Any) -> None:
        left = end - time.process_time()
        if left <= 0:
            raise _Late
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.1))

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rival(model: nn.Module, example: Any, seconds: int) -> tuple[str, float | None]:
    """How it ends, and the CPU seconds that its graph building and its pruning took, where it ends well."""
    twin = copy.deepcopy(model)
    args, kwargs = as_call(example)
    try:
        with limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spent = _prune(twin, kwargs or (args if len(args) > 1 else args[0]), example)
            run(twin.eval(), example)
    except _Late:
        return f"not finished in {seconds} s of CPU time", None
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}", None
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, twin))
    if after > 0.98 * before:
        return "prunes nothing", None
    return "ok", spent


def _prune(model: nn.Module, inputs: Any, example: Any) -> float:
    import torch_pruning as tp

    heads = {
        child: int(count)
        for module in model.modules()
        if isinstance(count := next((getattr(module, h) for h in _HEADS if hasattr(module, h)), None), int)
        for name, child in module.named_children()
        if name in _QUERIES and isinstance(child, nn.Linear)
    }
    with torch.no_grad():
        widths = {t.shape[d] for t in tensors_of(run(model, example)) for d in (1, -1) if t.ndim > 1}
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in widths][-1:]
    for p in model.parameters():
        p.requires_grad_(True)
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=last,
        num_heads=heads,
    )
    pruner.step()
    spent = time.process_time() - start
    for module in model.modules():
        for name, child in module.named_children():
            if name in _QUERIES and child in pruner.num_heads:
                _repair(module, child, pruner.num_heads[child], name)
    return spent


def _repair(module: nn.Module, layer: nn.Linear, heads: int, name: str) -> None:
    """The attributes that its examples set by hand."""
    width = layer.out_features // (3 if name == "qkv" else 2 if name == "kv" else 1)
    values = dict.fromkeys(_HEADS, heads) | dict.fromkeys(("head_dim", "attention_head_size"), width // heads)
    values |= dict.fromkeys(("all_head_size", "attn_dim"), width)
    for attribute, value in values.items():
        if isinstance(getattr(module, attribute, None), int):
            setattr(module, attribute, value)
