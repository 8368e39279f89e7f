"""Masks on disk: a safetensors file of packed bits with a JSON header, whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from secateur.atomic import write_bytes
from secateur.errors import FormatError

FORMAT = "secateur-masks/1"


class HasMasks(Protocol):
    """What hands out its masks, such as `sc.Masks`."""

    def state_dict(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor."""


def pack(mask: Tensor) -> Tensor:
    """Bits of a bool tensor, row-major, eight a byte, the first in the highest bit: uint8 of ``ceil(n / 8)``.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([160], dtype=torch.uint8)
    """
    flat = mask.reshape(-1)
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    out = torch.zeros(len(rows), dtype=torch.uint8, device=mask.device)
    for bit in range(8):
        out |= rows[:, bit].to(torch.uint8) << (7 - bit)
    return out


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What `pack` packed.

    Raises:
        FormatError: there are too few or too many bytes for the shape, or bits are set beyond its end.

    Example:
        >>> unpack(torch.tensor([160], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    n = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-n // 8),):
        raise FormatError(f"a mask of shape {shape} takes {-(-n // 8)} bytes, got {bits.dtype} {tuple(bits.shape)}")
    rows = torch.empty(len(bits), 8, dtype=torch.bool, device=bits.device)
    for bit in range(8):
        rows[:, bit] = (bits >> (7 - bit)) & 1
    flat = rows.reshape(-1)
    if bool(flat[n:].any()):
        raise FormatError(f"a mask of shape {shape} has bits set beyond its end")
    return flat[:n].reshape(shape).clone()


def save_masks(path: Path | str, masks: Mapping[str, Tensor] | HasMasks) -> Path:
    """Write masks to one file: a bit a weight; a killed write leaves what was there.

    Args:
        path: of the file, such as ``masks.safetensors``. masks: `sc.Masks`, or parameter name -> bool tensor.

    Raises:
        FormatError: something in it is no bool tensor.

    Example:
        >>> import tempfile
        >>> file = save_masks(tempfile.mkdtemp() + "/masks.safetensors", {"weight": torch.eye(3, dtype=torch.bool)})
        >>> int(read_masks(file)["weight"].sum())
        3
    """
    held = masks if isinstance(masks, Mapping) else masks.state_dict()
    for name, mask in held.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise FormatError(f"the mask of {name} is {getattr(mask, 'dtype', type(mask))}; expected a bool tensor")
    bits = {name: pack(held[name].detach().cpu()) for name in sorted(held)}
    shapes = {name: list(held[name].shape) for name in bits}
    header = {"format": FORMAT, "shapes": shapes, "sha256": _digest(shapes, bits)}
    path = Path(path)
    write_bytes(path, save_tensors(bits, {"masks": json.dumps(header, sort_keys=True)}))
    return path


def read_masks(path: Path | str) -> dict[str, Tensor]:
    """Read masks back, on the CPU: give them to `sc.Masks` with their model.

    Raises:
        FormatError: the file is missing, damaged, or holds no masks.

    Example:
        >>> read_masks("nowhere.safetensors")
        Traceback (most recent call last):
        secateur.errors.FormatError: nowhere.safetensors cannot be read as masks (FileNotFoundError: ...
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        bits = load_tensors(raw)
        start = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        header = json.loads(start["__metadata__"]["masks"])
        if header["format"] != FORMAT:
            raise FormatError(f"{path} is of the form {header['format']!r}; this version reads {FORMAT!r}")
        shapes = {str(k): [int(n) for n in v] for k, v in header["shapes"].items()}
        if shapes.keys() != bits.keys() or header["sha256"] != _digest(shapes, bits):
            raise FormatError(f"{path} is damaged: its content does not match its SHA-256")
        return {name: unpack(bits[name], tuple(shape)) for name, shape in shapes.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path} cannot be read as masks ({type(error).__name__}: {error}): give a file that save_masks wrote"
        ) from error


def _digest(shapes: Mapping[str, list[int]], bits: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
    for name in sorted(bits):
        sha.update(bits[name].numpy().tobytes())
    return sha.hexdigest()
