"""The ONNX Runtime target, against torch; its files, its memory."""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.onnx import open_session, to_onnx
from secateur.targets.layers import Layer
from secateur.targets.micro import onnx_bytes
from secateur.targets.onnxruntime import declared_inputs, export, load, onnxruntime, seconds_by_run
from secateur.targets.peak import peak_rss


class Masked(nn.Module):
    """Two inputs of one type and shape that do different things, given in either order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, ids, mask):
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1), mask.sum()


def test_outputs_are_those_of_torch_on_other_examples_and_a_given_file_stays(tmp_path):
    torch.manual_seed(0)
    model = Masked().train()
    ids, mask = torch.randint(0, 20, (1, 5)), torch.ones(1, 5, dtype=torch.long)
    example = {"mask": mask, "ids": ids}
    artefact = load(export(model, example, tmp_path), example, 2)
    assert model.training
    assert (artefact.target, artefact.threads, artefact.batch) == ("onnxruntime", 2, 1)
    assert artefact.nbytes == Path(artefact.path).stat().st_size > 20 * 8 * 4
    for n in (1, 3):
        ids, mask = torch.randint(0, 20, (n, 5)), torch.randint(0, 2, (n, 5))
        for example in ({"ids": ids, "mask": mask}, {"mask": mask, "ids": ids}):
            for got, want in zip(artefact.call(example), model(ids, mask), strict=True):
                np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-6)
    assert len(artefact.run()) == 2
    del artefact
    gc.collect()
    assert (tmp_path / "model.onnx").is_file()


def test_temporary_file_goes_with_the_artefact():
    artefact = onnxruntime.build(nn.Linear(3, 2), torch.ones(1, 3), 1)
    folder = Path(artefact.path).parent
    assert folder.is_dir()
    del artefact
    gc.collect()
    assert not folder.exists()


def test_failed_build_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(TargetError, match="does not run on the example given"):
        onnxruntime.build(nn.Linear(3, 2), torch.ones(1, 4), 1)
    assert [p.name for p in tmp_path.glob("secateur-*/*")] == ["lock"]


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    model = nn.Linear(256, 128)
    return model, to_onnx(model, torch.ones(1, 256), tmp_path_factory.mktemp("ort") / "net.onnx").path


def test_existing_file_runs_on_inputs_that_it_declares(linear, tmp_path):
    model, path = linear
    artefact = load(path)
    x = declared_inputs(path)["input"]
    assert x.shape == (1, 256)
    np.testing.assert_allclose(artefact.run()[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert declared_inputs(path, batch=3)["input"].shape == (3, 256)
    assert artefact.call(torch.ones(4, 256))[0].shape == (4, 128)
    words = to_onnx(Masked(), (torch.ones(1, 5).long(), torch.ones(1, 5)), tmp_path / "words.onnx").path
    assert {k: v.dtype for k, v in declared_inputs(words).items()} == {
        "ids": torch.int64,
        "mask": torch.float32,
    }


def test_file_with_other_free_axes_asks_for_an_example(tmp_path):
    path = tmp_path / "net.onnx"
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", "length"]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, ir_version=9, opset_imports=[opset]), path)
    with pytest.raises(TargetError, match="give an example"):
        load(path)
    assert load(path, torch.ones(2, 9)).run()[0].shape == (2, 9)


def test_example_of_another_shape_is_refused(linear):
    _, path = linear
    with pytest.raises(TargetError, match=r"given input float32 \[1, 5\]; the file takes input tensor\(float\)"):
        load(path, torch.ones(1, 5))


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[onnx\]'"):
        onnxruntime.build(nn.Linear(3, 2), torch.ones(1, 3), 1)


class Wide(nn.Module):
    def forward(self, x):
        return (x.unsqueeze(1) * torch.arange(1.0, 2001.0).view(1, -1, 1)).cumsum(1).amax(1)


def test_peak_memory_is_that_of_the_file_alone(linear, tmp_path):
    _, path = linear
    parent = np.ones(40_000_000)  # 320 MB here must not count there
    small = load(path).peak()
    assert 0 < small < 60_000_000 < parent.nbytes
    x = torch.ones(1, 10_000)
    wide = to_onnx(Wide(), x, tmp_path / "wide.onnx").path
    assert peak_rss(wide, {"x": x.numpy()}) > small + 2000 * 10_000 * 4


def test_peak_memory_of_a_broken_file_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"broken")
    with pytest.raises(TargetError, match=r"peak memory of .*net.onnx could not be measured: .*INVALID_PROTOBUF"):
        peak_rss(tmp_path / "net.onnx", {})


def test_kernels_belong_to_their_run_even_if_both_begin_in_the_same_microsecond(tmp_path):
    """A profile of a tiny model: every run holds its kernel, once."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(onnx_bytes(Layer("linear", (7, 1), (20, 24))))
    session = open_session(path, 1, profile=tmp_path / "profile")
    for _ in range(50):
        session.run(None, {"x": np.ones((7, 20), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    order = [e["name"] == "model_run" for e in events if e["name"] == "model_run" or e["name"].endswith("_kernel_time")]
    assert order == [False, True] * 50
    assert len(seconds_by_run(events)) == 50
    kernel = {"name": "gemm_kernel_time", "ts": 5, "dur": 2, "args": {"op_name": "Gemm"}}
    run = {"name": "model_run", "ts": 5, "dur": 3}
    assert seconds_by_run([kernel, run, {**kernel, "ts": 9}, {**run, "ts": 8}]) == [2e-6, 2e-6]
