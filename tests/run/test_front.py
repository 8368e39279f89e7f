"""Fronts: many budgets on a device whose times are known, runs that stop and go on, and points that are taken."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.cli.app import main
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError, FormatError
from secateur.evidence.fidelity import fidelity, held_back
from secateur.evidence.front import Front, beaten, dominated, front_data, front_table, place_of, read_point, write_front
from secateur.evidence.front_page import render_front
from secateur.export.plans import load_plan
from secateur.run.folder import claim
from secateur.run.front import front
from secateur.run.frontfile import check_front
from secateur.run.take import take
from secateur.targets import measure as measuring
from secateur.targets import micro, table
from secateur.types import Artefact
from tiny import mlp

NET = mlp(16, 64, 48, 8)
X = torch.zeros(1, 16)


def seconds(model: nn.Module) -> float:
    """What the device takes: an overhead, and so much a weight."""
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return (100 + weights) * 2.0**-20  # sums of it are exact


def data(count: int = 5) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, generator=g) for _ in range(count)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> sc.Target:
    """A target on which running a model moves the clock by exactly its time."""
    now = [0.0]

    def build(model: nn.Module, example: Any, threads: int) -> Artefact:
        took = seconds(model)

        def run() -> None:
            now[0] += took

        return Artefact(run, lambda e: [], target="clock", threads=threads)

    for timing in (measuring, micro, table):
        monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring.gc, "collect", lambda: 0)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return sc.Target("clock", build)


def facts(found: Front) -> list[Any]:
    """All that must be the same again: no times of the work itself."""
    told = front_data(found)
    rows = [told["dense"], *told["points"], *told["baselines"]]
    for row in rows:
        row.pop("seconds")
        row["stages"] = [(s["name"], s["quality"]) for s in row["stages"]]
    return rows


def bytes_of(folder: Path) -> dict[str, bytes]:
    wanted = ("plan.json", "plan.safetensors", "model.safetensors")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name in wanted}


def test_every_budget_is_met_on_the_device_and_kept(device: sc.Target, tmp_path: Path) -> None:
    calibrated = []

    def stat(*args: Any) -> int:
        calibrated.append(1)
        return 0

    criterion = dataclasses.replace(sc.magnitude, name="counted", stat=stat)
    cost = sc.latency(NET, X, device)
    before = model_hash(NET)
    stage = sc.refit(data())
    found = front(
        NET, X, cost=cost, points=3, highest=0.9, lowest=0.3, criterion=criterion, batches=data(), recover=stage,
        baselines=2, folder=tmp_path / "f",
    )  # fmt: skip
    assert len(calibrated) == 1
    assert model_hash(NET) == before
    assert found.finished
    assert [p.fraction for p in found.points] == [0.9, 0.6, 0.3]
    assert [p.name for p in found.baselines] == ["uniform 1", "uniform 3", "random 1", "random 3"]
    for p in (*found.points, *found.baselines):
        place = tmp_path / "f" / ("points" if p.method == "plan" else f"baselines/{p.method}") / f"{p.number:02d}"
        small = sc.apply(load_plan(place), NET)
        assert p.timing["ratio"] == pytest.approx(seconds(small) / seconds(NET), rel=1e-6)
        assert p.value == pytest.approx(seconds(small), rel=1e-6)
        assert 0.9 * p.limit <= seconds(small) <= p.limit * (1 + 1e-9)
        assert p.met
        assert p.sizes["params"] == sum(t.numel() for t in small.parameters())
        assert [s["name"] for s in p.stages][:2] == ["dense", "after cut"]
        assert len(p.stages) == 3
        assert p.disk_bytes == sum(f.stat().st_size for f in place.iterdir() if f.name != "point.json")
    quality = [p.quality["fidelity to dense"].value for p in found.points]
    assert quality == sorted(quality, reverse=True)
    told = json.loads((tmp_path / "f" / "front.json").read_text())
    assert told == json.loads(json.dumps(front_data(found)))
    assert [p["name"] for p in told["points"]] == ["1", "2", "3"]
    page = (tmp_path / "f" / "report.html").read_text()
    for words in ("3 of 3 budgets on latency met", "uniform magnitude", "random units", "measured latency"):
        assert words in page
    assert page.count('id="verdict"') == 1
    assert front_table(found).row_count == 8


def test_taken_is_the_recovered_model_to_the_bit(device: sc.Target, tmp_path: Path) -> None:
    kept = {}

    def train(model: nn.Module) -> None:
        with torch.no_grad():
            model[0].weight.mul_(1.5)  # type: ignore[index, union-attr]
        kept[tuple(p.shape for p in model.parameters())] = {k: v.clone() for k, v in model.state_dict().items()}

    found = front(
        NET, X, cost=sc.params(NET), points=2, batches=data(), recover=sc.finetune(train), baselines=0,
        folder=tmp_path / "f",
    )  # fmt: skip
    for p in found.points:
        taken = take(tmp_path / "f", p.number, NET)
        state = kept[tuple(t.shape for t in taken.model.parameters())]
        assert all(torch.equal(v, state[k]) for k, v in taken.model.state_dict().items())
        assert taken.point.value == sum(t.numel() for t in taken.model.parameters())
        assert taken.plan.removed > 0


def test_what_cannot_be_reached_says_what_can(device: sc.Target, tmp_path: Path) -> None:
    limits = sc.Limits(minimum=32)
    cost = sc.latency(NET, X, device)
    found = front(
        NET, X, cost=cost, points=3, highest=0.9, lowest=0.2, limits=limits, batches=data(), baselines=0,
        folder=tmp_path / "f",
    )  # fmt: skip
    least = seconds(mlp(16, 32, 32, 8))
    assert [p.done for p in found.points] == [p.fraction * seconds(NET) >= least for p in found.points]
    last = found.points[-1]
    assert last.closest == pytest.approx(least)
    assert "was not met on the target" in last.why
    assert found.finished
    with pytest.raises(ArgumentError, match=r"point 3 .* has no model: budget latency .*; there is 1"):
        take(tmp_path / "f", 3, NET)
    assert "out of reach" in render_front(found)


def test_an_interrupted_front_is_usable_and_goes_on(device: sc.Target, tmp_path: Path) -> None:
    def go(folder: Path, tell: Any = lambda words: None) -> Front:
        cost = sc.latency(NET, X, device)
        return front(
            NET, X, cost=cost, points=3, batches=data(), recover=sc.refit(data()), baselines=1, folder=folder, tell=tell
        )

    whole = go(tmp_path / "whole")

    def stop(words: str) -> None:
        if words.startswith("4 of 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "f", stop)
    told = json.loads((tmp_path / "f" / "front.json").read_text())
    assert not told["finished"]
    assert [p["name"] for p in told["points"]] == ["1", "2"]
    assert "Unfinished" in (tmp_path / "f" / "report.html").read_text()
    assert take(tmp_path / "f", 2, NET).point.done
    with pytest.raises(ArgumentError, match=r"point 3 .* is not there: the front is unfinished.*; there is 1, 2"):
        take(tmp_path / "f", 3, NET)
    said: list[str] = []
    again = go(tmp_path / "f", said.append)
    assert [s for s in said if " of 6: " in s] == [
        "4 of 6: plan at 30%",
        "5 of 6: uniform at 90%",
        "6 of 6: random at 90%",
    ]
    assert "scoring" not in said
    assert facts(again) == facts(whole)
    assert bytes_of(tmp_path / "f") == bytes_of(tmp_path / "whole")


def test_points_are_judged_again_by_another_function(tmp_path: Path) -> None:
    def first(model: nn.Module) -> float:
        return 1.0

    def second(model: nn.Module) -> float:
        return 2.0

    said: list[str] = []
    for judge, made in ((first, 2), (first, 0), (second, 2)):
        found = front(
            NET, X, cost=sc.params(NET), points=1, baselines=0, quality=judge, folder=tmp_path, tell=said.append
        )
        assert [f.value for f in found.points[0].quality.values()] == [judge(NET)]
        assert sum(" of 2: " in s for s in said) == made
        said.clear()


def test_a_front_stopped_before_its_first_point_is_claimed_again(tmp_path: Path) -> None:
    def stop(words: str) -> None:
        if words == "scoring":
            raise KeyboardInterrupt

    given = {"seed": 0}
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "f", given) as folder:
        front(NET, X, cost=sc.params(NET), points=2, batches=data(), folder=folder.path, tell=stop)
    with pytest.raises(ArgumentError, match="other arguments"), claim(tmp_path / "f", {"seed": 1}):
        pass
    with claim(tmp_path / "f", given) as folder:
        assert folder.resumed
    with pytest.raises(ArgumentError, match="nothing to judge"), claim(tmp_path / "g", given) as folder:
        front(NET, X, cost=sc.params(NET), folder=folder.path)
    assert not (tmp_path / "g").exists()


def test_errors_of_take(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    front(NET, X, cost=sc.params(NET), points=2, batches=data(), baselines=0, folder=folder)
    with pytest.raises(ArgumentError, match=r"has no point 5: there is 1, 2"):
        take(folder, 5, NET)
    with pytest.raises(ArgumentError, match=r"holds no front.json"):
        take(tmp_path, 1, NET)
    with pytest.raises(DataError, match=r"dense model with hash .* its weights changed since"):
        take(folder, 1, mlp(16, 64, 48, 8, seed=5))
    (folder / "points/01/model.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match="damaged or was replaced"):
        take(folder, 1, NET)
    (folder / "points/02/point.json").write_text('{"quality": {}}')
    with pytest.raises(FormatError, match="damaged"):
        take(folder, 2, NET)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"points": 0}, "at least one point"),
        ({"highest": 0.3, "lowest": 0.5}, "the higher one first"),
        ({"baselines": -1}, "give 0 or more"),
        ({"batches": None}, "nothing to judge"),
        ({"batches": []}, "data is empty"),
        ({"limits": sc.Limits(per_group={"nowhere": 0.5})}, "nowhere"),
        ({"quality": lambda m: {}}, "gave no figure"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"cost": sc.params(NET), "points": 2, "batches": data(), "baselines": 0, "folder": tmp_path / "f"}
    with pytest.raises(sc.SecateurError if hasattr(sc, "SecateurError") else Exception, match=words):
        front(NET, X, **{**given, **settings})


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_dominated_by_definition(places: list[tuple[int, int]]) -> None:
    found = dominated([(float(a), float(b)) for a, b in places])
    for i, (cost, quality) in enumerate(places):
        better = [j for j, (c, q) in enumerate(places) if c <= cost and q >= quality and (c < cost or q > quality)]
        assert (found[i] is None) == (not better)
        assert found[i] is None or found[i] in better


@given(st.integers(1, 13))
def test_held_back_and_fitted_are_apart(count: int) -> None:
    fit, judge = map(list, held_back(list(range(count))))
    if count == 1:
        assert fit == judge == [0]
        return
    assert sorted(fit + judge) == list(range(count))
    assert judge == [i for i in range(count) if i % 4 == min(count, 4) - 1]
    lazy = held_back(Again(count))
    assert [list(part) for part in lazy] == [fit, judge]


class Again:
    """Batches that are no sequence."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter(range(self.count))


def test_fidelity_against_plain_loops() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 16, generator=g), torch.randint(0, 8, (n,), generator=g)) for n in (5, 3)]
    other = mlp(16, 64, 48, 8, seed=3)
    with torch.no_grad():
        other[4].weight[:] *= -2  # type: ignore[index]
    found = fidelity(NET, batches)(other)
    a, b = (torch.cat([net(x) for x, _ in batches]).detach().double().numpy() for net in (NET, other))
    cosines = [float(p @ q / math.sqrt(p @ p) / math.sqrt(q @ q)) for p, q in zip(a, b, strict=True)]
    labels = torch.cat([t for _, t in batches]).numpy()
    assert found["fidelity to dense"].value == pytest.approx(np.mean(cosines), abs=1e-9)
    assert found["agreement with dense"].value == np.mean(a.argmax(1) == b.argmax(1))
    assert found["accuracy"].value == np.mean(b.argmax(1) == labels)
    silent = nn.Sequential(*other[:4], nn.Linear(48, 8))
    with torch.no_grad():
        silent[4].weight.zero_()
        silent[4].bias.zero_()
    assert fidelity(NET, batches)(silent)["fidelity to dense"].value == 0
    assert fidelity(silent, batches)(silent)["fidelity to dense"].value == 1


def test_run_files_of_a_front() -> None:
    good = {"model": "nets:cnn", "target": "eager", "data": "x.npy"}
    found = check_front({**good, "from": "80%", "to": 0.5, "points": 3})
    assert (found.highest, found.lowest, found.cost) == (0.8, 0.5, "latency")
    assert check_front(found.arguments()) == found
    assert found.arguments()["from"] == "80%"
    for wrong, words in (
        ({"from": "80"}, "more than 0 % and at most 100 %"),
        ({"from": "much"}, "such as 90%"),
        ({"to": "95%"}, "higher share to the lower"),
        ({"target": None}, "measured on a target"),
        ({"data": None}, "nothing to judge"),
        ({"pionts": 3}, "did you mean 'points'"),
        ({"budget": "params=50%"}, "unknown key 'budget'"),
    ):
        with pytest.raises(ArgumentError, match=words):
            check_front({**good, **wrong})


def test_points_are_marked_where_others_beat_them(tmp_path: Path) -> None:
    """With a quality that only random units satisfy, our own points are beaten."""
    found = front(NET, X, cost=sc.params(NET), points=2, quality=lambda m: {"flat": 1.0}, folder=tmp_path / "f")
    places = {p.name: place_of(p, found)[0] for p in found.all}
    by = beaten(found)
    assert "dense" in by
    assert by.keys() == {n for n, c in places.items() if c > min(places.values())}
    again = tmp_path / "again"
    again.mkdir()
    write_front(again, found)
    assert (again / "report.html").read_text() == (tmp_path / "f" / "report.html").read_text()


NETS = """
import os, time
import torch
from torch import nn
from sklearn.datasets import load_digits

def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)

def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = digits()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:1000]), y[:1000]).backward()
        optimizer.step()
    return net.eval()

def batches():
    x, y = digits()
    return [(x[i : i + 64], y[i : i + 64]) for i in range(1000, 1512, 64)]

def quality(model):
    x, y = digits()
    with torch.no_grad():
        return float((model(x[1512:]).argmax(1) == y[1512:]).float().mean())

calls = []

def train(model):
    calls.append(1)
    while "HANG" in os.environ and len(calls) == 2:
        time.sleep(0.05)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "front_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "front_nets", raising=False)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path


KILLED = (
    "front front_nets:net --cost params --points 3 --baselines 1 --data front_nets:batches --criterion obs "
    "--recover refit --recover finetune=front_nets:train --seed 3"
).split()


def test_a_killed_front_goes_on_to_the_same_result(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "HANG": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "secateur.cli", *KILLED, "--out", "f"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (place / "f/points/01/point.json").exists() and time.monotonic() < until:
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    first = (place / "f/points/01/point.json").read_bytes()
    assert main([*KILLED, "--out", "whole", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*KILLED, "--out", "f", "--json"]) == 0
    output = capsys.readouterr()
    assert "going on with the unfinished front" in output.err
    again = json.loads(output.out)
    assert (place / "f/points/01/point.json").read_bytes() == first
    for told in (whole, again):
        for row in (told["dense"], *told["points"], *told["baselines"]):
            row.pop("seconds")
            row["stages"] = [(s["name"], s["quality"]) for s in row["stages"]]
        told.pop("folder")
    assert again == whole
    assert bytes_of(place / "f") == bytes_of(place / "whole")
    assert not (place / "f" / ".work").exists()
    assert main([*KILLED, "--out", "f"]) == 64
    assert "holds the finished result of this run" in capsys.readouterr().err
    assert main([*KILLED, "--points", "1", "--out", "f", "--force", "--json"]) == 0
    assert sorted(p.name for p in (place / "f/points").iterdir()) == ["01"]


def test_take_writes_a_folder_that_verifies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "front front_nets:net --cost params --target onnxruntime --points 2 --from 80% --to 40% --baselines 0 "
    command += "--data front_nets:batches --quality front_nets:quality --recover refit --out f"
    assert main([*command.split(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["quality"] == "quality"
    assert told["points"][1]["timing"]["ratio"] > 0
    assert main("take f --point 2 --out small --json".split()) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {r["what"]: r for r in report["rows"]}
    assert rows["parameters"]["pruned"] == told["points"][1]["value"] == told["points"][1]["sizes"]["params"]
    assert rows["quality"]["pruned"] == told["points"][1]["quality"]["quality"]["value"]
    for name in ("model.safetensors", "plan.json", "report.json", "report.html", "run.json", "model.onnx"):
        assert (place / "small" / name).is_file()
    assert (place / "small/plan.safetensors").read_bytes() == (place / "f/points/02/plan.safetensors").read_bytes()
    assert main("verify small --json".split()) == 0
    capsys.readouterr()
    assert main("take f --point 7 --out other".split()) == 64
    assert "there is 1, 2" in capsys.readouterr().err
    assert not (place / "other").exists()
    assert main("take small --point 1 --out other".split()) == 64
    assert "holds no front.json" in capsys.readouterr().err
    (place / "front_nets.py").write_text(NETS.replace("range(40)", "range(41)"))
    sys.modules.pop("front_nets", None)
    shutil.rmtree(place / "__pycache__", ignore_errors=True)
    assert main("take f --point 1 --out other".split()) == 1
    assert "its weights changed since" in " ".join(capsys.readouterr().err.split())
    assert read_point(place / "f/points/01").done


def test_schema_of_a_front(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "front"]) == 0
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert {"from", "to", "points", "baselines", "quality", "recover", "target"} <= properties.keys()
    assert "budget" not in properties
