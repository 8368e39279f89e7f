"""Safetensors files read and written tensor by tensor, at their offsets: no file is ever mapped or held whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from secateur.atomic import new_file
from secateur.errors import FormatError

HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Names of types in a file."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file, start: where its bytes begin. shape, dtype: what they are.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_in(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        FormatError: it is missing, is not such a file, or ends before its last tensor does.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length)) if 0 < length <= min(size - 8, HEADER) else None
    except FileNotFoundError as error:
        raise FormatError(f"{file} is missing: the index names it; copy the whole checkpoint") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{file} is no safetensors file, or is cut off: {size} bytes, its header would be {length}")
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            start, end = (8 + length + int(at) for at in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{file}: the entry of {name} is damaged ({error!r}); copy it again") from error
        if kind not in DTYPES:
            raise FormatError(f"{file}: {name} is of type {kind}; expected one of {', '.join(DTYPES)}")
        found[name] = Stored(file, start, shape, DTYPES[kind])
        if end > size or end - start != found[name].nbytes:
            raise FormatError(f"{file} is cut off: {name} ends at byte {end}, the file at {size}; copy it again")
    return found


def read(stored: Stored, rows: Tensor | None = None) -> Tensor:
    """The tensor, in its own type; of ``rows``, int64, those of its first axis alone.

    Raises:
        FormatError: the file ends too early.
    """
    if rows is not None:
        out = torch.empty((len(rows), *stored.shape[1:]), dtype=stored.dtype)
        step = stored.nbytes // max(stored.shape[0], 1)
        with stored.file.open("rb", buffering=0) as f:
            for row, at in zip(out, rows.tolist(), strict=True):
                f.seek(stored.start + at * step)
                _fill(f, row, stored.file)
        return out
    out = torch.empty(stored.shape, dtype=stored.dtype)
    with stored.file.open("rb", buffering=0) as f:
        f.seek(stored.start)
        _fill(f, out, stored.file)
    return out


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _fill(f: object, out: Tensor, file: Path) -> None:
    left = raw(out)
    while len(left):
        got = f.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise FormatError(f"{file} is cut off: it ended within a tensor; copy it again")
        left = left[got:]


@dataclass(frozen=True)
class Made:
    """A tensor to write: what it will be, and where it comes from when its turn is there."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Made:
        """A tensor that is there already."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @classmethod
    def copied(cls, name: str, stored: Stored) -> Made:
        """A tensor of another file."""
        return cls(name, stored.shape, stored.dtype, lambda: read(stored))


def write(path: Path, tensors: Sequence[Made]) -> None:
    """Write a safetensors file, one tensor in memory at a time: temporary file, fsync, rename.

    Raises:
        FormatError: a tensor is not what it was said to be.
        OSError: the disk is full; nothing is left at ``path``.
    """
    with new_file(path) as f:
        f.write(_header(tensors))
        for t in tensors:
            tensor = t.make().detach().cpu().contiguous()
            if (tuple(tensor.shape), tensor.dtype) != (t.shape, t.dtype):
                raise FormatError(f"{t.name} is {tensor.dtype} {tuple(tensor.shape)}; expected {t.dtype} {t.shape}")
            f.write(raw(tensor))


def _header(tensors: Iterable[Made]) -> bytes:
    at, entries = 0, {"__metadata__": {"format": "pt"}}
    for t in tensors:
        end = at + t.nbytes
        entries[t.name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}  # type: ignore[dict-item]
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
