"""Plans on disk: a JSON header and safetensors masks, in one folder; the same plan gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from secateur.atomic import write_bytes
from secateur.errors import FormatError
from secateur.types import Plan, Setting

SCHEMA = 1


def plan_bytes(plan: Plan, about: dict[str, Any] | None = None) -> tuple[bytes, bytes]:
    """(plan.json, plan.safetensors): keys sorted, nothing that depends on the clock."""
    masks = {f"keep/{n}": torch.from_numpy(m) for n, m in plan.keep.items()}
    masks |= {f"axis/{d}/{n}": torch.from_numpy(m) for (n, d), m in plan.axes.items()}
    masks |= {f"renumber/{n}": torch.from_numpy(m) for n, m in plan.renumber.items()}
    tensors = save_tensors({k: masks[k].clone() for k in sorted(masks)})
    header = {
        "schema": SCHEMA,
        "groups": {
            n: {"kind": plan.kinds.get(n, ""), "units": len(m), "kept": int(m.sum())} for n, m in plan.keep.items()
        },
        "attributes": [
            {"module": m, "path": p, "old": old, "new": new} for (m, p), (old, new) in plan.attributes.items()
        ],
        "sizes": [
            {"module": m, "function": f, "call": n, "argument": i, "old": old, "new": new}
            for (m, f, n, i), (old, new) in plan.sizes.items()
        ],
        "layers": list(plan.layers),
        "made": dict(plan.made),
        "masks_sha256": hashlib.sha256(tensors).hexdigest(),
        **(about or {}),
    }
    return _json(header | {"header_sha256": hashlib.sha256(_json(header)).hexdigest()}), tensors


def _json(header: dict[str, Any]) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise FormatError(
            f"a plan's `made` holds {value!r} ({type(value).__name__}), which JSON cannot: give text and numbers"
        )

    text = json.loads(json.dumps(header, default=plain))  # keys as they will be read: text
    return (json.dumps(text, indent=1, sort_keys=True) + "\n").encode()


def save_plan(folder: Path | str, plan: Plan) -> Path:
    """Write ``plan.json`` and ``plan.safetensors`` into a folder, each as a whole or not at all.

    Example:
        >>> import tempfile, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.5, seed=0)
        >>> load_plan(save_plan(tempfile.mkdtemp(), plan)).removed
        4
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    header, tensors = plan_bytes(plan)
    write_bytes(path / "plan.safetensors", tensors)
    write_bytes(path / "plan.json", header)
    return path


def load_plan(folder: Path | str) -> Plan:
    """Read a plan back.

    Raises:
        FormatError: a file is missing, damaged, or of another schema.

    Example:
        >>> load_plan("nowhere")
        Traceback (most recent call last):
        secateur.errors.FormatError: nowhere is no folder: give a folder that secateur wrote
    """
    path = Path(folder)
    header = read_header(path)
    try:
        raw = (path / "plan.safetensors").read_bytes()
        if hashlib.sha256(raw).hexdigest() != header["masks_sha256"]:
            raise FormatError(f"{path / 'plan.safetensors'} is damaged or belongs to another plan: its hash differs")
        masks = {k: np.asarray(t.numpy(), bool) for k, t in sorted(load_tensors(raw).items())}
        axes = {}
        for key, mask in masks.items():
            kind, _, rest = key.partition("/")
            if kind == "axis":
                dim, _, name = rest.partition("/")
                axes[name, int(dim)] = mask
        return Plan(
            keep={n: masks[f"keep/{n}"] for n in header["groups"]},
            axes=axes,
            attributes={
                (a["module"], a["path"]): (_setting(a["old"]), _setting(a["new"])) for a in header["attributes"]
            },
            renumber={k.partition("/")[2]: m for k, m in masks.items() if k.startswith("renumber/")},
            kinds={n: g["kind"] for n, g in header["groups"].items()},
            made=header["made"],
            sizes={
                (s["module"], s["function"], int(s["call"]), int(s["argument"])): (int(s["old"]), int(s["new"]))
                for s in header.get("sizes", [])
            },
            layers=tuple(map(str, header.get("layers", []))),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} holds no readable plan: {type(error).__name__}: {error}") from error


def _setting(value: Any) -> Setting:
    return tuple(value) if isinstance(value, list) else int(value)


def read_header(folder: Path | str) -> dict[str, Any]:
    """``plan.json`` of a folder, its schema and its hash checked.

    Raises:
        FormatError: it is missing, damaged, was edited, or is of another schema.
    """
    path = Path(folder) / "plan.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "holds no plan.json" if path.parent.is_dir() else "is no folder"
        raise FormatError(f"{path.parent} {what}: give a folder that secateur wrote") from error
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{path} cannot be read as a plan ({type(error).__name__}: {error}): give a folder that secateur wrote"
        ) from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise FormatError(f"{path} has schema {found!r}; this version reads {SCHEMA}")
    without = {k: v for k, v in header.items() if k != "header_sha256"}
    if header.get("header_sha256") != hashlib.sha256(_json(without)).hexdigest():
        raise FormatError(f"{path} is damaged or was edited: its hash differs")
    return header
