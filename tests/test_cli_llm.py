"""``secateur llm prune``: from a folder and a text to a folder, a table, a report; errors by exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm.tiny_models import load, make, tokens, write
from secateur.cli.app import main
from secateur.llm.recording import Recorder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(make("gqa"), tmp_path / "dense")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_file({"tokens": tokens(8, 16)}, tmp_path / "tokens.safetensors")
    return tmp_path / "tokens.safetensors"


def test_prune_writes_a_model_and_says_what_it_did(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["llm", "prune", str(model), "--pattern", "2:4", "--calibration", str(data), "--out", str(out)]
    assert main(line) == 0
    said = capsys.readouterr()
    assert said.out.count("0.5000") == 3
    assert "mlp.down_proj" in said.out or "self_attn." in said.out
    assert "(50.00%; " in said.err
    zeros = load(out).model.layers[0].mlp.up_proj.weight == 0
    assert bool((zeros.reshape(-1, 4).sum(1) == 2).all())
    assert main(line) == 64
    assert "holds the finished result of this run" in capsys.readouterr().err
    assert main([*line, "--force", "--json", "--method", "wanda", "--memory", "8GB"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["asked"]["method"] == "wanda"
    assert report["achieved"]["sparsity"] == 0.5
    assert report["calibration"]["tokens"] == 128
    assert len(report["blocks"]) == 3


@pytest.mark.parametrize("command", [["prune"], ["shrink", "--budget", "params=90%"]])
def test_so_many_windows_run_at_once(
    command: list[str], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def batch(self: Recorder, ids: torch.Tensor) -> Any:
        seen.append(len(ids))
        return recorded(self, ids)

    recorded = Recorder.batch
    monkeypatch.setattr(Recorder, "batch", batch)
    line = ["llm", *command, str(model), "--calibration", str(data), "--out", str(tmp_path / "out"), "--batch", "2"]
    assert main(line) == 0
    assert set(seen) == {2}


def test_a_text_is_read_by_the_models_own_tokenizer(model: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", *(f"w{i}" for i in range(40))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(model)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 40}" for i in range(100)))
    line = ["llm", "prune", str(model), "--calibration", str(text), "--samples", "4", "--window", "16"]
    assert main([*line, "--out", str(tmp_path / "out"), "--allocation", "owl"]) == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert main([*line, "--out", str(tmp_path / "more"), "--samples", "7"]) == 1


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--method", "wandas"], 64, "did you mean 'wanda'"),
        (["--pattern", "two"], 64, "pattern"),
        (["--allocation", "owls"], 64, "did you mean 'owl'"),
        (["--format", "gguf"], 64, "write dense or sparse"),
        (["--memory", "much"], 64, "is no size"),
        (["--memory", "1MB"], 2, "one block does not fit"),
        (["--sparsity", "1.5"], 64, "sparsity is the fraction removed"),
    ],
)
def test_wrong_arguments(
    more: list[str], code: int, words: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["llm", "prune", str(model), "--calibration", str(data), "--out", str(tmp_path / "out")]
    assert main([*line, *more]) == code
    assert words in capsys.readouterr().err


def test_no_calibration_and_tokens_of_another_vocabulary(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["llm", "prune", str(model), "--out", str(tmp_path / "out")]
    assert main(line) == 64
    save_file({"tokens": torch.full((1, 4), 999)}, tmp_path / "t.safetensors")
    assert main([*line, "--calibration", str(tmp_path / "t.safetensors")]) == 1
    assert "not in the model's vocabulary of 96" in capsys.readouterr().err
    (tmp_path / "t.safetensors").write_bytes(b"half")
    assert main([*line, "--calibration", str(tmp_path / "t.safetensors")]) == 1
    assert "t.safetensors is damaged, or no safetensors file" in " ".join(capsys.readouterr().err.split())
    save_file({"tokens": torch.ones(4)}, tmp_path / "t.safetensors")
    assert main([*line, "--calibration", str(tmp_path / "t.safetensors")]) == 1
    assert "torch.float32 (4,); expected int64" in " ".join(capsys.readouterr().err.split())
