"""A language model as it lies on disk: loaded anew, with its tokenizer, and what its files tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import ArgumentError, FormatError, brief
from secateur.export import sparse
from secateur.llm.texts import tokenizer_of
from secateur.run.models import load_model

TOLD = ("llm.json", "shrink.json", "plan.json", sparse.HEADER)
"""Files in which secateur says how a folder was made, the most telling first."""


@dataclass(frozen=True)
class Density:
    """How much of a block's matrices is left.

    Attributes:
        block: path of the block, "" for what lies outside of all. size: entries of its matrices. kept: those not zero.
    """

    block: str
    size: int
    kept: int

    @property
    def density(self) -> float:
        """Share that is not zero."""
        return self.kept / self.size if self.size else 1.0


def open_model(folder: Path | str, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The model of a folder in evaluation mode, and its tokenizer (None where the folder has none).

    Args:
        folder: that secateur wrote, dense or sparse, or of plain transformers. dtype: to compute in; None: as stored.
        device: where it ends up.

    Raises:
        ArgumentError: there is no such folder or device. FormatError: it is damaged or half written.
        TargetError: transformers is missing.

    Memory: the model.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArgumentError(f"MODEL {folder}: there is no such folder; give one with config.json and safetensors")
    model, _ = load_model(str(path))
    try:
        model = model.to(device) if dtype is None else model.to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device {device!r} cannot be used ({brief(error)}): write cpu, cuda or cuda:1") from error
    return model.requires_grad_(False).eval(), own_tokenizer(path)


def own_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a folder, or None where it has no files of one.

    Raises:
        DataError: transformers cannot load it.
    """
    path = Path(folder)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    return tokenizer_of(path) if any((path / name).is_file() for name in names) else None


def loads_plainly(folder: Path | str) -> bool:
    """Whether ``from_pretrained`` of transformers loads a folder, without secateur."""
    return not any((Path(folder) / name).is_file() for name in ("plan.json", sparse.HEADER))


def densities(model: nn.Module) -> list[Density]:
    """Entries and zeros of the matrices, block by block; vectors do not count, what lies outside the blocks comes last.

    A block is a member of the list of modules that holds most parameters, so no names are known in advance.

    Example:
        >>> net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> _ = net[0].weight.data.fill_(1).triu_()
        >>> [(d.block, d.kept, d.size) for d in densities(net)][0]
        ('0', 3, 4)
    """
    blocks = block_paths(model)
    counted = {path: [0, 0] for path in (*blocks, "")}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        block = next((b for b in blocks if name.startswith(f"{b}.")), "")
        counted[block][0] += parameter.numel()
        counted[block][1] += int(torch.count_nonzero(parameter))
    return [Density(path, size, kept) for path, (size, kept) in counted.items()]


def block_paths(model: nn.Module) -> list[str]:
    """Paths of the members of the list of modules that holds most parameters."""
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        return []
    path, members = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
    lead = f"{path}." if path else ""
    return [f"{lead}{i}" for i in range(len(members))]


def bytes_of_weights(folder: Path | str) -> int:
    """Bytes of the safetensors files of a folder."""
    return sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))


def told(folder: Path | str) -> dict[str, Any]:
    """What a folder says of how it was made: the first of `TOLD` that says so: its plain facts and its blocks.

    Raises:
        FormatError: the file is damaged.
    """
    for name in TOLD:
        file = Path(folder) / name
        if not file.is_file():
            continue
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"{file} is damaged: {error}") from error
        if not isinstance(held, Mapping):
            raise FormatError(f"{file} is damaged: it holds {type(held).__name__}, expected an object")
        parts = [held.get(k) for k in ("made", "asked", "how", "achieved", "calibration")]
        facts = {k: v for part in parts if isinstance(part, Mapping) for k, v in part.items() if _fact(v)}
        if facts:
            blocks = [r for r in held.get("blocks", []) if isinstance(r, Mapping)]
            return {"file": name, "made": facts, "blocks": blocks}
    return {"file": None, "made": {}, "blocks": []}


def _fact(value: Any) -> bool:
    return isinstance(value, (str, int, float))
