"""``secateur llm experts`` and ``secateur llm recover``, whole, with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from secateur.cli.app import main

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = "the shears cut a branch and then another one of that old tree by the wall in spring".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("place")
    vocabulary = {"[UNK]": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(dict.fromkeys(WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder / "dense")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.5)
    model.save_pretrained(folder / "dense")
    order = torch.randint(len(WORDS), (2000,), generator=torch.Generator().manual_seed(0))
    (folder / "text.txt").write_text(" ".join(WORDS[i] for i in order))
    return folder


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, Any]:
    code = main([str(a) for a in argv])
    out = capsys.readouterr()
    return code, json.loads(out.out) if "--json" in argv else out.err + out.out


def test_experts_go_and_the_rest_recovers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--calibration", place / "text.txt", "--samples", 16, "--window", 16, "--out", place / "small", "--json"]
    code, found = told(capsys, "llm", "experts", place / "dense", "--remove", 1, *given)
    assert code == 0
    assert [len(b["kept"]) for b in found["banks"]] == [3, 3]
    given = ["--dense", place / "dense", "--text", place / "text.txt", "--window", 16, "--out", place / "better"]
    code, found = told(capsys, "llm", "recover", place / "small", "--steps", 20, "--lr", 5e-3, *given, "--json")
    assert code == 0
    assert found["loss"][-1] < found["loss"][0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place / "better")
    assert loaded.config.num_local_experts == 3
    assert transformers.AutoTokenizer.from_pretrained(place / "better").eos_token == "</s>"
    held = json.loads((place / "better" / "llm.json").read_text())
    assert held["asked"]["method"] == "experts"
    assert held["recovery"][0]["steps"] == 20
    code, words = told(capsys, "llm", "recover", place / "small", "--steps", 1, *given)
    assert (code, "is in use" in words) == (1, True)


@pytest.mark.parametrize("options", [["--score", "frequency", "--merge", "logits"], ["--score", "random", "--seed", 3]])
def test_other_ways_to_take_experts_out(place: Path, tmp_path: Path, capsys: Any, options: list[Any]) -> None:
    given = ["--calibration", place / "text.txt", "--samples", 4, "--window", 16, "--out", tmp_path / "out"]
    code, words = told(capsys, "llm", "experts", place / "dense", "--remove", 2, *given, *options)
    assert code == 0, words
    assert "2 of 4" in words
    assert "2 experts less in each of 2 layers" in words


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["experts", "dense", "--remove", 3], 64, "has 4 experts, of which 2 are chosen for each token: remove 0 to 2"),
        (["experts", "dense", "--remove", 1, "--score", "best"], 64, "best"),
        (["experts", "dense", "--remove", 1, "--merge", "both"], 64, "write outputs or logits"),
        (["experts", "dense", "--remove", 1, "--align"], 64, "give --merge outputs or logits too"),
        (["recover", "dense", "--steps", 1, "--text", "none.txt"], 64, "none.txt: no such file"),
        (["recover", "dense", "--steps", 1, "--text", "text.txt", "--window", 5000], 1, "2000 tokens, too few"),
        (["recover", "dense", "--steps", 1, "--text", "text.txt", "--temperature", 0], 64, "give a number above 0"),
        (["recover", "none", "--steps", 1, "--text", "text.txt"], 64, "there is no such folder"),
    ],
)
def test_errors(place: Path, tmp_path: Path, capsys: Any, argv: list[Any], code: int, said: str) -> None:
    given = [place / a if a in ("dense", "none", "text.txt", "none.txt") else a for a in argv]
    given += ["--out", tmp_path / "out"]
    if argv[0] == "experts":
        given += ["--calibration", place / "text.txt", "--samples", 4, "--window", 16]
    else:
        given += ["--dense", place / "dense"]
    found, words = told(capsys, "llm", *given)
    assert (found, said in " ".join(words.split())) == (code, True), words
