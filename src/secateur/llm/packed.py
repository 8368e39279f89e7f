"""The result in the sparse format: a bit for every weight and the values of those that are left, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.export.checkpoint import file_hash, unsaved
from secateur.export.sparse import FORMAT, HEADER, TENSORS, VERSION, header_bytes, stored_form
from secateur.llm.source import Source
from secateur.llm.tensor_files import Made, write


def write_packed(folder: Path, source: Source, skeleton: nn.Module, tensors: Sequence[Made]) -> None:
    """Write what `secateur.load_sparse` reads: ``sparse.safetensors`` and ``sparse.json``.

    Args:
        folder: where. source: the model. skeleton: the module without weights, for its class and what it shares.
        tensors: by their names in the module, each once.

    Time: every tensor is read twice, to know its size and to write it. Memory: one tensor.
    """
    listed: dict[str, Any] = {}
    made: list[Made] = []
    for tensor in tensors:
        forms, entry = stored_form(tensor.name, tensor.make(), None)
        listed[tensor.name] = {**entry, "masked": entry["kept"] is not None and len(tensor.shape) >= 2}
        made += [Made(n, tuple(t.shape), t.dtype, _Form(tensor, n)) for n, t in forms.items()]
    write(folder / TENSORS, made)
    about = {
        "class": f"{type(skeleton).__module__}:{type(skeleton).__qualname__}",
        "factory": None,
        "shared": dict(_shared(skeleton, set(listed))),
        "unsaved": unsaved(skeleton),
        "attention": getattr(source.config, "_attn_implementation", None),
        "sha256": file_hash(folder / TENSORS),
    }
    write_bytes(
        folder / HEADER, header_bytes({"format": FORMAT, "version": VERSION, "model": about, "tensors": listed})
    )


class _Form:
    """One of the tensors that a tensor is stored as."""

    def __init__(self, whole: Made, name: str) -> None:
        self.whole, self.name = whole, name

    def __call__(self) -> Tensor:
        return stored_form(self.whole.name, self.whole.make(), None)[0][self.name]


def by_module(source: Source, skeleton: nn.Module, blocks: dict[str, Made]) -> list[Made]:
    """Every tensor of the module once: those of the blocks as they are now, the others as the checkpoint has them."""
    found, seen = [], set()
    for name, tensor in skeleton.state_dict(keep_vars=True).items():
        if name in blocks:
            found.append(blocks[name])
        elif id(tensor) not in seen:
            whole = torch.Size(tensor.shape)
            found.append(Made(name, tuple(whole), source.dtype_of(name), lambda name=name: source.tensor(name)))  # type: ignore[misc]
        seen.add(id(tensor))
    return found


def _shared(skeleton: nn.Module, kept: set[str]) -> Iterator[tuple[str, str]]:
    """Other names of tensors that are stored under one."""
    state = skeleton.state_dict(keep_vars=True)
    first = {id(t): name for name, t in state.items() if name in kept}
    return ((name, first[id(t)]) for name, t in state.items() if name not in kept and id(t) in first)
