"""What is written: each block when it is done, and at the end a folder that transformers loads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.atomic import sync, write_bytes
from secateur.errors import DataError
from secateur.llm.source import CONFIG, INDEX, WEIGHTS, Source
from secateur.llm.tensor_files import Made, read, stored_in, write

SHARD = 5_000_000_000
"""Bytes of a file of the result, at most, unless a single tensor is larger."""


class Blocks:
    """Blocks that are done, each a file of tensors by their names in the block and a file of what is told of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # what a killed run was writing
            left.unlink(missing_ok=True)

    def file(self, index: int) -> Path:
        """The tensors of a block."""
        return self.folder / f"{index:05}.safetensors"

    def _row(self, index: int) -> Path:
        return self.folder / f"{index:05}.json"

    @property
    def done(self) -> int:
        """How many blocks are on disk, from the first on."""
        count = 0
        while self._row(count).exists():
            count += 1
        return count

    def save(
        self, index: int, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], row: Mapping[str, Any]
    ) -> None:
        """Write a block, its tensors in the checkpoint's types: it counts as done when its row is there."""
        kinds = {n: dtypes.get(n, t.dtype) if t.is_floating_point() else t.dtype for n, t in tensors.items()}
        write(
            self.file(index),
            [Made(n, tuple(t.shape), kinds[n], partial(rounded, t, kinds[n])) for n, t in tensors.items()],
        )
        write_bytes(self._row(index), (json.dumps(row, indent=1) + "\n").encode())

    def row(self, index: int) -> dict[str, Any]:
        """What was told of a block."""
        found: dict[str, Any] = json.loads(self._row(index).read_text(encoding="utf-8"))
        return found

    def tensors(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a block, read one at a time."""
        return ((name, read(stored)) for name, stored in stored_in(self.file(index)).items())


def finish(
    folder: Path,
    source: Source,
    tensors: Sequence[Made],
    config: Mapping[str, Any],
    extra: Callable[[Path], None] | None = None,
    shard: int = SHARD,
) -> None:
    """Write the model: shards of safetensors with their index, configuration, tokenizer, generation settings.

    A file that is there is complete, so a killed call is taken up by the next one. The configuration comes last: until
    then nothing loads the folder.

    Args:
        folder: where. source: what tokenizer and configuration are carried over from.
        tensors: all of them, by their names in the checkpoint. config: entries that change.
        extra: ``(folder)``: writes more files. shard: bytes of a file, at most.

    Memory: one tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = _grouped(tensors, shard) if tensors else []
    names = (
        [WEIGHTS]
        if len(groups) == 1
        else [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    )
    for name, group in zip(names, groups, strict=True):
        if not (folder / name).exists():
            write(folder / name, group)
    if len(groups) > 1:
        where = {t.name: name for name, group in zip(names, groups, strict=True) for t in group}
        total = {"total_size": sum(t.nbytes for t in tensors), "total_parameters": sum(map(_numel, tensors))}
        write_bytes(folder / INDEX, _json({"metadata": total, "weight_map": dict(sorted(where.items()))}))
    for path in source.carried():
        if path.name != CONFIG:
            shutil.copyfile(path, folder / path.name)
            sync(folder / path.name)
    if extra is not None:
        extra(folder)
    if source.config is not None:
        write_bytes(folder / CONFIG, _json(_config(source, config)))


def _config(source: Source, changes: Mapping[str, Any]) -> dict[str, Any]:
    if source.folder is not None:
        told: dict[str, Any] = json.loads((source.folder / CONFIG).read_text(encoding="utf-8"))
    else:
        told = json.loads(source.config.to_json_string(use_diff=False))
    return told | {"architectures": [source.architecture]} | dict(changes)


def _grouped(tensors: Sequence[Made], most: int) -> list[list[Made]]:
    groups: list[list[Made]] = [[]]
    size = 0
    for t in tensors:
        if groups[-1] and size + t.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(t)
        size += t.nbytes
    return groups


def _numel(t: Made) -> int:
    return math.prod(t.shape)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU in the checkpoint's type; what was zero still is.

    Raises:
        DataError: a value is too large for the type.

    Example:
        >>> rounded(torch.tensor([1.00001]), torch.bfloat16)
        tensor([1.], dtype=torch.bfloat16)
    """
    out = tensor.detach().to("cpu", dtype).contiguous()
    if dtype == torch.float16 and bool((out.isinf() & tensor.cpu().isfinite()).any()):
        raise DataError("a solved weight is too large for float16, the checkpoint's type: give a larger damping")
    return out
