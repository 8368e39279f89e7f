"""Evaluations of folders: what was saved is what is judged."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny_llm
import torch
import yaml

import secateur as sc
from secateur.cli.app import main
from secateur.errors import ArgumentError, DataError, FormatError, TargetError
from secateur.llm.agreement import beside
from secateur.llm.card import card, write_card
from secateur.llm.evaluate import Asked, evaluate, read_evaluation
from secateur.llm.perplexity import perplexity
from secateur.llm.saved import densities, open_model
from secateur.targets.eager import eager

WINDOW = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Dense, pruned and sparse folders, and a text."""
    where = tmp_path_factory.mktemp("llm")
    tiny_llm.folder(where / "dense", tiny_llm.llama())
    tiny_llm.folder(where / "pruned", tiny_llm.halved(tiny_llm.llama()))
    sc.save_sparse(where / "sparse", tiny_llm.halved(tiny_llm.llama()))
    tiny_llm.tokenizer().save_pretrained(where / "sparse")
    (where / "a.txt").write_text(tiny_llm.text(200, 1))
    (where / "b.txt").write_text(tiny_llm.text(150, 2))
    return where


def asked(place, **changes):
    return Asked((place / "a.txt", place / "b.txt"), WINDOW, **changes)


def ids(place):
    text = "\n\n".join((place / n).read_text() for n in ("a.txt", "b.txt"))
    return torch.tensor(tiny_llm.tokenizer()(text)["input_ids"])


def by_name(found):
    return {r.what: r for r in found.rows}


def test_figures_are_those_of_the_models(place):
    found = evaluate(place / "pruned", asked(place), place / "dense")
    dense, pruned = tiny_llm.llama(), tiny_llm.halved(tiny_llm.llama())
    expected = beside(pruned, dense, ids(place), WINDOW)
    rows = by_name(found)
    assert rows["perplexity"].pruned == pytest.approx(expected.pruned.value, rel=1e-6)
    assert rows["perplexity"].dense == pytest.approx(expected.dense.value, rel=1e-6)
    assert rows["KL of pruned from dense"].pruned == pytest.approx(expected.agreement.kl.value, rel=1e-5)
    assert rows["parameters"].pruned == rows["parameters"].dense == sum(p.numel() for p in dense.parameters())
    zeros = sum(int((p == 0).sum()) for p in pruned.parameters())
    assert rows["parameters"].pruned - rows["parameters that are not zero"].pruned == zeros
    assert rows["size of the files"].pruned == (place / "pruned" / "model.safetensors").stat().st_size
    protocol = found.data["protocol"]
    assert (protocol["window"], protocol["stride"], protocol["tokens"]) == (WINDOW, WINDOW, 10 * 31)
    assert [t["name"] for t in protocol["texts"]] == ["a.txt", "b.txt"]
    assert all(0.45 < b["density"] < 0.55 and b["error"] > 0 for b in found.data["blocks"])
    assert [b["block"] for b in found.data["blocks"]] == ["model.layers.0", "model.layers.1"]


def test_the_sparse_format_is_judged_alike(place):
    plain, sparse = (evaluate(place / n, asked(place)) for n in ("pruned", "sparse"))
    assert by_name(sparse)["perplexity"].pruned == pytest.approx(by_name(plain)["perplexity"].pruned, rel=1e-6)
    assert by_name(sparse)["size of the files"].pruned < by_name(plain)["size of the files"].pruned
    assert sparse.data["loads_with"] == "secateur"
    assert plain.data["loads_with"] == "transformers"


def test_a_cut_checkpoint_is_judged(place, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.llm.evaluate.peak_memory", lambda folder, *given, **more: len(folder.name))
    net = tiny_llm.llama()
    example = {"input_ids": torch.tensor([[1, 2, 3, 4]])}
    plan = sc.random_plan(sc.couple(sc.trace(net, example)), 0.6, seed=0)
    small = sc.apply(plan, net)
    sc.save(tmp_path / "cut", small, plan)
    tiny_llm.tokenizer().save_pretrained(tmp_path / "cut")
    found = evaluate(tmp_path / "cut", asked(place, targets=(eager,), prompt=8, steps=2, repeats=2), place / "dense")
    rows = by_name(found)
    assert rows["perplexity"].pruned == pytest.approx(perplexity(small, ids(place), WINDOW).value, rel=1e-6)
    assert rows["parameters"].ratio < 1
    assert {"prefill on eager", "decode on eager", "peak memory", "size of the key-value cache"} <= set(rows)
    assert (rows["peak memory"].pruned, rows["peak memory"].dense) == (len("cut"), len("dense"))
    assert found.data["made_by"]["file"] == "plan.json"


def test_a_clean_process_finds_the_same(place):
    code = (
        "import sys; from pathlib import Path; from secateur.llm.evaluate import *; d = Path(sys.argv[1]);"
        f"print(evaluate(d / 'pruned', Asked((d / 'a.txt', d / 'b.txt'), {WINDOW})).data['perplexity']['value'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    here = evaluate(place / "pruned", asked(place)).data["perplexity"]["value"]
    assert float(done.stdout) == here


def test_it_is_saved_and_read(place, tmp_path):
    found = evaluate(place / "pruned", asked(place, tokens=40))  # one window: no interval
    assert found.data["protocol"]["windows"] == 1
    read = read_evaluation(found.save(tmp_path).parent)
    assert json.dumps(read.data) == json.dumps(dict(found.data))
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(FormatError, match=r"cut off"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"schema": 1}')
    with pytest.raises(FormatError, match=r"no evaluation of version 1"):
        read_evaluation(tmp_path)


def test_wrong_folders_say_what_is_wrong(place, tmp_path):
    with pytest.raises(ArgumentError, match=r"no such folder"):
        evaluate(tmp_path / "none", asked(place))
    bare = tmp_path / "bare"
    tiny_llm.llama().save_pretrained(bare)
    with pytest.raises(ArgumentError, match=r"holds no tokenizer"):
        evaluate(bare, asked(place))
    assert evaluate(bare, asked(place), place / "dense").data["perplexity"]  # the dense one's
    half = shutil.copytree(place / "pruned", tmp_path / "half")
    (half / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no .safetensors"):
        evaluate(half, asked(place))
    small = tiny_llm.folder(tmp_path / "few", tiny_llm.llama(vocab_size=20))
    with pytest.raises(DataError, match=r"vocabulary of 20"):
        evaluate(small, asked(place))


def test_half_precision_is_as_stored_unless_asked(place, tmp_path):
    tiny_llm.folder(tmp_path / "half", tiny_llm.llama().bfloat16())
    assert open_model(tmp_path / "half")[0].dtype == torch.bfloat16
    assert evaluate(tmp_path / "half", asked(place)).data["protocol"]["dtype"] == "bfloat16"
    found = evaluate(tmp_path / "half", asked(place, dtype=torch.float32))
    assert found.data["protocol"]["dtype"] == "float32"


def test_density_leaves_vectors_and_embeddings_out():
    net = tiny_llm.halved(tiny_llm.llama(layers=3))
    found = densities(net)
    assert [d.block for d in found] == ["model.layers.0", "model.layers.1", "model.layers.2", ""]
    one = net.model.layers[1]
    assert found[1].size == sum(p.numel() for p in one.parameters() if p.dim() == 2)
    assert found[-1].size == 2 * 64 * 32


def test_every_figure_of_the_card_is_in_the_report(place, tmp_path):
    found = evaluate(place / "pruned", asked(place), place / "dense")
    text = card(found, "someone/dense")
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["base_model"] == "someone/dense"
    assert about["library_name"] == "transformers"
    assert {"pruned", "secateur"} <= set(about["tags"])
    assert found.data["protocol"]["words"] in body
    assert f"{found.data['perplexity']['value']:.1f}" in body
    assert 'from_pretrained("pruned")' in body
    file = write_card(tmp_path, found)
    assert yaml.safe_load(file.read_text().split("---\n")[1])["base_model"] == "dense"
    write_card(tmp_path, found)  # our own is replaced
    file.write_text("# mine\n")
    with pytest.raises(FormatError, match=r"not written by secateur"):
        write_card(tmp_path, found)


def test_the_command(place, tmp_path, capsys):
    words = ["llm", "eval", str(place / "pruned"), "--dense", str(place / "dense"), "--text", str(place / "a.txt")]
    assert main([*words, "--window", "32", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "perplexity" in said.out
    assert "186 tokens scored in 6 windows of 32" in " ".join(said.out.split())
    page = (tmp_path / "evaluation.html").read_text()
    assert "Error of the hidden state by block" in page
    assert main([*words, "--window", "32", "--json", "--beside", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "evaluation.json").read_text())


def test_what_cannot_be_is_refused_before_a_model_is_opened(place, monkeypatch, tmp_path, capsys):
    def opened(*given):
        pytest.fail("a model was opened")

    monkeypatch.setattr("secateur.llm.evaluate.open_model", opened)
    for changes, error in (
        ({"tasks": tmp_path}, ArgumentError),
        ({"targets": (eager,), "repeats": 0}, ArgumentError),
        ({"targets": (eager,), "prompt": 0}, ArgumentError),
    ):
        with pytest.raises(error, match=r"tasks|repeats=0|prompt=0"):
            evaluate(place / "pruned", asked(place, **changes))
    (tmp_path / "a.yaml").write_text("task: a")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(TargetError, match=r"secateur\[lm-eval\]"):
        evaluate(place / "pruned", asked(place, tasks=tmp_path))
    (tmp_path / "README.md").write_text("# mine\n")
    assert main(["llm", "eval", str(tmp_path), "--text", str(place / "a.txt"), "--card"]) == 1
    assert "not written by secateur" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--tokens", "-5"], 64, "--tokens"),
        (["--window", "9999"], 1, "do not fill one window"),
        (["--window", "1"], 64, "a window has 2 tokens"),
        (["--dtype", "int8"], 64, "float32, bfloat16"),
        (["--target", "eager"], 64, "give --speed"),
        (["--device", "nowhere"], 64, "write cpu, cuda"),
        (["--tasks", "nowhere"], 64, "folder of lm-eval tasks"),
        (["--beside", "nowhere"], 1, "secateur llm eval writes"),
    ],
)
def test_errors_of_the_command(place, capsys, more, code, words):
    assert main(["llm", "eval", str(place / "pruned"), "--text", str(place / "a.txt"), "--window", "32", *more]) == code
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("packed", [False, True])
def test_what_pruning_wrote_is_judged_with_what_it_told(place, tmp_path, packed):
    from secateur.choose.patterns import per_row
    from secateur.llm.prune import Pruning, llm_prune
    from secateur.solve.scores import wanda_mask

    tokens = ids(place)[: 4 * WINDOW].view(4, WINDOW)
    llm_prune(place / "dense", tokens, Pruning(wanda_mask, per_row, 0.5), tmp_path / "out", packed=packed)
    found = evaluate(tmp_path / "out", asked(place), place / "dense")
    assert [b["density"] for b in found.data["blocks"]] == [0.5, 0.5]
    assert all(b["solved"] > 0 and b["error"] > 0 for b in found.data["blocks"])
    assert found.data["made_by"]["made"]["sparsity"] == 0.5
    assert found.data["loads_with"] == ("secateur" if packed else "transformers")
