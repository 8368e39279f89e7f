"""Where the weights of a language model come from: a folder, a GGUF file or a module; read tensor by tensor."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, FormatError, brief
from secateur.export.prepare import need
from secateur.graph.copying import duplicate
from secateur.llm.names import Recipe, recipes
from secateur.llm.tensor_files import Made, Stored, read, stored_in, write
from secateur.scratch import scratch

log = logging.getLogger("secateur")

INDEX, WEIGHTS, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_CARRIED = {".json", ".txt", ".model", ".jinja", ".py"}


@dataclass(frozen=True, eq=False)
class Source:
    """A model whose weights are elsewhere.

    Attributes:
        folder: what tokenizer and configuration are carried over from, or None.
        config: of transformers, or None for other modules.
        stored: tensors of the checkpoint, by their names there.
        build: ``(dtype) -> the module``: parameters on the meta device, buffers with their values.
        recipes: names in the module -> the tensors of the checkpoint that they are made of.
        state: of a module in memory, its tensors; else empty. kind: its class.
    """

    folder: Path | None
    config: Any
    stored: Mapping[str, Stored]
    build: Callable[[torch.dtype], nn.Module]
    recipes: Mapping[str, Recipe]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    kind: str = ""

    @classmethod
    def open(cls, model: str | Path | nn.Module) -> Source:
        """A model folder (``config.json`` and safetensors), a ``.gguf`` file, or a module in memory.

        Every file is looked at, none is read: a tensor that is missing, cut off or of another shape than the
        configuration says is an error here, before any work.

        Raises:
            ArgumentError: there is no such folder or file. FormatError: something is missing or damaged.

        Memory: the names; of a GGUF file the whole model once, while it is written as a folder.

        Example:
            >>> Source.open(nn.Linear(2, 2)).dtype_of("weight")
            torch.float32
        """
        if isinstance(model, nn.Module):
            return _of_module(model)
        path = Path(model).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            path = _from_gguf(path)
        if not path.is_dir():
            raise ArgumentError(f"{path} is no folder and no .gguf file: give the folder of a language model")
        return _of_folder(path)

    def skeleton(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module without its weights, in evaluation mode: parameters on the meta device, buffers as they are."""
        return self.build(dtype).eval().requires_grad_(False)

    def dtype_of(self, name: str) -> torch.dtype:
        """The type in which the checkpoint keeps a tensor of the module."""
        if name in self.state:
            return self.state[name].dtype
        return self.stored[self.recipes[name].parts[0]].dtype

    def nbytes(self, names: Sequence[str]) -> int:
        """Bytes of tensors of the module, as the checkpoint keeps them."""
        if self.state:
            return sum(t.numel() * t.element_size() for t in {id(self.state[n]): self.state[n] for n in names}.values())
        return sum(self.stored[p].nbytes for p in {p for n in names for p in self.recipes[n].parts})

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the module; of one that is merged on loading, that of its parts in a row."""
        if name in self.state:
            return tuple(self.state[name].shape)
        parts = [self.stored[p].shape for p in self.recipes[name].parts]
        return parts[0] if len(parts) == 1 else (sum(math.prod(p) for p in parts),)

    def parameters(self) -> int:
        """Entries of all tensors of the model."""
        if self.state:
            return sum(t.numel() for t in {id(t): t for t in self.state.values()}.values())
        return sum(math.prod(self.stored[p].shape) for p in self.parts_of(self.recipes))

    def tensor(self, name: str) -> Tensor:
        """A tensor of the module, read now, in the checkpoint's type."""
        if name in self.state:
            return self.state[name].detach()
        return self.recipes[name].make(name, self.stored)

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Some rows of a tensor of the module: where it lies as it is in the checkpoint, no more is read."""
        if name in self.state or self.recipes[name].converter is not None:
            return self.tensor(name)[index]
        return read(self.stored[self.recipes[name].parts[0]], index)

    def fill_(self, module: nn.Module, path: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
        """Give the parameters and saved buffers of a part of the module their values.

        Args:
            module: the part. path: its name in the whole. dtype: of what is floating point.
        """
        lead = f"{path}." if path else ""
        for name, tensor in list(module.state_dict(keep_vars=True).items()):
            if lead + name not in self.recipes and lead + name not in self.state:
                continue
            value = self.tensor(lead + name).to(
                device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True
            )
            put_(module, name, value)
        for name, buffer in module.named_buffers():
            if buffer.device != torch.device(device):
                put_(module, name, buffer.to(device))
        return module

    def stored_as(self, skeleton: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the module under the names, and in the pieces, of the checkpoint."""
        out, merged = {}, {}
        for name, tensor in tensors.items():
            recipe = self.recipes.get(name)
            if recipe is not None and recipe.converter is not None:
                merged[name] = tensor
            else:
                out[self.name_of(name)] = tensor
        if merged:
            from transformers.core_model_loading import revert_weight_conversion

            out |= {n: t.contiguous() for n, t in revert_weight_conversion(skeleton, merged).items()}
        return out

    def merged(self, names: Iterable[str]) -> bool:
        """Whether transformers merges or splits any of these when loading."""
        return any(n in self.recipes and self.recipes[n].converter is not None for n in names)

    def name_of(self, name: str) -> str:
        """What the checkpoint calls a tensor of the module."""
        return self.recipes[name].parts[0] if name in self.recipes else name

    @property
    def architecture(self) -> str | None:
        """The class that the configuration is for."""
        return None if self.config is None else (list(self.config.architectures or []) or [self.kind])[0]

    def parts_of(self, names: Iterable[str]) -> set[str]:
        """Names in the checkpoint of what tensors of the module are made of."""
        return {p for n in names for p in (self.recipes[n].parts if n in self.recipes else (n,))}

    def untouched(self, gone: set[str]) -> list[Made]:
        """What is to be copied as it is: every tensor of the checkpoint but these."""
        if self.state:
            seen: set[int] = set()
            left = [(n, t) for n, t in self.state.items() if n not in gone]
            return [Made.of(n, t) for n, t in left if not (id(t) in seen or seen.add(id(t)))]  # type: ignore[func-returns-value]
        return [Made.copied(n, s) for n, s in self.stored.items() if n not in gone]

    def carried(self) -> list[Path]:
        """Files that go with the weights: tokenizer, generation settings, code; not the weights and their index."""
        return [] if self.folder is None else carried_from(self.folder)

    def identity(self) -> str:
        """SHA-256 of the configuration, of names, shapes and types, and of the ends of every tensor's bytes."""
        sha = hashlib.sha256()
        if self.config is not None:
            told = {k: v for k, v in self.config.to_dict().items() if not k.startswith("_")}
            sha.update(json.dumps(told, sort_keys=True, default=str).encode())
        for name, stored in sorted(self.stored.items()):
            sha.update(f"{name} {stored.dtype} {stored.shape};".encode())
            with stored.file.open("rb") as f:
                for at in {0, max(stored.nbytes - 1024, 0)}:
                    f.seek(stored.start + at)
                    sha.update(f.read(min(1024, stored.nbytes)))
        for name, tensor in sorted(self.state.items()):
            ends = tensor.detach().reshape(-1)
            ends = torch.cat([ends[:256], ends[-256:]]).cpu().contiguous().view(torch.uint8)
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode() + ends.numpy().tobytes())
        return sha.hexdigest()


def carried_from(folder: Path) -> list[Path]:
    """Files of a folder that go with the weights."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in _CARRIED]
    return [p for p in files if not p.name.endswith(".index.json") and not p.name.startswith(".")]


def put_(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer of a module by its name, whatever shape it had."""
    path, _, leaf = name.rpartition(".")
    holder = module.get_submodule(path)
    if leaf in holder._buffers:
        holder._buffers[leaf] = value
    else:
        holder._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _of_module(model: nn.Module) -> Source:
    state = dict(model.state_dict(keep_vars=True))

    def build(dtype: torch.dtype) -> nn.Module:
        memo: dict[int, Any] = {}
        for p in model.parameters():
            kind = dtype if p.is_floating_point() else p.dtype
            memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=kind, device="meta"), requires_grad=False)
        twin = duplicate(model, memo)
        _adapt(getattr(twin, "config", None))
        return twin

    return Source(None, getattr(model, "config", None), {}, build, {}, state, type(model).__name__)


def _of_folder(folder: Path) -> Source:
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{folder} has no {CONFIG}: give the folder of a transformers model")
    (transformers,) = need("huggingface", "transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"{folder / CONFIG} is not a configuration that transformers knows: {brief(error)}"
        ) from error
    if getattr(config, "quantization_config", None):
        raise FormatError(f"{folder} is quantised; give the checkpoint in float32, bfloat16 or float16")
    stored = _all_stored(folder)

    def build(dtype: torch.dtype) -> nn.Module:
        mine = copy.deepcopy(config)
        _adapt(mine)
        with parameters_on_meta():
            made: nn.Module = transformers.AutoModelForCausalLM.from_config(mine, dtype=dtype)
        return made

    skeleton = build(torch.float32)
    return Source(folder, config, stored, build, recipes(skeleton, stored, folder), {}, type(skeleton).__name__)


def _adapt(config: Any) -> None:
    """No cache is wanted here, and experts one after another, where their matrices can be seen."""
    if config is not None:
        config.use_cache = False
        with contextlib.suppress(AttributeError, ValueError):
            config._experts_implementation = "eager"


def _all_stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint; the index and the files must agree."""
    index = folder / INDEX
    if not index.is_file():
        files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            found = f"{len(files)} safetensors files and no {INDEX}" if files else "no safetensors files"
            raise FormatError(f"{folder} has {found}; expected {WEIGHTS}, or shards with their {INDEX}")
        return stored_in(files[0])
    try:
        where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{index} is damaged: {brief(error)}; copy it again") from error
    held = {name: stored_in(folder / name) for name in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in held[file]:
            raise FormatError(f"{folder / file} does not hold {name}, which {INDEX} says it does; copy both again")
    for file, tensors in held.items():
        if lost := [name for name in tensors if name not in where]:
            raise FormatError(f"{index} does not name {lost[0]}, which is in {file}; copy both again")
    return {name: held[file][name] for name, file in where.items()}


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built here have parameters without values; buffers are computed as ever."""
    register = nn.Module.register_parameter

    def onto_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = onto_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _from_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a safetensors folder in a temporary place."""
    transformers, _, _ = need("huggingface", "transformers", "gguf", "accelerate")
    folder = Path(tempfile.mkdtemp(prefix="gguf-", dir=scratch()))
    log.info("%s is read whole, once, and written dequantised to %s", file, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    tokenizer.save_pretrained(folder)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    source = _of_module(model)
    write(folder / WEIGHTS, source.untouched(set()))
    return folder
