"""``secateur llm shrink``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as tf
from safetensors.torch import save_file
from shrinking import llama, texts

from secateur.cli.app import main
from secateur.cli.llm import opened
from secateur.cli.llm_shrink import budget_of, shrinking
from secateur.errors import ArgumentError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    save_file({"tokens": texts()}, tmp_path / "tokens.safetensors")
    return tmp_path


def test_a_folder_is_shrunk_to_two_budgets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llm", "shrink", str(folder / "model"), "--out", str(folder / "small"), "--uniform", "--json"]
    words += ["--budget", "params=80%", "--budget", "kv=50%", "--kinds", "heads,neurons"]
    assert main([*words, "--calibration", str(folder / "tokens.safetensors")]) == 0
    told = json.loads(capsys.readouterr().out)
    for name, budget in told["budgets"].items():
        assert budget["achieved"] <= budget["asked"] < budget["dense"], name
    layers, keys_and_values, groups, width, floats = 3, 2, 2, 8, 4
    assert told["budgets"]["kv"]["dense"] == layers * keys_and_values * groups * width * texts().shape[1] * floats
    small = tf.AutoModelForCausalLM.from_pretrained(folder / "small")
    assert small.config.num_key_value_heads == 1
    assert sum(p.numel() for p in small.parameters()) == told["budgets"]["params"]["achieved"]
    assert (folder / "small" / "generation_config.json").is_file()


def test_times_are_budgets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llm", "shrink", str(folder / "model"), "--out", str(folder / "small"), "--window", "16"]
    words += ["--budget", "prefill=90%", "--budget", "decode=95%"]
    assert main([*words, "--calibration", str(folder / "tokens.safetensors")]) == 0
    assert "prefill" in capsys.readouterr().out


def test_a_budget_out_of_reach_is_refused_with_the_closest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llm", "shrink", str(folder / "model"), "--out", str(folder / "small"), "--kinds", "neurons"]
    words += ["--budget", "params=5%", "--calibration", str(folder / "tokens.safetensors")]
    assert main(words) == 2
    assert "the least that can be reached is" in capsys.readouterr().err


def test_wrong_words_are_told() -> None:
    with pytest.raises(ArgumentError, match="NAME=PERCENT"):
        budget_of("params", 8)
    with pytest.raises(ArgumentError, match="'size' is not params"):
        budget_of("size=50%", 8)
    with pytest.raises(ArgumentError, match="--kinds 'experts'"):
        shrinking("obs", "experts", False, 8, 1.0, "", None)
    with pytest.raises(ArgumentError, match="--score 'best'"):
        shrinking("best", "neurons", False, 8, 1.0, "", None)
    with pytest.raises(ArgumentError, match="--kinds layers: flap ranks units alone"):
        shrinking("flap", "neurons,layers", False, 8, 1.0, None, None)


@pytest.mark.parametrize(
    ("score", "uniform", "layers"), [("flap", False, False), ("flap", True, True), ("obs", False, True)]
)
def test_layers_go_by_default_where_they_can(score: str, uniform: bool, layers: bool) -> None:
    assert shrinking(score, None, uniform, 8, 1.0, None, None).layers == layers


def test_taylor_reads_the_folder_of_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    how = shrinking("taylor", "neurons", False, 8, 1.0, opened("~/model"), texts(2))
    assert how.stats.rows["model.layers.0.mlp.up_proj.weight", 0].shape == (2, 48)
