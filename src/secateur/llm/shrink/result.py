"""The folder of a shrunk model: for ``from_pretrained`` where a configuration says the cut, else for `sc.load`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.calling import run, tensors_of
from secateur.export.checkpoint import file_hash, unsaved
from secateur.export.huggingface import ROUNDING, configurations
from secateur.export.plans import plan_bytes
from secateur.graph.dropping import renamed
from secateur.llm.shrink.hollow import hollow, tokens_of
from secateur.llm.stream import Change
from secateur.types import Plan

PLAN = "shrink.json"
"""What was decided, beside the weights."""


def configuration(small: nn.Module, plan: Plan) -> Any | None:
    """A configuration of transformers that builds the cut model, tried on hollow weights; None if there is none.

    Args:
        small: the cut model, parameters on the meta device. plan: what cut it.
    """
    if not hasattr(getattr(small, "config", None), "to_dict") or not hasattr(type(small), "from_pretrained"):
        return None
    example = tokens_of(8)
    with torch.no_grad():
        expected = tensors_of(run(hollow(small), example))[0]
        for config in configurations(small, plan):
            built = _built(small, config)
            found = tensors_of(run(hollow(built), example))[0]
            if (
                found.shape == expected.shape
                and float((found - expected).abs().max() / expected.abs().max()) < ROUNDING
            ):
                return config
    return None


def _built(small: nn.Module, config: Any) -> nn.Module:
    from secateur.llm.source import parameters_on_meta

    with parameters_on_meta():
        built: nn.Module = type(small)(config)
    return built.eval()


def change_of(
    small: nn.Module,
    plan: Plan,
    told: Mapping[str, Any],
    before: Any,
    tensors: Mapping[str, Tensor] | None = None,
    gone: Collection[str] = (),
) -> Change:
    """What the cut means for the folder.

    Args:
        small: the cut model without weights. plan: what cut it. told: goes into ``shrink.json``.
        before: the dense model's configuration, or None.
        tensors: new values of what lies outside of the blocks. gone: names that are left out.
    """
    config = configuration(small, plan) if alike(plan, small) else None
    changed: dict[str, Any] = {}
    if config is not None:
        old, new = before.to_dict(), config.to_dict()
        changed = {k: v for k, v in new.items() if k not in old or old[k] != v}
        changed = {k: v for k, v in changed.items() if k not in ("use_cache", "dtype", "transformers_version")}

    def extra(folder: Path) -> None:
        loads = "AutoModelForCausalLM.from_pretrained" if config is not None else "secateur.load"
        write_bytes(folder / PLAN, (json.dumps({**told, "loads_with": loads}, indent=1) + "\n").encode())
        if config is None:
            _write_plan(folder, small, plan)

    def names(name: str) -> str | None:
        return None if name in gone else renamed(name, plan.layers)

    return Change(changed, names, extra, tensors or {}, own_names=config is None)


def alike(plan: Plan, small: nn.Module) -> bool:
    """Whether all groups of a kind keep equally many, or the configuration holds a list that could say otherwise."""
    counts: dict[tuple[str, int], set[int]] = {}
    for name, keep in plan.keep.items():
        if renamed(name, plan.layers) is not None:
            counts.setdefault((plan.kinds[name], keep.size), set()).add(int(keep.sum()))
    held = vars(getattr(small, "config", None) or object.__new__(nn.Module)).values()
    return all(len(c) == 1 for c in counts.values()) or any(
        isinstance(v, list) and v and all(type(n) is int for n in v) for v in held
    )


def _write_plan(folder: Path, small: nn.Module, plan: Plan) -> None:
    """``plan.json`` and ``plan.safetensors``, as `sc.save` writes them, for `sc.load`."""
    tied: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, p in small.named_parameters(remove_duplicate=False):
        if id(p) in tied:
            shared[name] = tied[id(p)]
        tied.setdefault(id(p), name)
    about = {
        "class": f"{type(small).__module__}:{type(small).__qualname__}",
        "factory": None,
        "shared": shared,
        "unsaved": unsaved(small),
        "attention": getattr(getattr(small, "config", None), "_attn_implementation", None),
        "sha256": {f.name: file_hash(f) for f in sorted(folder.glob("model*.safetensors"))},
    }
    header, masks = plan_bytes(plan, {"model": about})
    write_bytes(folder / "plan.safetensors", masks)
    write_bytes(folder / "plan.json", header)
