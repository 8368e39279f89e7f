"""The TensorRT target: its guards, and how a model becomes an engine, with TensorRT's part played by a stand-in."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets.tensorrt import export, load, tensorrt


def test_no_device_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for attempt in (lambda: export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path), lambda: load("x", torch.ones(1))):
        with pytest.raises(TargetError, match="tensorrt needs an NVIDIA GPU, its driver and a CUDA build of torch"):
            attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr("secateur.targets.tensorrt.cuda_device", lambda target: torch.device("cuda", 0))


def test_missing_extra_is_named(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[tensorrt\]'"):
        tensorrt.build(nn.Linear(3, 2), torch.ones(1, 3), 1)


class Package:
    """As much of the package as an export and a failed load use."""

    __spec__ = ModuleSpec("tensorrt", None)
    __version__ = "0"
    BuilderFlag = SimpleNamespace(SPARSE_WEIGHTS="sparse", TF32="tf32")

    def __init__(self, parses: bool = True, builds: bool = True) -> None:
        self.parses, self.builds = parses, builds
        self.flags, self.read = set(), b""

    class Logger:
        ERROR = 1

        def __init__(self, level) -> None:
            self.level = level

    def Builder(self, logger):
        return SimpleNamespace(
            create_network=lambda flags: "network",
            create_builder_config=lambda: SimpleNamespace(
                set_flag=self.flags.add, clear_flag=lambda flag: self.flags.add(f"no {flag}")
            ),
            build_serialized_network=lambda network, config: b"engine" if self.builds else None,
        )

    def OnnxParser(self, network, logger):
        def parse(file):
            self.read = Path(file).read_bytes()
            return self.parses

        error = SimpleNamespace(node_operator=lambda: "NonZero", desc=lambda: "not supported")
        return SimpleNamespace(parse_from_file=parse, num_errors=1, get_error=lambda i: error)

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda data: None)


@pytest.fixture
def stand_in(device, monkeypatch):
    def put(**settings):
        package = Package(**settings)
        monkeypatch.setitem(sys.modules, "tensorrt", package)
        return package

    return put


def test_an_engine_is_built_from_onnx_in_float32_with_sparse_kernels_allowed(stand_in, tmp_path):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    package = stand_in()
    file = export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path)
    assert file.read_bytes() == b"engine"
    assert list(tmp_path.iterdir()) == [file]
    assert package.flags == {"sparse", "no tf32"}
    import onnx

    inputs = onnx.load_from_string(package.read).graph.input
    assert [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] == [1, 3]


def test_an_op_that_the_parser_refuses_is_named_and_nothing_stays(stand_in, tmp_path):
    stand_in(parses=False)
    with pytest.raises(TargetError, match="Linear cannot be converted for NonZero: not supported; rewrite"):
        export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path)
    stand_in(builds=False)
    with pytest.raises(TargetError, match="no engine can be built of Linear"):
        export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_another_device_is_refused(stand_in, tmp_path):
    stand_in()
    (tmp_path / "model.engine").write_bytes(b"engine")
    with pytest.raises(TargetError, match="cannot be loaded: is it of this device and of TensorRT 0"):
        load(tmp_path / "model.engine", torch.ones(1, 3))
    with pytest.raises(TargetError, match="there is no file"):
        load(tmp_path / "none.engine", torch.ones(1, 3))
