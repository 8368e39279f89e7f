"""The check of a target: passes those in place, and each crooked one fails with what is wrong with it."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.prepare import snapshot
from secateur.targets import files, onnxruntime
from secateur.targets.eager import build, eager
from secateur.targets.files import file_target
from secateur.targets.onnxruntime_int8 import onnxruntime_int8
from secateur.targets.openvino import openvino
from secateur.testing import check_target
from secateur.types import Target


@pytest.mark.parametrize(
    ("target", "tolerance"),
    [(eager, 1e-5), (onnxruntime.onnxruntime, 1e-4), (openvino, 1e-4), (onnxruntime_int8, 0.1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_targets_in_place_pass(target, tolerance):
    check_target(target, tolerance=tolerance)


def test_integers_and_a_model_of_ones_own_pass():
    check_target(eager, nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(2, 4), threads=2)


def test_int8_is_told_from_float32():
    with pytest.raises(AssertionError, match=r"run\(\) differs from torch by .*tolerance 1.0e-06"):
        check_target(onnxruntime_int8, tolerance=1e-6)


def crooked(**changes):
    """The eager target, whose artefacts are changed."""

    def make(model, example, threads):
        made = build(model, example, threads)
        return dataclasses.replace(made, target="crooked", **{k: f(made, model) for k, f in changes.items()})

    return Target("crooked", make)


def half_done():
    """Hands out its outputs before they are computed."""

    def run(made, model):
        return lambda: [np.zeros_like(a) for a in made.run()]

    return crooked(run=run)


def baked():
    return crooked(call=lambda made, model: lambda other: made.call(other) and made.run())


def stays():
    """Another example stays in the buffers."""
    held = {}

    def call(made, model):
        def remember(other):
            held[id(model)] = made.call(other)
            return held[id(model)]

        return remember

    return crooked(call=call, run=lambda made, model: lambda: held.get(id(model)) or made.run())


def first_only():
    """Keeps its first model for good."""
    kept = []

    def make(model, example, threads):
        kept.append(dataclasses.replace(build(model, example, threads), target="crooked"))
        return kept[0]

    return Target("crooked", make)


def shared():
    """All artefacts run the latest model."""
    latest = []

    def make(model, example, threads):
        latest.append(build(model, example, threads))
        return dataclasses.replace(
            latest[-1], target="crooked", run=lambda: latest[-1].run(), call=lambda other: latest[-1].call(other)
        )

    return Target("crooked", make)


def spoils():
    def make(model, example, threads):
        next(model.parameters()).data.mul_(2)
        return build(model, example, threads)

    return Target("crooked", make)


def evaluates():
    return Target("crooked", lambda model, example, threads: build(model.eval(), example, threads))


def takes_anything():
    def call(made, model):
        def lenient(other):
            try:
                return made.call(other)
            except TargetError:
                return made.run()

        return lenient

    return crooked(call=call)


def raises_its_own():
    def call(made, model):
        def bare(other):
            try:
                return made.call(other)
            except TargetError as e:
                raise RuntimeError("no") from e

        return bare

    return crooked(call=call)


def same_again():
    def make(model, example, threads):
        made = build(model, example, threads)
        object.__setattr__(made, "again", lambda: made)
        object.__setattr__(made, "target", "crooked")
        return made

    return Target("crooked", make)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (half_done, r"run\(\) differs from torch"),
        (baked, r"are the example's values baked into the file"),
        (stays, r"run\(\), after a call on another example, differs"),
        (first_only, "a model with other weights gives the same outputs"),
        (shared, "the first of two artefacts, after a second was built, differs"),
        (spoils, "changed the model's weights"),
        (evaluates, "changed the model's training flags"),
        (takes_anything, "an example of another shape is taken"),
        (raises_its_own, "an example of another shape raises RuntimeError"),
        (same_again, r"again\(\) returns the artefact that it was asked of"),
        (lambda: crooked(threads=lambda made, model: 3), "says threads 3, and it is 1"),
        (lambda: crooked(batch=lambda made, model: 7), "says batch 7, and it is 2"),
        (lambda: dataclasses.replace(crooked(), name="straight"), "says target 'crooked', and it is 'straight'"),
        (lambda: crooked(path=lambda made, model: "/nowhere/at.all"), "does not exist"),
        (lambda: dataclasses.replace(crooked(), export=lambda *a: None), "give both or neither"),
        (lambda: crooked(run=lambda made, model: lambda: made.run() * 2), r"shapes \[\(2, 5\), \(2, 5\)\]"),
    ],
)
def test_crooked_targets_fail(make, words):
    with pytest.raises(AssertionError, match=words):
        check_target(make())


MODELS: list[nn.Module] = []
"""What the "files" hold: a number in this list."""


def keep(model, example, folder):
    MODELS.append(snapshot(model))
    (folder / "more").write_bytes(b"x" * 10)
    (folder / "number").write_text(str(len(MODELS) - 1))
    return folder / "number"


def size(file):
    return sum(f.stat().st_size for f in Path(file).parent.iterdir())


def fetch(file, example, threads):
    assert (Path(file).parent / "more").is_file()
    made = build(MODELS[int(Path(file).read_text())], example, threads)
    return dataclasses.replace(made, target="crooked", path=str(file), nbytes=size(file))


def elsewhere(model, example, folder):
    file = keep(model, example, folder)
    return Path(shutil.copytree(file.parent, Path(tempfile.mkdtemp()) / "x")) / file.name


def bound(model, example, folder):
    """Its file names another by where that lay first."""
    file = keep(model, example, folder)
    (folder / "first").write_text(str(folder / "more"))
    return file


def fetch_bound(file, example, threads):
    Path((Path(file).parent / "first").read_text()).read_text()
    return fetch(file, example, threads)


def test_a_straight_pair_of_export_and_load_passes():
    check_target(file_target("crooked", keep, fetch))


def test_crooked_files_fail(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def less(file, example, threads):
        return dataclasses.replace(fetch(file, example, threads), nbytes=3)

    with pytest.raises(AssertionError, match="says 3 bytes, its files take 11"):
        check_target(file_target("crooked", keep, less))
    with pytest.raises(AssertionError, match="outside of the folder"):
        check_target(file_target("crooked", elsewhere, fetch))
    with pytest.raises(AssertionError, match="do not load from another folder: FileNotFoundError"):
        check_target(file_target("crooked", bound, fetch_bound))
    monkeypatch.setattr(files, "Folder", lambda: SimpleNamespace(path=Path(tempfile.mkdtemp())))
    with pytest.raises(AssertionError, match="still there after the last artefact has gone"):
        check_target(file_target("crooked", keep, fetch))


def test_a_model_goes_with_its_example():
    with pytest.raises(TypeError, match="give a model and its example, or neither"):
        check_target(eager, nn.ReLU())
