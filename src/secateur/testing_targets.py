"""The check of a target: that it runs the model, that it says what is so, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calling import as_call
from secateur.digest import model_hash
from secateur.errors import TargetError
from secateur.export.prepare import Array, array, batch_of, output_tensors, snapshot
from secateur.graph.copying import duplicate
from secateur.scratch import scratch
from secateur.types import Artefact, Example, Target


def check_target(
    target: Target,
    model: nn.Module | None = None,
    example: Example | None = None,
    *,
    tolerance: float = 1e-4,
    threads: int = 1,
) -> None:
    r"""Prove a target: what it builds computes what torch computes, keeps to itself, and cleans up.

    Outputs are compared by $\max|a - b| / \max|a|$, on the example and on another of the same shapes. A model with
    other weights must give other outputs. Two artefacts run side by side, and `again` loads one more; what they say of
    themselves (file, size, batch, threads, target) must be so. A file is copied to another folder and loaded there.
    The model must be untouched, a wrong example refused, and temporary files gone with the last artefact.

    Args:
        target: what to prove.
        model: small; a convolutional net with batch norm, ReLU and two linear layers by default.
        example: what its ``forward`` takes, with floats in it.
        tolerance: largest relative error; 1e-4 is float32, 0.1 suits int8.
        threads: intra-op threads to build with.

    Raises:
        AssertionError: says what does not hold.
        TargetError: the runtime is missing, or does not take the model.

    Example:
        >>> import secateur as sc
        >>> check_target(sc.eager)
        >>> check_target(sc.Target("mute", lambda model, example, threads: sc.eager.build(nn.ReLU(), example, threads)))
        Traceback (most recent call last):
        AssertionError: mute: gives outputs of shapes [(2, 3, 8, 8)], torch gives [(2, 5)]...
    """
    model, example = _given(model, example)
    before, flags = model_hash(model), [m.training for m in model.modules()]
    made = target.build(model, example, threads)
    hint = "build must work on a copy: secateur.export.prepare.snapshot makes one"
    assert model_hash(model) == before, f"{target.name}: changed the model's weights: {hint}"
    assert [m.training for m in model.modules()] == flags, f"{target.name}: changed the model's training flags: {hint}"
    _equal(target, made, model, example, tolerance)
    _says_what_is_so(target, made, example, threads)
    other = _other_weights(model)
    second = target.build(other, example, threads)
    difference = _error(_torch(model, example), second.run(), target)
    assert difference > 2 * tolerance, (
        f"{target.name}: a model with other weights gives the same outputs (they differ by {difference:.1e}): is the "
        "artefact of the model that was given, or one kept from before?"
    )
    _close(target, other, example, second, tolerance, "the second of two artefacts")
    _close(target, model, example, made, tolerance, "the first of two artefacts, after a second was built,")
    if made.again is not None:
        third = made.again()
        assert third is not made, f"{target.name}: again() returns the artefact that it was asked of, not a new one"
        _close(target, model, example, third, tolerance, "what again() loads")
        _says_what_is_so(target, third, example, threads)
        del third
    _refuses(target, made, example)
    _round_trip(target, model, example, tolerance, threads)
    files = [Path(a.path) for a in (made, second) if a.path is not None]
    assert len(set(files)) == len(files), f"{target.name}: two artefacts share the file {files[0]}: take a folder each"
    del made, second
    _cleans_up(target, files)


def _given(model: nn.Module | None, example: Example | None) -> tuple[nn.Module, Example]:
    if (model is None) != (example is None):
        raise TypeError("check_target: give a model and its example, or neither")
    if model is not None and example is not None:
        return model, example
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.Linear(16, 5)]
        return nn.Sequential(*layers).train(), torch.randn(2, 3, 8, 8)


def _torch(model: nn.Module, example: Example) -> list[Array]:
    args, kwargs = as_call(example)
    with torch.inference_mode():
        return [array(t) for t in output_tensors(snapshot(model)(*args, **kwargs))]


def _equal(target: Target, made: Artefact, model: nn.Module, example: Example, tolerance: float) -> None:
    _close(target, model, example, made, tolerance, "run()")
    called = _error(_torch(model, example), made.call(example), target)
    assert called <= tolerance, f"{target.name}: call(example) differs from torch by {called:.1e}, run() does not"
    fresh = _redrawn(example)
    want, got = _torch(model, fresh), made.call(fresh)
    error = _error(want, got, target)
    assert error <= tolerance, (
        f"{target.name}: call(another example of the same shapes) differs from torch by {error:.1e} "
        f"(tolerance {tolerance:.1e}): are the example's values baked into the file?"
    )
    _close(target, model, example, made, tolerance, "run(), after a call on another example,")


def _close(target: Target, model: nn.Module, example: Example, made: Artefact, tolerance: float, what: str) -> None:
    error = _error(_torch(model, example), made.run(), target)
    assert error <= tolerance, (
        f"{target.name}: {what} differs from torch by {error:.1e} (tolerance {tolerance:.1e}): does it return before "
        "the result is there, share memory with another artefact, or compute in another precision?"
    )


def _error(want: list[Array], got: Any, target: Target) -> float:
    found = [array(g) if isinstance(g, Tensor) else np.asarray(g) for g in got]
    shapes = [tuple(g.shape) for g in found], [tuple(w.shape) for w in want]
    assert shapes[0] == shapes[1], (
        f"{target.name}: gives outputs of shapes {shapes[0]}, torch gives {shapes[1]}: another model, or another order"
    )
    worst = 0.0
    for w, g in zip(want, found, strict=True):
        if not np.isfinite(g).all():
            return float("inf")
        scale = float(np.abs(w).max(initial=0)) or 1.0
        gap = np.abs(w.astype(np.float64) - g.astype(np.float64)).max(initial=0)
        worst = max(worst, float(gap) / scale)
    return worst


def _redrawn(example: Example) -> Example:
    """Other floats; whole numbers in another order."""
    generator = torch.Generator().manual_seed(1)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf.flip(tuple(range(leaf.ndim)))

    changed: Example = pytree.tree_map(draw, example)
    return changed


def _other_weights(model: nn.Module) -> nn.Module:
    twin = duplicate(model, {})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn(p.shape, generator=generator).to(p) * (p.abs().mean() + 0.1))
    return twin


def _says_what_is_so(target: Target, made: Artefact, example: Example, threads: int) -> None:
    told = {"target": made.target, "threads": made.threads, "batch": made.batch}
    so = {"target": target.name, "threads": threads, "batch": batch_of(example)}
    for what, value in so.items():
        assert told[what] == value, f"{target.name}: the artefact says {what} {told[what]!r}, and it is {value!r}"
    if made.path is None:
        return
    file = Path(made.path)
    assert file.exists(), f"{target.name}: the artefact's file {file} does not exist"
    lies_alone = target.export is not None  # then all of the folder belongs to the model
    real = sum(f.stat().st_size for f in (file.parent.rglob("*") if lies_alone else [file]) if f.is_file())
    assert made.nbytes == real, (
        f"{target.name}: the artefact says {made.nbytes} bytes, its files take {real}: count all that ships, no more"
    )


def _refuses(target: Target, made: Artefact, example: Example) -> None:
    def wider(leaf: Any) -> Any:
        return torch.cat([leaf, leaf], -1) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    try:
        made.call(pytree.tree_map(wider, example))
    except TargetError:
        return
    except Exception as e:
        raise AssertionError(
            f"{target.name}: an example of another shape raises {type(e).__name__}; raise secateur's TargetError, with "
            "what was given and what the file takes"
        ) from e
    raise AssertionError(f"{target.name}: an example of another shape is taken; it must raise TargetError")


def _round_trip(target: Target, model: nn.Module, example: Example, tolerance: float, threads: int) -> None:
    if target.export is None or target.load is None:
        both = target.export is None and target.load is None
        assert both, f"{target.name}: has one of export and load; give both or neither"
        return
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        made, there = Path(folder) / "made", Path(folder) / "there"
        made.mkdir()
        file = target.export(model, example, made)
        assert file.is_relative_to(made), f"{target.name}: export writes {file}, outside of the folder that was given"
        assert file.exists(), f"{target.name}: export returns {file}, and there is no such file"
        shutil.copytree(made, there)
        shutil.rmtree(made)
        try:
            loaded = target.load(there / file.relative_to(made), example, threads)
        except Exception as e:
            raise AssertionError(
                f"{target.name}: the files that export wrote do not load from another folder: {type(e).__name__}: {e}"
            ) from e
        _close(target, model, example, loaded, tolerance, "what is exported, copied to another folder and loaded there")
        _says_what_is_so(target, loaded, example, threads)
        assert there.exists(), f"{target.name}: load removes the files that it was given"


def _cleans_up(target: Target, files: list[Path]) -> None:
    gc.collect()
    left = [f for f in files if f.exists()]
    assert not left, (
        f"{target.name}: {left} is still there after the last artefact has gone: secateur.targets.files.file_target "
        "takes care of the folder"
    )
