"""Remembered measurements: what counts in the key, and what a damaged file does."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.targets import memory
from secateur.targets.eager import eager, with_threads
from secateur.targets.memory import cache_folder, latency_key, machine, recall, remember, signature
from secateur.targets.onnxruntime import onnxruntime


@given(key=st.text(), value=st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_remembered_comes_back_exactly(key, value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    key = key.encode("utf-8", "replace").decode()
    assert recall(key, folder) is None
    remember(key, value, folder)
    assert recall(key, folder) == value
    assert recall(key + "x", folder) is None
    remember(key, 0.5, folder)
    assert recall(key, folder) == 0.5
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"null",
        b'{"key": "k"}',
        b'{"key": "other", "value": 1.0}',
        b'{"key": "k", "value": "1"}',
        b'{"key": "k", "value": NaN}',
        b'{"key": "k", "value": true}',
        b'{"key": "k", "value": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
    ],
)
def test_damaged_file_counts_as_absent_and_is_rewritten(content, tmp_path):
    remember("k", 1.0, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert recall("k", tmp_path) is None
    remember("k", 2.0, tmp_path)
    assert recall("k", tmp_path) == 2.0
    assert json.loads(file.read_text()) == {"key": "k", "value": 2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_only_finite_figures_are_kept(value, tmp_path):
    with pytest.raises(ValueError, match="finite"):
        remember("k", value, tmp_path)


def test_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    remember("k", 1.0, blocked)
    assert "SECATEUR_CACHE" in caplog.text
    assert recall("k", blocked) is None


def test_failed_write_leaves_the_old_figure_and_nothing_else(tmp_path, monkeypatch, caplog):
    remember("k", 1.0, tmp_path)
    monkeypatch.setattr(memory.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    remember("k", 2.0, tmp_path)
    assert "disk full" in caplog.text
    assert recall("k", tmp_path) == 1.0
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    remember("k", 1.5)
    assert recall("k") == recall("k", tmp_path) == 1.5
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "secateur"


class Heads(nn.Module):
    def __init__(self, heads: int, sizes: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.heads, self.sizes, self.qkv = heads, sizes, nn.Linear(8, 24)
        self.note = object()


DIFFERENT = [
    nn.Linear(3, 2),
    nn.Linear(2, 3),
    nn.Linear(3, 2, bias=False),
    nn.Linear(3, 2).double(),
    nn.Sequential(nn.Linear(3, 2)),
    nn.Conv2d(3, 4, 3),
    nn.Conv2d(3, 4, 3, stride=2),
    nn.Conv2d(3, 4, 3, padding=1),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3),
    Heads(2),
    Heads(4),
    Heads(4, (2,)),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.ReLU(),
]


def test_signature_tells_apart_whatever_changes_the_time():
    assert len({signature(m) for m in DIFFERENT}) == len(DIFFERENT)


def test_signature_ignores_weights_and_mode():
    a, b = nn.Sequential(nn.Linear(3, 2), nn.Dropout()), nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    assert signature(a.train()) == signature(b.eval())


def test_signature_is_the_same_in_another_process():
    code = (
        "import torch.nn as nn; from secateur.targets.memory import signature; "
        "print(signature(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == signature(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_key_changes_with_all_that_matters(monkeypatch):
    net, x = nn.Linear(3, 2), torch.ones(1, 3)
    keys = [
        latency_key(net, x, eager),
        latency_key(nn.Linear(3, 4), x, eager),
        latency_key(net, torch.ones(2, 3), eager),
        latency_key(net, x.double(), eager),
        latency_key(net, {"input": x}, eager),
        latency_key(net, (x, 1), eager),
        latency_key(net, (x, 2), eager),
        latency_key(net, x, with_threads(eager, 2)),
        latency_key(net, x, onnxruntime),
    ]
    monkeypatch.setattr(memory, "machine", lambda: "another")
    keys.append(latency_key(net, x, eager))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0")
    keys.append(latency_key(net, x, eager))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert latency_key(nn.Linear(3, 2), torch.zeros(1, 3), eager) == keys[0]


def test_machine_is_named_with_its_cores():
    assert machine().endswith(" cores")
    assert machine() == machine()
