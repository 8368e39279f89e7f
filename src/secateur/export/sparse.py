"""The sparse checkpoint folder: what is zero takes one bit, and every other bit comes back as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.atomic import new_folder, write_bytes
from secateur.errors import FormatError, PlanError
from secateur.export.checkpoint import Factory, build, differing, distinct_state, file_hash, load_state_, unsaved
from secateur.export.masks import pack as pack_bits
from secateur.export.masks import read_masks
from secateur.export.masks import unpack as unpack_bits

FORMAT, VERSION = "secateur-sparse", 1
HEADER, TENSORS = "sparse.json", "sparse.safetensors"
MASK, VALUES = "/mask", "/values"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packed(NamedTuple):
    """A tensor as a bitmask of what is kept (uint8, the first entry in the highest bit) and the kept values in order.

    ``len(mask) == ceil(n / 8)``; ``len(values)`` is the number of set bits.
    """

    mask: Tensor
    values: Tensor


def pack(tensor: Tensor, keep: Tensor) -> Packed:
    """Pack a tensor.

    Args:
        tensor: any shape and type. keep: bool, the same shape.

    Example:
        >>> packed = pack(torch.tensor([0.0, 5.0, 0.0]), torch.tensor([False, True, False]))
        >>> packed.mask, packed.values
        (tensor([64], dtype=torch.uint8), tensor([5.]))
    """
    return Packed(pack_bits(keep), tensor.reshape(-1)[keep.reshape(-1)])


def unpack(packed: Packed, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The tensor and its mask again.

    Raises:
        FormatError: the mask is of another size, or says another number of values.

    Example:
        >>> unpack(Packed(torch.tensor([64], dtype=torch.uint8), torch.tensor([5.0])), (3,))[0]
        tensor([0., 5., 0.])
    """
    keep = unpack_bits(packed.mask, shape).reshape(-1)
    if int(keep.sum()) != packed.values.numel():
        raise FormatError(f"its mask keeps {int(keep.sum())} entries, and there are {packed.values.numel()} values")
    size = keep.numel()
    out = torch.zeros(size, dtype=packed.values.dtype)
    out[keep] = packed.values
    return out.reshape(shape), keep.reshape(shape)


def save_sparse(
    path: Path | str,
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    factory: str | None = None,
    overwrite: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a folder whose size follows the sparsity: ``kept * itemsize + ceil(n / 8)`` bytes a sparse tensor.

    A tensor is stored as it is where that is smaller. The folder holds ``sparse.safetensors`` (for each sparse tensor
    its mask, 8 entries a byte, and its kept values), ``sparse.json`` (format, version, shapes, types, hash) and, for
    models that have one, ``config.json``. It appears when everything is on disk, or not at all.

    Args:
        path: a new or empty folder, unless ``overwrite``.
        model: with its zeros. Without masks every bit comes back, that of ``-0.0`` too.
        masks: parameter name -> bool tensor, True keeps; they come back with `load_masks`, and what they keep stays
            kept if it happens to be zero. What they remove comes back as ``0.0``.
        factory: ``module:name`` of what builds the model, kept as a hint for whoever loads it.
        overwrite: replace a folder that is in use; it stays whole until the new one is complete.
        extra: ``(folder)``: writes more files into the folder before it appears.

    Raises:
        FormatError: the folder is in use, or the model's state holds what only pickle could keep.
        PlanError: a mask does not fit, or the model is not zero where a mask says so.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(64, 64)
        >>> _ = net.weight.data.triu_(48)  # 136 of 4096 stay
        >>> folder = save_sparse(tempfile.mkdtemp() + "/sparse", net)
        >>> (folder / "sparse.safetensors").stat().st_size < 64 * 64 * 4 / 8
        True
        >>> torch.equal(load_sparse(folder, lambda: nn.Linear(64, 64)).weight, net.weight)
        True
    """
    state, shared = distinct_state(model)
    given = {shared.get(name, name): mask.detach().cpu() for name, mask in (masks or {}).items()}
    _check_masks(state, given)
    tensors: dict[str, Tensor] = {}
    listed: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        stored, entry = stored_form(name, tensor, given.get(name))
        masked = name in given if masks is not None else entry["kept"] is not None and tensor.dim() >= 2
        tensors, listed[name] = tensors | stored, {**entry, "masked": masked}
    folder = Path(path)
    with new_folder(folder, overwrite) as temporary:
        save_file({k: v.clone() for k, v in tensors.items()}, temporary / TENSORS)
        about = {
            "class": f"{type(model).__module__}:{type(model).__qualname__}",
            "factory": factory,
            "shared": shared,
            "unsaved": unsaved(model),
            "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
            "sha256": file_hash(temporary / TENSORS),
        }
        _write_config(model, temporary)
        header = {"format": FORMAT, "version": VERSION, "model": about, "tensors": listed}
        write_bytes(temporary / HEADER, header_bytes(header))
        if extra is not None:
            extra(temporary)
    return folder


def load_sparse(path: Path | str, model_or_factory: Factory | nn.Module | Any = None) -> nn.Module:
    """The model of a folder that `save_sparse` wrote, every bit as it was; nothing is unpickled or imported by name.

    Args:
        path: the folder.
        model_or_factory: a model (filled in place), a function that builds one, or a transformers config. None
            suffices where ``config.json`` names a transformers class.

    Returns:
        The model in evaluation mode, on the device that it was built on.

    Raises:
        FormatError: a file is missing, damaged, or of another version.
        PlanError: the model is another one.

    Example:
        >>> load_sparse("nowhere")
        Traceback (most recent call last):
        secateur.errors.FormatError: nowhere/sparse.json: no such file; ...
    """
    folder = Path(path)
    header, stored = _read(folder)
    state = {name: _tensor(folder, name, entry, stored)[0] for name, entry in header["tensors"].items()}
    about = header["model"]
    state |= {name: state[first] for name, first in about["shared"].items()}
    model = build(folder, about, model_or_factory)
    if wrong := differing(model, state):
        raise PlanError(
            f"{type(model).__name__} does not match {folder}, which holds a {about['class'].partition(':')[2]}: "
            f"{wrong[:4]} differ; give the model, or what built it"
        )
    load_state_(model, state, about["unsaved"])
    return model.eval()


def load_masks(path: Path | str) -> dict[str, Tensor]:
    """The masks in a file that `save_masks` wrote, or in a folder of `save_sparse`: name -> bool, on the CPU.

    Of a folder: those that it was given, or else those of all matrices and kernels that are stored sparse.

    Raises:
        FormatError: a file is missing or damaged.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(8, 2)
        >>> _ = net.weight.data[:, 2:].zero_()
        >>> load_masks(save_sparse(tempfile.mkdtemp() + "/sparse", net))["weight"].sum()
        tensor(4)
    """
    folder = Path(path)
    if not folder.is_dir():
        return read_masks(folder)
    header, stored = _read(folder)
    found = {}
    for name, entry in header["tensors"].items():
        if entry["masked"]:
            tensor, mask = _tensor(folder, name, entry, stored)
            found[name] = _filled(tensor) if mask is None else mask
    return found


def stored_form(name: str, tensor: Tensor, mask: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is written for a tensor, and its line in the header, but for ``masked``."""
    entry = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."), "kept": None}
    if tensor.is_complex() or tensor.element_size() not in _BITS:
        return {name: tensor}, entry
    filled = _filled(tensor)
    keep = filled if mask is None else mask
    kept, size, item = int(keep.sum()), tensor.numel(), tensor.element_size()
    smaller = kept * item + -(-size // 8) < size * item
    told = mask is not None and not torch.equal(mask, filled)  # the zeros alone would not say it
    if not smaller and not told:
        return {name: tensor}, entry
    packed = pack(tensor, keep)
    return {name + MASK: packed.mask, name + VALUES: packed.values}, {**entry, "kept": kept}


def _filled(tensor: Tensor) -> Tensor:
    """Where any bit is set: -0.0 is not 0.0."""
    return tensor.contiguous().view(_BITS[tensor.element_size()]) != 0


def _check_masks(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        tensor = state.get(name)
        if tensor is None:
            raise PlanError(f"there is a mask for {name!r}, which the model does not have")
        if tensor.is_complex():
            raise PlanError(f"{name} is {tensor.dtype}, which is stored dense and without a mask: leave its mask out")
        if mask.dtype != torch.bool or mask.shape != tensor.shape:
            raise PlanError(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; expected bool {tuple(tensor.shape)}"
            )
        left = int((tensor[~mask] != 0).sum())
        if left:
            raise PlanError(f"{left} entries of {name} are not zero where its mask removes them: apply the masks first")


def _write_config(model: nn.Module, folder: Path) -> None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        data = {**json.loads(config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}
        write_bytes(folder / "config.json", (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the stored tensors, which its hash names."""
    file, weights = folder / HEADER, folder / TENSORS
    header = read_header(folder)
    if not weights.is_file():
        raise FormatError(f"{weights} is missing: the folder is incomplete")
    if file_hash(weights) != header["model"]["sha256"]:
        raise FormatError(f"{weights} is damaged or was replaced: its hash is not the one in {HEADER}")
    try:
        stored = load_file(weights)
    except SafetensorError as error:
        raise FormatError(f"{weights} cannot be read: {error}") from error
    names = {n for n, e in header["tensors"].items() if e["kept"] is None}
    names |= {n + part for n, e in header["tensors"].items() if e["kept"] is not None for part in (MASK, VALUES)}
    if names != set(stored):
        raise FormatError(f"{file} and {weights} do not belong together: {sorted(names ^ set(stored))[:4]} differ")
    return header, stored


def read_header(folder: Path) -> dict[str, Any]:
    """What ``sparse.json`` holds.

    Raises:
        FormatError: it is missing, damaged, or of another version.
    """
    file = folder / HEADER
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{file}: no such file; expected a folder that sc.save_sparse wrote") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} is damaged: {error}") from error
    found = (header.get("format"), header.get("version")) if isinstance(header, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise FormatError(f"{file} is of format {found[0]!r} {found[1]!r}; this secateur reads {FORMAT!r} {VERSION}")
    try:
        whole = all({"shape", "dtype", "kept", "masked"} <= set(e) for e in header["tensors"].values())
        whole = whole and {"class", "factory", "shared", "unsaved", "attention", "sha256"} <= set(header["model"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{file} is damaged: {error!r}") from error
    if not whole or header.pop("header_sha256", None) != _digest(header):
        raise FormatError(f"{file} is damaged: a field is missing or was changed")
    return dict(header)


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """``sparse.json``, with the digest of what it says."""
    return _json({**header, "header_sha256": _digest(header)})


def _json(header: Mapping[str, Any]) -> bytes:
    return (json.dumps(header, indent=1) + "\n").encode()


def _digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(header)).hexdigest()


def _tensor(
    folder: Path, name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    try:
        if entry["kept"] is None:
            tensor, mask = stored[name], None
        else:
            packed = Packed(stored[name + MASK], stored[name + VALUES])
            tensor, mask = unpack(packed, tuple(entry["shape"]))
    except FormatError as error:
        raise FormatError(f"{folder / TENSORS}: {name} is damaged: {error}") from error
    told = (entry["shape"], entry["dtype"], entry["kept"])
    kept = None if mask is None else int(mask.sum())
    if told != (list(tensor.shape), str(tensor.dtype).removeprefix("torch."), kept):
        raise FormatError(f"{folder}: {name} is not of the shape, type or count that {HEADER} says")
    return tensor, mask
