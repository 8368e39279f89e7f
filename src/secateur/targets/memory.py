"""Measurements that were made before: the same command finds the same figures, and so makes the same plan."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.atomic import write_bytes
from secateur.types import Example, Target

log = logging.getLogger("secateur")

WRITERS = ("torch", "onnxruntime", "onnxruntime-gpu", "onnxscript", "ai-edge-litert", "litert-torch")
"""Distributions, beside the target's own, whose versions may change what a file does or how quick it is."""


def cache_folder() -> Path:
    """Where figures are kept: the environment variable ``SECATEUR_CACHE``, else ``~/.cache/secateur``."""
    return Path(os.environ.get("SECATEUR_CACHE") or Path.home() / ".cache" / "secateur")


def signature(model: nn.Module) -> str:
    """SHA-256 over what decides a model's speed: classes, settings, names, shapes and types of tensors.

    Weights do not count. Settings are each module's ``extra_repr`` and its plain attributes, since a stride
    or a number of heads leaves no trace in a shape.

    Example:
        >>> a, b, c = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3)
        >>> signature(a) == signature(b), signature(a) == signature(c)
        (True, False)
    """
    lines = []
    for path, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        settings = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training" and _plain(v)}
        lines.append(f"{path} {kind} {module.extra_repr()} {sorted(settings.items())}")
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items() if isinstance(t, Tensor)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str))


def machine() -> str:
    """The processor's model and how many cores this process may use."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor() or platform.machine()}, {cores} cores"


def machine_of(target: Target) -> str:
    """The machine that a target runs on: another one where it is remote."""
    return machine() if target.device is None else target.device.machine


def versions(target: Target) -> dict[str, str]:
    """What decides the speed of a target's files, package by package: what writes them here, what runs them there.

    Example:
        >>> from secateur.targets.eager import eager
        >>> versions(eager)["torch"] == str(torch.__version__)
        True
    """
    here = {name: _version(name) for name in sorted({*WRITERS, target.runtime})}
    if target.device is None:
        return here
    return {**{f"{k} here": v for k, v in here.items() if k != "onnxruntime"}, **dict(target.device.versions)}


def present(names: Iterable[str]) -> dict[str, str]:
    """Versions of torch, secateur and the runtimes of that name, of those that are installed here."""
    found = {name: _version(name) for name in sorted({"torch", "secateur", "onnxruntime", *names})}
    return {name: version for name, version in found.items() if version}


def latency_key(model: nn.Module, example: Example, target: Target) -> str:
    """The name under which a latency is remembered: model, example, target, threads, machine and versions.

    Example:
        >>> from secateur.targets.eager import eager, with_threads
        >>> net, x = nn.Linear(3, 2), torch.ones(1, 3)
        >>> latency_key(net, x, eager) == latency_key(net, x, with_threads(eager, 2))
        False
    """
    leaves, structure = pytree.tree_flatten(example)
    shapes = [f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else repr(v) for v in leaves]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    facts = {
        "model": signature(model),
        "example": [str(structure), *shapes],
        "target": target.name,
        "threads": target.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": machine_of(target),
        "versions": versions(target),
    }
    return json.dumps(facts, sort_keys=True)


def _version(distribution: str) -> str:
    if distribution == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _file(key: str, folder: Path | str | None) -> Path:
    where = cache_folder() if folder is None else Path(folder)
    return where / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def recall(key: str, folder: Path | str | None = None) -> float | None:
    """The figure remembered under a key; None where there is none, or its file is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     remember("a", 0.25, folder)
        ...     recall("a", folder), recall("b", folder)
        (0.25, None)
    """
    try:
        held = json.loads(_file(key, folder).read_text(encoding="utf-8"))
        value = held["value"] if held["key"] == key else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return float(value)


def remember(key: str, value: float, folder: Path | str | None = None) -> None:
    """Keep a figure under a key, in a file of its own, as a whole or not at all.

    A folder that cannot be written costs the memory, not the run: a warning is logged.

    Raises:
        ValueError: the value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"only finite figures are remembered, got {value}")
    path = _file(key, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps({"key": key, "value": float(value)}).encode())
    except OSError as e:
        log.warning(
            "the figure could not be kept in %s: %s; set SECATEUR_CACHE to a folder that can be written",
            path,
            e,
        )


if __name__ == "__main__":
    from secateur.targets.eager import eager

    print(f"{cache_folder()} keeps figures such as\n{latency_key(nn.Linear(8, 4), torch.ones(1, 8), eager)}")
