"""The checkpoint folder: a pruned model that loads again, with its plan and its evidence."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.atomic import new_folder, write_bytes
from secateur.errors import FormatError, PlanError
from secateur.export.plans import load_plan, plan_bytes, read_header
from secateur.graph.dropping import renamed
from secateur.graph.sizes import Attribute, write_attribute
from secateur.graph.surgery import apply_
from secateur.types import Plan

Factory = Callable[[], nn.Module]


def save_checkpoint(
    folder: Path | str,
    model: nn.Module,
    plan: Plan,
    *,
    factory: str | None = None,
    overwrite: bool = False,
    carry: tuple[str, ...] = (),
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write ``model.safetensors``, ``plan.json``, ``plan.safetensors`` and (where the model has one) ``config.json``.

    The folder appears when everything is on disk, or not at all.

    Args:
        folder: must be new or empty unless ``overwrite``.
        model: the cut model.
        plan: what cut it.
        factory: ``module:name`` of what builds the uncut model, kept as a hint for whoever loads it.
        overwrite: replace a folder that is in use; it stays whole until the new one is complete.
        carry: names of entries that the new folder has from the one that is overwritten.
        extra: writes more files into the folder before it appears.

    Raises:
        FormatError: the folder is in use, or the model's state holds what only pickle could keep.
    """
    path = Path(folder)
    with new_folder(path, overwrite, carry) as temporary:
        names = save_weights(model, temporary / "model.safetensors")
        config = getattr(model, "config", None)
        if hasattr(config, "to_json_string"):
            write_bytes(temporary / "config.json", _dense_config(config, model, plan))
        about = {
            "model": {
                "class": f"{type(model).__module__}:{type(model).__qualname__}",
                "factory": factory,
                "shared": names,
                "unsaved": unsaved(model),
                "attention": getattr(config, "_attn_implementation", None),
                "sha256": file_hash(temporary / "model.safetensors"),
            }
        }
        header, masks = plan_bytes(plan, about)
        write_bytes(temporary / "plan.safetensors", masks)
        write_bytes(temporary / "plan.json", header)
        if extra is not None:
            extra(temporary)
    return path


def load(folder: Path | str, factory_or_config: Factory | nn.Module | Any = None) -> nn.Module:
    """Build the original class, cut it as the plan says, load the weights. Nothing is unpickled or imported by name.

    Args:
        folder: from `sc.save` or `sc.save_sparse`.
        factory_or_config: a function that builds the uncut model, an uncut model (cut in place), or a transformers
            config. None suffices where ``config.json`` names a transformers class.

    Returns:
        The model in evaluation mode, on the device that it was built on.

    Raises:
        FormatError: a file is missing, damaged or from another save.
        PlanError: the factory builds another model.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        secateur.errors.FormatError: nowhere is no folder: give a folder that secateur wrote
    """
    path = Path(folder)
    if (path / "sparse.json").is_file():
        from secateur.export.sparse import load_sparse  # which is made of this file's parts

        return load_sparse(path, factory_or_config)
    header, plan = read_header(path), load_plan(path)
    about = header.get("model")
    if about is None:
        raise FormatError(f"{path} holds a plan without a model: use sc.load_plan")
    weights = checked_weights(path, about["sha256"])
    model = build(path, about, factory_or_config)
    built, saved = type(model).__qualname__, about["class"].partition(":")[2]
    if built != saved:
        raise PlanError(f"{path} holds a {saved}, and a {built} was built for it: give what built the model")
    apply_(plan, model)
    state: dict[str, Tensor] = {}
    for file in weights:
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise FormatError(f"{file} cannot be read: {error}") from error
    state |= {name: state[first] for name, first in about["shared"].items()}
    if wrong := differing(model, state):
        raise PlanError(
            f"the model that was built does not match {weights[0]}: {wrong[:4]} differ"
            f"{'' if about['factory'] is None else ' (it was made by ' + about['factory'] + ')'}"
        )
    load_state_(model, state, about["unsaved"])
    return model.eval()


def checked_weights(folder: Path, hashes: str | Mapping[str, str]) -> list[Path]:
    """The files of a folder's weights: ``model.safetensors``, or shards with a hash each.

    Raises:
        FormatError: one is missing or damaged.
    """
    files = []
    for name, expected in ({"model.safetensors": hashes} if isinstance(hashes, str) else hashes).items():
        file = folder / name
        if not file.is_file():
            raise FormatError(f"{file} is missing: the folder is incomplete")
        if file_hash(file) != expected:
            raise FormatError(f"{file} is damaged or was replaced: its hash is not the one in plan.json")
        files.append(file)
    return files


def differing(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of a model and a state has, or else those of tensors whose shapes differ.

    Example:
        >>> differing(nn.Linear(2, 1), {"weight": torch.ones(1, 2)}), differing(nn.Flatten(), {})
        (['bias'], [])
    """
    expected = model.state_dict()
    return sorted(set(expected) ^ set(state)) or [n for n in expected if expected[n].shape != state[n].shape]


def load_state_(model: nn.Module, state: Mapping[str, Tensor], cast: Mapping[str, str]) -> None:
    """Put a state in, types and bits as they are; ``cast`` names the types of buffers that are not saved."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in state.items():
            target = own.get(name)
            if target is None:
                continue
            # in the file tensors lie unaligned: some kernels would then round otherwise
            target.data = tensor.to(target.device, copy=True)
    for name, buffer in model.named_buffers():
        if name in cast:
            buffer.data = buffer.to(getattr(torch, cast[name]))


def unsaved(model: nn.Module) -> dict[str, str]:
    """Floating buffers that are built, not saved, and their types: a cast model casts them too."""
    saved = model.state_dict()
    return {
        n: str(b.dtype).removeprefix("torch.")
        for n, b in model.named_buffers()
        if n not in saved and b.is_floating_point()
    }


def save_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Write every tensor once; returns the other names of shared ones."""
    out, shared = distinct_state(model)
    save_file({name: tensor.clone() for name, tensor in out.items()}, path)
    return shared


def distinct_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a model's state once, on the host, and the other names of shared ones."""
    first: dict[tuple[Any, ...], str] = {}
    shared, out = {}, {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise FormatError(
                f"{name} of the model's state is {type(tensor).__name__}, not a tensor: only pickle keeps it"
            )
        key = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            out[name] = tensor.detach().cpu().contiguous()
    return out, shared


def _dense_config(config: Any, model: nn.Module, plan: Plan) -> bytes:
    """The configuration of the *uncut* model: `load` builds that and cuts it."""
    copies: dict[int, Any] = {}
    dense = copy.deepcopy(config, copies)  # with the configs inside of it, which other modules may hold too
    modules, twin = dict(model.named_modules()), nn.Module()
    for (module, path), (old, _) in plan.attributes.items():
        key, _, inside = path.partition(".")
        held = getattr(modules.get(renamed(module, plan.layers) or ""), key, None)
        if inside and id(held) in copies:
            twin.config = copies[id(held)]
            write_attribute(twin, Attribute("", f"config.{inside}"), old)
    data = json.loads(dense.to_json_string(use_diff=False))
    data["architectures"] = [type(model).__name__]
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def build(path: Path, about: Mapping[str, Any], given: Any) -> nn.Module:
    """The model that a folder's weights go into, from what was given or its config.json."""
    if isinstance(given, nn.Module):
        return given
    if given is not None and not hasattr(given, "to_json_string"):
        if not callable(given):
            raise FormatError(f"factory_or_config must be a function, a model or a config, got {type(given).__name__}")
        model = given()
        if not isinstance(model, nn.Module):
            raise FormatError(f"the factory returned {type(model).__name__}, not a module")
        return model
    config_file = path / "config.json"
    if given is None and not config_file.is_file():
        hint = f", such as the one it was made by, {about['factory']}" if about.get("factory") else ""
        name = about["class"].partition(":")[2]
        raise FormatError(f"{path} holds a {name}: give sc.load a function that builds the uncut model{hint}")
    return _from_config(config_file, about, given)


def _from_config(file: Path, about: Mapping[str, Any], given: Any) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise FormatError(f"{file} needs transformers: pip install 'secateur[huggingface]'") from error
    name = about["class"].partition(":")[2]
    cls = getattr(transformers, name, None)
    if cls is None:
        raise FormatError(f"{file}: transformers has no class {name}; give sc.load a function that builds the model")
    if given is None:
        data = json.loads(file.read_text(encoding="utf-8"))
        given = cls.config_class.from_dict(data)
        given._attn_implementation = about["attention"]
    built: nn.Module = cls(given)
    return built


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
