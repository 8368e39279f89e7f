"""A model from the text that names it: ``module:factory``, a Hugging Face folder, or a secateur folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import ArgumentError, FormatError, SecateurError
from secateur.export import sparse
from secateur.export.checkpoint import load
from secateur.export.plans import read_header
from secateur.export.prepare import need
from secateur.run.names import import_name

FORMS = "module:factory, a Hugging Face folder (config.json and safetensors), or a folder that secateur wrote"


def load_model(spec: str, not_in: Path | None = None, dtype: torch.dtype | None = None) -> tuple[nn.Module, Any]:
    """The model that ``spec`` names, in eval mode, and what builds its class again.

    Args:
        spec: ``module:factory`` (imported from the working directory or the environment; the factory is
            called without arguments), a Hugging Face model folder (``config.json`` and safetensors; needs the
            extra ``huggingface``; nothing is fetched, no code in the folder is run), or a folder that
            ``sc.save`` wrote.
        not_in: as in `import_name`. dtype: of a Hugging Face model's weights; None: as its configuration says.

    Returns:
        The model and: ``spec`` itself for a factory, the config for Hugging Face, None for a secateur folder
        (which holds what builds it).

    Raises:
        ArgumentError: there is no such module, name or folder, or the factory does not return a module.
        FormatError: the folder is damaged, or holds no safetensors.
        TargetError: transformers is missing.

    Example:
        >>> import torch
        >>> model, source = load_model("torch.nn:Identity")
        >>> model, model.training, source
        (Identity(), False, 'torch.nn:Identity')
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return _from_folder(folder, dtype)
    if folder.is_file():
        raise ArgumentError(f"MODEL {spec} is a file; give {FORMS}{_advice(folder)}")
    if ":" not in spec:
        raise ArgumentError(f"MODEL {spec}: there is no such folder; give {FORMS}")
    return from_factory(spec, not_in), spec


def from_factory(spec: str, not_in: Path | None = None) -> nn.Module:
    """Call ``module:factory`` and see that it makes a module; `import_name` says what ``not_in`` is."""
    factory = import_name(spec, not_in)
    if isinstance(factory, nn.Module):
        raise ArgumentError(
            f"{spec} is a model, not a function that makes one: write one that returns it, so that a pruned "
            "checkpoint can build the class again"
        )
    if not callable(factory):
        raise ArgumentError(f"{spec} is {type(factory).__name__}, not a function that returns an nn.Module")
    try:
        model = factory()
    except SecateurError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{spec}() failed: {type(error).__name__}: {error}; the factory is called without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{spec}() returned {type(model).__name__}, expected an nn.Module")
    return model.eval()


def _from_folder(folder: Path, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    if (folder / "plan.json").is_file() or (folder / sparse.HEADER).is_file():
        return _from_secateur(folder), None
    if not (folder / "config.json").is_file():
        found = sorted(p.name for p in folder.iterdir())[:8]
        raise ArgumentError(
            f"MODEL {folder} holds neither plan.json nor {sparse.HEADER} (secateur) nor config.json (Hugging Face), "
            f"but {', '.join(found) or 'nothing'}; give {FORMS}"
        )
    return _from_hugging_face(folder, dtype)


def _from_secateur(folder: Path) -> nn.Module:
    """The cut or sparse model; what builds its class is in the folder's config.json, or named in its header."""
    read = sparse.read_header if (folder / sparse.HEADER).is_file() else read_header
    factory = (read(folder).get("model") or {}).get("factory")
    if factory is None or (folder / "config.json").is_file():
        return load(folder)
    return load(folder, from_factory(str(factory), not_in=folder))


def _from_hugging_face(folder: Path, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    if not any(folder.glob("*.safetensors")):
        raise FormatError(
            f"{folder} holds no .safetensors file: secateur never unpickles; save the model again with "
            "model.save_pretrained(folder)"
        )
    (transformers,) = need("huggingface", "transformers")
    name = _architecture(folder)
    kind = getattr(transformers, name, None) if name else transformers.AutoModel
    if kind is None:
        raise FormatError(
            f"{folder}/config.json names the class {name}, which transformers {transformers.__version__} "
            "does not "
            "have; write a factory and give module:factory"
        )
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({} if dtype is None else {"dtype": dtype}),
        )
    except Exception as error:
        raise FormatError(
            f"{folder}: transformers could not load it as {name or 'AutoModel'}: {type(error).__name__}: {error}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()
    _check_complete(folder, kind.__name__, info)
    model.eval()
    return model, model.config


def _architecture(folder: Path) -> str | None:
    """The class that config.json names."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    names = config.get("architectures") if isinstance(config, dict) else None
    return str(names[0]) if isinstance(names, list) and names else None


def _check_complete(folder: Path, name: str, info: dict[str, Any]) -> None:
    """A layer that the files do not hold would be drawn at random: refuse it."""
    missing = sorted(str(k) for k in info.get("missing_keys", ()))
    wrong = sorted(str(k) for k in info.get("mismatched_keys", ()))
    if missing or wrong:
        raise FormatError(
            f"{folder}: {len(missing)} tensors of {name} are not in its files and {len(wrong)} have another "
            "shape, "
            f"first {(missing or wrong)[0]}; name the class that the weights belong to in config.json "
            '("architectures"), or write a factory'
        )


def _advice(path: Path) -> str:
    if path.suffix == ".py":
        return f"; a factory in this file is written {path.stem}:NAME"
    if path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        return "; pickled files are never loaded: write a factory that loads the state dict with weights_only=True"
    if path.suffix == ".onnx":
        return "; an ONNX file can be measured (secateur measure), not pruned"
    return ""
