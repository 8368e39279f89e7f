"""ONNX files, against torch and against the onnx package's own checker."""

import copy
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from secateur.errors import TargetError
from secateur.export import onnx as exporter
from secateur.export.onnx import feeds, nbytes_of, open_session, parity, run_session, to_onnx
from secateur.export.prepare import array, batch_of, named_tensors, output_tensors, rebatched, snapshot


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


class Gate(nn.Module):
    """Keywords in another order than the signature, nested inputs, None, a number, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x, gate, pair=None, power=1.0, scale=None):
        y = x**power * self.scale - 2 * gate
        if pair is not None:
            y = y + pair[0] - 3 * pair[1]["b"]
        return {"y": y, "none": None, "more": (x.sum(1), [gate + 1])} if scale is None else y * scale


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(11, 6), nn.Linear(6, 2)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))


def bert() -> nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )


def bert_example(batch: int, length: int = 7) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -2:] = 0
    return {"attention_mask": mask, "input_ids": torch.randint(1, 50, (batch, length))}


CASES = {
    "conv": (conv_net, lambda b: torch.randn(b, 3, 8, 8)),
    "tuple": (
        Gate,
        lambda b: (torch.randn(b, 3), torch.randn(b, 3), (torch.randn(b, 3), {"b": torch.randn(b, 3)})),
    ),
    "keywords": (
        Gate,
        lambda b: {"scale": torch.randn(3), "power": 2.0, "gate": torch.randn(b, 3), "x": torch.randn(b, 3)},
    ),
    "integers": (Words, lambda b: torch.randint(0, 11, (b, 4))),
    "bert": (bert, bert_example),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda b: torch.randn(b, 5, 8),
    ),
}


@pytest.mark.parametrize(("case", "batch"), [("conv", 4), *((case, 1) for case in CASES)])
def test_file_equals_torch_on_any_batch(case, batch, tmp_path, capfd):
    torch.manual_seed(0)
    make, example = CASES[case]
    model = make().train()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    made = to_onnx(model, example(batch), tmp_path / "net.onnx")
    assert made.dynamic
    assert made.reason == ""
    assert made.nbytes == made.path.stat().st_size == nbytes_of(made.path)
    assert parity(made.path, model, [example(batch), example(batch), example(2), example(7)]) < 1e-5
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]
    onnx.checker.check_model(made.path)
    assert not any(node.metadata_props for node in onnx.load(made.path).graph.node)
    assert capfd.readouterr() == ("", "")


def test_causal_language_model_is_exported_without_its_cache(tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )
    example = {"input_ids": torch.randint(0, 50, (1, 6))}
    made = to_onnx(model, example, tmp_path / "net.onnx")
    assert made.dynamic
    assert parity(made.path, model, [example]) < 1e-5
    assert model.config.use_cache


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 12).cumsum(0)


def test_model_tied_to_its_batch_is_written_static_and_says_so(tmp_path, caplog):
    example = torch.randn(2, 3, 4)
    with caplog.at_level(logging.INFO, "secateur"):
        made = to_onnx(FixedBatch(), example, tmp_path / "net.onnx")
    assert not made.dynamic
    assert made.reason
    assert made.reason in caplog.text
    assert open_session(made.path).get_inputs()[0].shape == [2, 3, 4]
    assert parity(made.path, FixedBatch(), [example]) == 0
    session = open_session(made.path)
    with pytest.raises(TargetError, match=r"given x float32 \[3, 3, 4\]; the file takes x"):
        run_session(session, feeds(session, torch.randn(3, 3, 4)))


def test_batch_that_a_model_tied_to_one_is_not_doubled(tmp_path):
    class One(nn.Module):
        def forward(self, x):
            return x.view(1, 12)

    made = to_onnx(One(), torch.randn(1, 3, 4), tmp_path / "net.onnx")
    assert not made.dynamic
    assert open_session(made.path).get_inputs()[0].shape == [1, 3, 4]


def test_static_on_request(tmp_path):
    made = to_onnx(nn.Linear(3, 2), torch.ones(4, 3), tmp_path / "net.onnx", dynamic_batch=False)
    assert (made.dynamic, made.reason) == (False, "")
    assert open_session(made.path).get_inputs()[0].shape == [4, 3]


def test_weights_beyond_the_limit_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "WEIGHTS_INSIDE", 1000)
    path = tmp_path / "net.onnx"
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Linear(64, 32)
        made = to_onnx(model, torch.randn(1, 64), path)
        beside = [f for f in tmp_path.iterdir() if f != path]
        assert len(beside) == 1, "weights of the file before are gone"
        assert path.stat().st_size < 64 * 32 * 4 <= beside[0].stat().st_size
        assert made.nbytes == nbytes_of(path) == sum(f.stat().st_size for f in tmp_path.iterdir())
        assert parity(path, model, [torch.randn(3, 64)]) < 1e-5


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else x + 1


class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).abs()


def test_an_op_without_a_function_is_named_with_its_line(tmp_path):
    line = Eigen.forward.__code__.co_firstlineno + 1
    with pytest.raises(TargetError, match=rf"no function for aten.linalg_eig.default at test_onnx.py:{line}"):
        to_onnx(Eigen(), torch.ones(1, 3, 3), tmp_path / "net.onnx")
    line = Branch.forward.__code__.co_firstlineno + 1
    with pytest.raises(TargetError, match=rf"\(at test_onnx.py:{line}\)"):
        to_onnx(Branch(), torch.ones(2, 3), tmp_path / "net.onnx")


def test_failed_export_leaves_the_old_file_and_explains(tmp_path, capfd):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(TargetError, match=r"Branch runs in torch and cannot be exported: .+\.item\(\)") as e:
        to_onnx(Branch(), torch.ones(2, 3), path)
    assert "\n" not in str(e.value)
    assert "\x1b" not in str(e.value)
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")


def test_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def die(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_ir.save", die)
    with pytest.raises(KeyboardInterrupt):
        to_onnx(nn.Linear(3, 2), torch.ones(1, 3), path)
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]


def test_example_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"Linear does not run on the example given: .+shapes cannot be multiplied"):
        to_onnx(nn.Linear(3, 2), torch.ones(1, 4), tmp_path / "net.onnx")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"there is no folder .*nowhere"):
        to_onnx(nn.Linear(3, 2), torch.ones(1, 3), tmp_path / "nowhere" / "net.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TargetError, match=rf"{package} is needed.*pip install 'secateur\[onnx\]'"):
        to_onnx(nn.Linear(3, 2), torch.ones(1, 3), tmp_path / "net.onnx")


def test_missing_runtime_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError, match=r"onnxruntime is needed.*pip install 'secateur\[onnx\]'"):
        open_session(tmp_path / "net.onnx")


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, to_onnx(model, torch.ones(1, 3), tmp_path_factory.mktemp("onnx") / "net.onnx").path


def test_parity_is_the_largest_relative_error(linear):
    model, path = linear
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight *= 1.5
        other.bias *= 1.5
    x = torch.randn(5, 3)
    with torch.no_grad():
        a, b = other(x), model(x)
    assert parity(path, other, [x]) == pytest.approx(float((a - b).abs().max() / a.abs().max()), rel=1e-4)
    assert parity(path, other, [x]) == pytest.approx(1 / 3, rel=1e-4)


def test_parity_sees_what_is_not_finite(linear):
    model, path = linear
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.bias[0] = torch.nan
    assert parity(path, broken, [torch.randn(2, 3)]) == float("inf")
    zero = copy.deepcopy(model)
    with torch.no_grad():
        zero.bias.zero_()
        zero.weight.zero_()
    assert parity(path, zero, [torch.randn(2, 3)]) == float("inf")


def test_parity_refuses_other_shapes_and_no_examples(linear):
    _, path = linear
    with pytest.raises(TargetError, match=r"outputs of shapes .* another model"):
        parity(path, nn.Linear(3, 5), [torch.ones(2, 3)])
    with pytest.raises(TargetError, match="no examples"):
        parity(path, nn.Linear(3, 2), [])


def test_inputs_are_matched_by_name_and_refused_by_name(tmp_path):
    made = to_onnx(Gate(), (torch.ones(2, 3), torch.zeros(2, 3)), tmp_path / "net.onnx")
    session = open_session(made.path)
    x, gate = torch.randn(4, 3), torch.randn(4, 3)
    for example in ((x, gate), {"gate": gate, "x": x}, {"gate": gate, "unused": x, "x": x}):
        got = feeds(session, example)
        assert list(got) == ["x", "gate"]
        assert np.array_equal(got["x"], x.numpy())
    with pytest.raises(TargetError, match=r"tensors \['a', 'gate'\], the file takes \['x', 'gate'\]"):
        feeds(session, {"a": x, "gate": gate})
    with pytest.raises(TargetError, match="name them alike"):
        feeds(session, x)
    with pytest.raises(TargetError, match="given x int64"):
        run_session(session, feeds(session, (x.long(), gate)))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12"])
def test_corrupt_file_is_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=r"net.onnx cannot be loaded"):
        open_session(path)
    with pytest.raises(TargetError, match="there is no file"):
        open_session(tmp_path / "none.onnx")


def test_snapshot_shares_weights_and_nothing_else():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    model.append(model[0])
    twin = snapshot(model)
    assert twin[0] is twin[2], "shared modules stay shared"
    assert twin[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert not twin[0].weight.requires_grad
    assert model[0].weight.requires_grad
    assert twin[1].running_mean.data_ptr() == model[1].running_mean.data_ptr()
    model[0].weight.data = torch.zeros(2, 3)
    assert twin[0].weight.shape == (3, 3)


def test_rebatched_leaves_other_tensors_alone():
    example = {
        "x": torch.arange(6).view(2, 3),
        "table": torch.ones(5),
        "n": 3,
        "pair": [torch.tensor([7, 8]), None],
    }
    assert batch_of(example) == 2
    changed = rebatched(example, 3)
    assert changed["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert changed["pair"][0].tolist() == [7, 8, 7]
    assert changed["table"] is example["table"]
    assert list(named_tensors(example)) == ["x", "table", "pair_0"]


def test_arrays_of_types_that_numpy_lacks():
    assert array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert [t.item() for t in output_tensors({"a": torch.tensor(1), "b": (None, torch.tensor(2))})] == [1, 2]
