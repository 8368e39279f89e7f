"""``secateur sparsify`` and ``secateur tickets``, whole, with their exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.choose import patterns
from secateur.choose.patterns import Pattern
from secateur.cli.app import main
from secateur.errors import ArgumentError
from secateur.export.sparse import load_masks, load_sparse
from secateur.run.sparsefile import density, pattern

NETS = """
import torch
from torch import nn
from secateur.types import Criterion, Weighing

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))

def batches():
    g = torch.Generator().manual_seed(1)
    return (torch.randn(4, 1, 6, 6, generator=g) for _ in range(3))

def stat(model, batches, weights):
    found = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x in batches:
        with torch.enable_grad():
            model.zero_grad()
            model(x).square().mean().backward()
        for n, w in weights.items():
            found[n] += (w.detach() * w.grad).abs()
    return found

needy = Criterion("needy", weights=Weighing(lambda m, w, stats: stats, stat))

def judge(model):
    return {"nonzero": sum(int((p != 0).sum()) for p in model.parameters())}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "sparse_nets.py").write_text(NETS)
    shutil.copy(Path(__file__).parent / "train" / "ticket_recipe.py", folder / "cli_recipe.py")
    return folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("COLUMNS", "120")


def failing(capsys, code, *argv):
    assert main(list(argv)) == code
    return capsys.readouterr().err


def test_a_run_writes_model_masks_and_report(capsys):
    argv = ["sparsify", "sparse_nets:net", "--criterion", "sparse_nets:needy", "--data", "sparse_nets:batches"]
    argv += [
        "--sparsity",
        "0.9",
        "--density",
        "ranked",
        "--rounds",
        "3",
        "--quality",
        "sparse_nets:judge",
        "--seed",
        "4",
    ]
    assert main([*argv, "--out", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p.name for p in Path("out").iterdir()} == {
        "sparse.json", "sparse.safetensors", "report.json", "report.html", "run.json",
    }  # fmt: skip
    assert found["rows"][0]["asked"] == 0.9
    assert found["sections"]["made"]["command"].startswith("secateur sparsify sparse_nets:net --criterion")
    assert found["sections"]["made"]["seed"] == 4
    import sparse_nets

    model, masks = load_sparse("out", sparse_nets.net), load_masks("out")
    total = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == total - round(0.9 * total)
    assert sparse_nets.judge(model)["nonzero"] == next(r for r in found["rows"] if r["what"] == "nonzero")["pruned"]
    before = sparse_nets.net()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name)[mask], before.get_parameter(name)[mask])
    assert torch.equal(sc.load("out", sparse_nets.net)[0].weight, model[0].weight)


def test_the_terminal_says_asked_and_exact_and_report_renders_again(capsys):
    assert main(["sparsify", "sparse_nets:net", "--out", "shown", "--ignore", "0"]) == 0
    said = capsys.readouterr().out
    assert "50 % of 1" in said
    assert "sparsity" in said
    assert "report.html" in said
    assert main(["report", "shown"]) == 0
    assert "Sparsity by weight" in Path("shown/report.html").read_text()
    assert main(["inspect", "shown", "--example", "1x1x6x6"]) == 0  # a folder of ours is a MODEL


def test_an_example_stands_for_data_and_a_run_file_for_options(capsys):
    Path("run.yaml").write_text(
        "model: sparse_nets:net\ncriterion: sparse_nets:needy\nexample: 2x1x6x6\nsparsity: 0.3\nonly: ['4']\n"
    )
    assert main(["sparsify", "--run", "run.yaml", "--sparsity", "0.25", "--out", "filed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["asked"] == 0.25
    assert [w["weight"] for w in found["sections"]["sparsity"]] == ["4.weight"]
    assert main(["schema", "sparsify"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "secateur sparsify run file"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sparsity", "1"], "sparsity is the fraction removed, in [0, 1); got 1.0"),
        (["--sparsity", "-0.5"], "in [0, 1)"),
        (["--pattern", "2:four"], "write unstructured, per_row, N:M such as 2:4"),
        (["--pattern", "block:4"], "write unstructured, per_row"),
        (["--pattern", "unstrutured"], "did you mean 'unstructured'?"),
        (["--pattern", "sparse_nets:judge"], "expected a secateur Pattern"),
        (["--density", "evn"], "did you mean 'even'?"),
        (["--criterion", "magnitud"], "did you mean 'magnitude'?"),
        (["--criterion", "sparse_nets:needy"], "criterion sparse_nets:needy needs data: add --data"),
        (["--criterion", "fpgm", "--data", "sparse_nets:batches"], "does not score single weights"),
        (["--rounds", "0"], "rounds"),
        (["--ignore", "nowhere"], "'nowhere' matches no weight"),
        (["--quality", "sparse_nets:NETS"], "has no 'NETS'"),
    ],
)
def test_bad_arguments_are_told_in_one_line_and_leave_nothing(capsys, options, words):
    said = failing(capsys, 64, "sparsify", "sparse_nets:net", "--out", "bad", *options)
    assert words in said
    assert said.count("\n") == 1
    assert not Path("bad").exists()


def test_missing_out_unknown_keys_and_folders_in_use(capsys):
    assert "give --out DIR" in failing(capsys, 64, "sparsify", "sparse_nets:net")
    Path("odd.yaml").write_text("model: sparse_nets:net\nsparsty: 0.5\n")
    assert "did you mean 'sparsity'?" in failing(capsys, 64, "sparsify", "--run", "odd.yaml")
    assert "model is missing" in failing(capsys, 64, "sparsify", "--out", "bad")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("")
    assert "did not write" in failing(capsys, 64, "sparsify", "sparse_nets:net", "--out", "mine")
    argv = ["sparsify", "sparse_nets:net", "--out", "twice"]
    assert main(argv) == 0
    assert "holds the finished result of this run" in failing(capsys, 64, *argv)
    assert "a result of other arguments" in failing(capsys, 64, *argv, "--sparsity", "0.8")
    assert main([*argv, "--sparsity", "0.8", "--force"]) == 0
    assert float(1 - load_masks("twice")["4.weight"].float().mean()) == pytest.approx(0.8, abs=1e-3)


def test_what_cannot_be_reached_is_exit_code_3(capsys, monkeypatch):
    stuck = Pattern("stuck", lambda shape, wanted: 0, lambda s, k, a: torch.ones_like(s, dtype=torch.bool))
    monkeypatch.setattr(patterns, "per_row", stuck, raising=False)
    monkeypatch.setattr(sc, "per_row", stuck, raising=False)
    assert main(["sparsify", "sparse_nets:net", "--pattern", "per_row", "--out", "stuck"]) == 3
    assert "Limit not met" in capsys.readouterr().out or not json.loads(Path("stuck/report.json").read_text())["ok"]


def test_texts_of_patterns_and_densities():
    assert pattern("2:4").density == 0.5
    assert pattern("1:16").name == "1:16"
    assert pattern("block:4x1").name == patterns.block(4, 1).name
    assert pattern("unstructured") is patterns.unstructured
    assert pattern("per_row") is patterns.per_row
    with pytest.raises(ArgumentError):
        pattern("4:2")
    for name in ("even", "ranked", "erk", "uniform_plus", "lamp"):
        assert density(name).__name__ == name
    assert callable(density("owl"))  # made by a function


def test_two_of_four(capsys):
    assert main(["sparsify", "sparse_nets:net", "--pattern", "2:4", "--only", "4", "--out", "nm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["pruned"] == 0.5
    assert (load_masks("nm")["4.weight"].reshape(-1, 4).sum(1) == 2).all()
    said = failing(capsys, 64, "sparsify", "sparse_nets:net", "--pattern", "2:4", "--sparsity", "0.9", "--out", "nm9")
    assert "pattern 2:4 removes 0.5 of the weights by itself" in said


def test_tickets_from_a_recipe(capsys):
    argv = ["tickets", "cli_recipe:recipe", "--rounds", "1", "--out", "found"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["case"] for r in found["rows"]] == ["ticket", "ticket", "random_init", "shuffled_mask"]
    assert {p.name for p in Path("found").iterdir()} == {
        "tickets.csv", "tickets.png", "start", "state", "round-00", "round-01",
    }  # fmt: skip
    assert main(argv) == 0  # nothing left to do
    said = capsys.readouterr()
    assert "shuffled_mask" in said.out
    assert "tickets.csv" in said.err
    assert "another run" in failing(capsys, 1, *argv, "--rate", "0.5")


def test_tickets_that_are_killed_go_on(place):
    torch.set_num_threads(1)
    (place / "die").write_text("37")  # in the first round
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = ["tickets", "cli_recipe:recipe", "--rounds", "1", "--out"]
    command = [sys.executable, "-m", "secateur.cli", *argv, "cut"]
    killed = subprocess.run(command, env={**env, "DIE_AFTER": str(place / "die")}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert main([*argv, "cut"]) == 0
    assert main([*argv, "whole"]) == 0
    assert Path("cut/tickets.csv").read_bytes() == Path("whole/tickets.csv").read_bytes()


def test_recipes_that_are_not_are_refused(capsys):
    to = ["--rounds", "1", "--out", "no"]
    assert "did you mean 'evaluate'?" in failing(capsys, 64, "tickets", "cli_recipe:misspelt", *to)
    assert "no function 'evaluate'" in failing(capsys, 64, "tickets", "cli_recipe:no_evaluate", *to)
    assert "expected a dict" in failing(capsys, 64, "tickets", "cli_recipe:STEPS", *to)
    assert "run.attach(optimizer)" in failing(capsys, 64, "tickets", "cli_recipe:never_attached", *to)
    assert failing(capsys, 64, "tickets", "cli_recipe:recipe", "--rounds", "0", "--out", "no")
