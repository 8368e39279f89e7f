"""A model on a device behind the service is the model here: outputs to the bit, times by the device's clock."""

import json

import numpy as np
import pytest
import torch
from clock_target import clock
from torch import nn

import secateur as sc
from secateur.cli.app import main
from secateur.errors import ArgumentError, FormatError, TargetError
from secateur.run.assemble import target as named
from secateur.targets.measure import measure, timings
from secateur.targets.memory import latency_key, machine_of
from secateur.targets.remote import Service, remote, serving
from secateur.targets.remote.protocol import pack, unpack
from secateur.types import Artefact, Device, Elsewhere

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def address():
    """A service with the real worker, which stays for all tests."""
    served = {"onnxruntime": "secateur:onnxruntime", "clock": "clock_target:clock"}
    with serving(Service(served, TOKEN)) as at:
        yield at


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The net as an ONNX file."""
    return sc.to_onnx(net(), torch.ones(1, 16), tmp_path_factory.mktemp("onnx") / "net.onnx").path


@pytest.fixture(scope="module")
def there(address):
    return remote(address, sc.onnxruntime, token=TOKEN)


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


def test_a_remote_measurement_is_the_local_one(address, there, file):
    x = torch.randn(4, 16)
    far, near = there.load(file, x, 1), sc.onnxruntime.load(file, x, 1)
    assert same(far.run(), near.run())
    other = torch.randn(7, 16)
    assert same(far.call(other), near.call(other))
    assert (far.nbytes, far.batch, far.threads) == (near.nbytes, near.batch, near.threads)
    assert far.load_seconds > 0
    (a,), (b,) = measure([far], 20, peak=True), measure([near], 20)
    assert a.target == f"onnxruntime@{address}"
    assert 0.02 < a.median / b.median < 50  # a wide bound: the machine may be busy
    assert a.peak_bytes > 0
    assert far.again().elsewhere.place == far.elsewhere.place


def test_seconds_are_the_devices_and_turns_are_taken_there(address):
    there = remote(address, clock, token=TOKEN)
    two = [there.build(net(), torch.ones(1, 16), 1) for _ in range(2)]
    taken = [m.seconds for m in measure(two, repeats=4, warmup=1, min_seconds=0)]
    order, expected = 2, [[], []]
    for round_ in range(4):
        for i in range(2):
            order += 1
            expected[(round_ + i) % 2].append(order)
    first = round(taken[0][0] / 1000) - 3  # runs before these on that device
    got = [np.round(t[:4] / 1000).astype(int) - first for t in taken]
    assert [g.tolist() for g in got] == expected
    assert np.abs(taken[0][:4] - np.round(taken[0][:4])).max() < 100  # what a round really took


def test_machines_do_not_take_turns():
    here = Artefact(run=lambda: None, call=lambda e: [], target="here")
    far = [
        Artefact(run=lambda: None, call=lambda e: [], target=f"far{i}", elsewhere=Elsewhere(i, i, lambda *a: [[1.0]]))
        for i in range(2)
    ]
    assert measure([far[0]], 1)[0].seconds.tolist() == [1.0]
    for mixed in ([here, far[0]], far):
        with pytest.raises(TargetError, match="on different machines"):
            measure(mixed, 1)
    assert len(timings([here], 3, 0, 0)[0]) >= 3


def test_a_malformed_file_is_refused_in_the_runtimes_words(there, file, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    with pytest.raises(TargetError, match=r"onnxruntime: .*bad.onnx cannot be loaded.*is it a whole ONNX file") as e:
        there.load(tmp_path / "bad.onnx", torch.ones(1, 16), 1)
    assert "serve-" not in str(e.value)
    x = torch.ones(2, 16)
    good = there.load(file, x, 1)
    with pytest.raises(TargetError, match="the file takes"):
        good.call(torch.ones(2, 3))
    assert same(good.call(x), sc.onnxruntime.load(file, x, 1).call(x))


def test_latency_names_the_machine_there(address, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    monkeypatch.setenv("SECATEUR_TOKEN", TOKEN)
    there = named(f"onnxruntime@{address}", 1)
    assert there.device.machine == machine_of(sc.onnxruntime)
    assert there.layer is None  # that would be timed on this machine
    model, x = net(), torch.ones(1, 16)
    cost = sc.latency(model, x, there, repeats=5)
    assert cost.dense > 0
    assert sc.latency(model, x, there, repeats=5).dense == cost.dense  # remembered
    board = Device("a board, 4 cores", (("onnxruntime", "1.0"),))
    key = json.loads(latency_key(model, x, sc.Target("onnxruntime@board:1", there.build, device=board)))
    assert key["machine"] == "a board, 4 cores"
    assert key["versions"]["onnxruntime"] == "1.0"
    for file in tmp_path.rglob("*"):
        assert TOKEN not in file.read_text()


def test_the_command_line_measures_there(address, file, monkeypatch, capsys):
    monkeypatch.setenv("SECATEUR_TOKEN", TOKEN)
    command = ["measure", str(file), "--target", f"onnxruntime@{address}", "--repeats", "3", "--json"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert json.loads(out)[0]["target"] == f"onnxruntime@{address}"
    assert TOKEN not in out
    assert main([*command[:3], "onnxruntime@", *command[4:]]) == 64
    assert main([*command[:3], f"eager@{address}", *command[4:]]) == 1
    monkeypatch.setenv("SECATEUR_TOKEN", "another-token-altogether")
    assert main(command) == 1
    capsys.readouterr()


def test_a_target_that_writes_no_file_stays_here(address):
    with pytest.raises(TargetError, match="eager writes no file that could be sent"):
        remote(address, sc.eager, token=TOKEN)


def test_examples_travel_as_they_are(tmp_path):
    example = {
        "a": torch.arange(6).reshape(2, 3).T,
        "b": (torch.tensor(1.5, dtype=torch.bfloat16), [None, True, 2, "x", torch.zeros(0, 2)]),
    }
    (tmp_path / "e").write_bytes(pack(example))
    found = unpack(tmp_path / "e")
    assert torch.equal(found["a"], example["a"])
    assert torch.equal(found["b"][0], example["b"][0])
    assert found["b"][1][:4] == [None, True, 2, "x"]
    assert found["b"][1][4].shape == (0, 2)
    with pytest.raises(ArgumentError, match="object cannot be sent"):
        pack((object(),))
    data = pack(example)
    for damaged in (b"", data[:20], data[:-1], b"\x00" * 64, data.replace(b"tuple", b"tvple")):
        (tmp_path / "e").write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged"):
            unpack(tmp_path / "e")
