"""Recovery of a pruned language model from folder to folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.atomic import new_folder, write_bytes
from secateur.errors import ArgumentError, DataError, FormatError
from secateur.export import sparse
from secateur.export.checkpoint import save_checkpoint
from secateur.export.plans import load_plan, read_header
from secateur.llm.recover import distill_tokens
from secateur.llm.saved import loads_plainly
from secateur.llm.shards import finish, rounded
from secateur.llm.source import Source, carried_from
from secateur.llm.tensor_files import Made
from secateur.llm.walk import check_vocabulary
from secateur.run.models import load_model
from secateur.train.recovery import History
from secateur.types import Plan

REPORT = "llm.json"
"""What was done to a language model, in its folder."""
_OURS = {"plan.json", "sparse.json", "report.json", "run.json"}
"""What is made anew, or was told of other weights."""


@dataclass(frozen=True)
class Recovered:
    """What came of a recovery.

    Attributes:
        folder: the result, of the kind of the folder that it was made of. history: the losses.
        told: a JSON-able row, which stands in ``llm.json`` of the folder too.
    """

    folder: Path
    history: History
    told: Mapping[str, Any]


def recover_folder(
    folder: str | Path,
    dense: str | Path,
    windows: Tensor,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    checkpoint_every: float = 60.0,
    **settings: Any,
) -> Recovered:
    """Recover a pruned model by distillation from the dense one, and write it as it came: same files, same types.

    A killed run is gone on with by the same call: its state is kept beside ``out`` until the result is there. What was
    zero in the folder is zero in the result.

    Args:
        folder: pruned: of transformers, of `sc.save`, or of `sc.save_sparse`.
        dense: the folder that it was pruned from. windows: token ids, int64 (n, length).
        out: a new folder. device, dtype: to train in; the result has the folder's types. force: replace ``out``.
        checkpoint_every: seconds between two saves of the state.
        settings: of `distill_tokens`: ``steps``, ``batch``, ``lora``, ``hidden``, ``lr``, ``checkpointing``, ...

    Raises:
        FormatError: ``out`` is in use, a folder is damaged, or an unfinished run had other settings.
        ArgumentError: there is no such folder. DataError: the models have other vocabularies.

    Memory: see `distill_tokens`; and once more the model while it is written.

    Example:
        >>> windows = torch.randint(0, 49_152, (64, 512))
        >>> recover_folder("smollm2-2of4", "smollm2", windows, "recovered", steps=200, batch=4)  # doctest: +SKIP
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    if out.resolve() in (folder.resolve(), Path(dense).expanduser().resolve()):
        raise ArgumentError(f"--out {out} is the folder of one of the models: give another one")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FormatError(f"{out} is in use: it is not empty. Give another folder, or force=True (--force)")
    small, big = (_opened(path) for path in (folder, dense))
    _check_vocabularies(small, big, windows)
    plan = load_plan(folder) if (folder / "plan.json").is_file() else None
    kinds = _kinds(small, folder)
    small, big = (m.to(device=device, dtype=dtype).requires_grad_(True).eval() for m in (small, big))
    place = out.resolve()
    state = place.with_name(f".{place.name}.training")
    stage = distill_tokens(windows.to(device), checkpoint=state, checkpoint_every=checkpoint_every, **settings)
    history = stage.run(small, big, plan)
    del big
    told = _told(stage.name, history, windows)
    with new_folder(out, force) as temporary:
        _write(temporary, folder, _typed_(small, kinds), plan, told)
    shutil.rmtree(state, ignore_errors=True)
    return Recovered(out, history, told)


def _opened(path: str | Path) -> nn.Module:
    """The model of a folder; of transformers' own all in float32, where one type for all would round some tensors."""
    if not Path(path).expanduser().is_dir():
        raise ArgumentError(f"{path}: there is no such folder; give that of a language model")
    return load_model(str(path), dtype=torch.float32)[0]


def _kinds(model: nn.Module, folder: Path) -> dict[str, torch.dtype]:
    """The types of the tensors in the folder of a model."""
    if loads_plainly(folder):
        source = Source.open(folder)
        return {name: source.dtype_of(name) for name in source.recipes}
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def _typed_(model: nn.Module, kinds: Mapping[str, torch.dtype]) -> nn.Module:
    """The model on the CPU, its tensors in their former types; zeros stay zeros."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = rounded(tensor, kinds.get(name, tensor.dtype))
    return model


def _check_vocabularies(small: nn.Module, dense: nn.Module, windows: Tensor) -> None:
    sizes = [getattr(getattr(m, "config", None), "vocab_size", None) for m in (small, dense)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"the models have vocabularies of {sizes[0]} and {sizes[1]}: give the dense model that it was cut from"
        )
    check_vocabulary(small, [windows])


def _told(name: str, history: History, windows: Tensor) -> dict[str, Any]:
    return {
        "stage": name,
        "steps": history.steps[-1] if history.steps else 0,
        "windows": len(windows),
        "window": windows.shape[1],
        "loss": [round(value, 5) for value in history.loss],
        "validation": [round(value, 5) for value in history.validation],
        "initial": history.initial,
        "seconds": round(history.seconds, 1),
        "stopped": history.stopped,
    }


def _write(out: Path, folder: Path, model: nn.Module, plan: Plan | None, told: Mapping[str, Any]) -> None:
    """The model in a folder like the one that it came from."""

    def beside(made: Path) -> None:
        """Tokenizer, generation settings, and what was told before and is now."""
        for path in carried_from(folder):
            if path.name not in _OURS and not (made / path.name).exists():
                shutil.copyfile(path, made / path.name)
        before = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).is_file() else {}
        stages = [*before.get("recovery", []), told]
        write_bytes(made / REPORT, (json.dumps({**before, "recovery": stages}, indent=1) + "\n").encode())

    if (folder / sparse.HEADER).is_file():
        factory = sparse.read_header(folder)["model"].get("factory")
        masks = sparse.load_masks(folder)
        sparse.save_sparse(out, model, masks, factory=factory, overwrite=True, extra=beside)
    elif plan is not None:
        factory = (read_header(folder).get("model") or {}).get("factory")
        save_checkpoint(out, model, plan, factory=factory, overwrite=True, extra=beside)
    else:
        source = Source.open(folder)
        tensors = source.stored_as(model, model.state_dict())
        finish(out, source, [Made.of(n, t) for n, t in tensors.items()], {}, beside)
