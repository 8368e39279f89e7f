"""Dynamic int8 in ONNX Runtime, against torch and the bytes of the file."""

import onnx
import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets.onnxruntime import onnxruntime_cuda
from secateur.targets.onnxruntime_int8 import export, in_float, load


def test_linear_weights_are_int8_in_file_and_outputs_near_torch(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
    x = torch.randn(4, 64)
    file = export(model, x, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    weights = 64 * 256 + 256 * 8
    assert weights < file.stat().st_size < weights + 16_000
    kinds = [t.data_type for t in onnx.load(file).graph.initializer if len(t.dims) == 2]
    assert kinds == [onnx.TensorProto.INT8] * 2
    assert in_float(file) == {}
    artefact = load(file, x, 2)
    assert (artefact.target, artefact.threads, artefact.again().target) == ("onnxruntime_int8", 2, "onnxruntime_int8")
    want = model(x).detach().numpy()
    assert abs(artefact.run()[0] - want).max() < 0.05 * abs(want).max()


def test_cuda_that_is_absent_is_told(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TargetError, match="no CUDAExecutionProvider, only CPUExecutionProvider"):
        onnxruntime_cuda.build(nn.Linear(3, 2), torch.ones(1, 3), 1)
