"""Training state on disk: one safetensors file a save, whole or absent, its JSON in the header."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.atomic import sync
from secateur.digest import digest_of
from secateur.errors import FormatError

log = logging.getLogger("secateur")

FORMAT = "secateur-training-state/1"
KEPT = 2


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write ``state-STEP.safetensors`` atomically, then drop all but the two newest.

    The file appears under its name only when all of it is on the disk; its header holds ``meta`` as JSON and
    a SHA-256 over everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".state-*.tmp"):
        left.unlink(missing_ok=True)
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header = {"format": FORMAT, "state": text, "sha256": _digest(plain, text)}
    path = folder / f"state-{step:09d}.safetensors"
    handle, name = tempfile.mkstemp(dir=folder, prefix=".state-", suffix=".tmp")
    os.close(handle)
    try:
        save_file(plain, name, metadata=header)
        sync(Path(name))
        Path(name).replace(path)
        sync(folder)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    found = states_in(folder)
    later = [p for p in found if p.name > path.name]  # of a training that was given up, or damaged
    for old in [*later, *[p for p in found if p not in later][KEPT:]]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and JSON of the newest whole state in the folder, or None where there is no state.

    A damaged file is passed over with a warning in the log, for the one before it.

    Raises:
        FormatError: there are states, and every one is damaged.
    """
    found = states_in(folder)
    for path in found:
        try:
            return read_state(path)
        except FormatError as error:
            log.warning("%s; trying the one before", error)
    if found:
        raise FormatError(
            f"no training state in {folder} can be read (damaged: {', '.join(p.name for p in found)}): "
            "delete the folder to start again"
        )
    return None


def states_in(folder: Path) -> list[Path]:
    """The state files, newest first."""
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One state file.

    Raises:
        FormatError: it is cut short, changed, or not a training state.
    """
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if header.get("format") != FORMAT:
        raise FormatError(f"{path} is not a training state: format {header.get('format')!r}, expected {FORMAT!r}")
    text = header.get("state", "")
    if header.get("sha256") != _digest(tensors, text):
        raise FormatError(f"{path} is damaged: its content does not match its SHA-256")
    return tensors, json.loads(text)


def check_same_run(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a state that another run wrote.

    Raises:
        FormatError: names each setting that differs.
    """
    differ = [k for k in sorted(saved.keys() | now.keys()) if saved.get(k) != now.get(k)]
    if differ:
        told = "; ".join(f"{k}: {_short(saved.get(k))} there, {_short(now.get(k))} now" for k in differ)
        raise FormatError(
            f"the training state in {folder} was made by another run ({told}): give another checkpoint "
            "folder, or delete this one to start again"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:12] + "..." + text[-4:]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    body = digest_of(sorted(tensors.items()))
    return hashlib.sha256((body + text).encode()).hexdigest()
