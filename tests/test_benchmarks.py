"""The benchmarks' shared parts, and a smoke run of the quick ones; their figures are made by `make bench`."""

from __future__ import annotations

import csv
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import secateur as sc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "benchmarks" / "llm"))

import _ours
import _plain
import _subject

import _fashion
import _models
import _peer
import _photos
import _rows
import _tables
import _tables_budget
import _tables_llm
import _tables_sparse
from _rows import Figure
from secateur.llm.prune import Pruning, llm_prune

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECATEUR_BENCH_RESULTS", str(tmp_path / "main.csv"))
    return tmp_path / "main.csv"


def of(path: Path, experiment: str) -> list[tuple[str, str, str, str]]:
    return [(r["case"], r["metric"], r["value"], r["seed"]) for r in _rows.read(path) if r["experiment"] == experiment]


def test_rows_of_an_experiment_take_the_place_of_its_old_ones(file: Path) -> None:
    _rows.write("b", [Figure("x", "accuracy", 90.0, "%"), Figure("y", "accuracy", 91.0, "%")])
    _rows.write("a", [Figure("x", "seconds", 1.5, "s")])
    _rows.write("b", [Figure("z", "accuracy", 92.25, "%")])
    assert of(file, "b") == [("z", "accuracy", "92.25", "")]
    assert of(file, "a") == [("x", "seconds", "1.5", "")]
    with file.open(newline="") as f:
        header = next(csv.reader(f))
    assert header == "experiment,case,metric,value,unit,seed,machine,versions,date".split(",")
    assert [r["experiment"] for r in _rows.read(file)] == ["a", "b"]
    assert all("torch=" in r["versions"] and r["machine"] and r["date"] for r in _rows.read(file))


def test_only_the_named_cases_are_replaced(file: Path) -> None:
    _rows.write("b", [Figure("x", "accuracy", 1.0), Figure("y", "accuracy", 2.0)])
    _rows.write("b", [Figure("y", "accuracy", 3.0)], cases=["y"])
    assert of(file, "b") == [("x", "accuracy", "1", ""), ("y", "accuracy", "3", "")]
    with pytest.raises(ValueError, match="not one of the cases"):
        _rows.write("b", [Figure("x", "accuracy", 3.0)], cases=["y"])


def test_means_over_seeds_stand_beside_the_seeds(file: Path) -> None:
    _rows.write("b", [Figure("x", "accuracy", 90.0, "%", 0), Figure("x", "accuracy", 93.0, "%", 1)])
    assert of(file, "b")[-1] == ("x", "accuracy", "91.5", "mean")


def test_a_refused_write_leaves_the_file_as_it_was(file: Path) -> None:
    _rows.write("b", [Figure("x", "accuracy", 1.0)])
    before = file.read_bytes()
    for bad in ([Figure("x", "loss", float("nan"))], [Figure("x", "a", 1.0), Figure("x", "a", 2.0)]):
        with pytest.raises(ValueError, match="finite|twice"):
            _rows.write("b", bad)
    assert file.read_bytes() == before
    file.write_text("other,columns\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        _rows.write("b", [Figure("x", "accuracy", 1.0)])


def test_committed_figures_are_well_formed() -> None:
    rows = _rows.read(ROOT / "benchmarks" / "results" / "main.csv")
    keys = [(r["experiment"], r["case"], r["metric"], r["seed"]) for r in rows]
    assert len(keys) == len(set(keys))
    assert all(float(r["value"]) == float(r["value"]) for r in rows)


def test_the_page_of_results_is_what_the_rows_say() -> None:
    assert _tables.PAGE.read_text(encoding="utf-8") == _tables.page(), "make it anew: python benchmarks/_tables.py"


def test_the_table_of_equal_latency_has_every_case() -> None:
    rows = _rows.read(ROOT / "benchmarks" / "results" / "budget.csv")
    cases = {r["case"] for r in rows if r["experiment"] == _tables_budget.EQUAL.experiment}
    assert cases
    assert cases <= _tables_budget.EQUAL.cases.keys()  # shares stand in the names of cases


def table_rows(text: str) -> list[list[str]]:
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("| ")]
    return [[c.strip() for c in line.split("|")] for line in lines]


def test_the_readme_says_what_the_rows_say() -> None:
    def cells(text: str) -> dict[str, list[float]]:
        rows = table_rows(text)
        return {r[0]: [float(c) for c in r[1:6]] for r in rows if len(r) > 5 and re.match(r"[+-]?[0-9.]+$", r[1])}

    shown = cells((ROOT / "README.md").read_text(encoding="utf-8"))
    rows = _rows.read(ROOT / "benchmarks" / "results" / "main.csv")
    assert shown
    assert shown.items() <= cells("\n".join(_tables.MINILM.lines(rows))).items()


def test_the_readme_says_the_perplexities_of_language_models() -> None:
    methods = {
        "ADMM towards the dense model's outputs": "admm+dense_targets",
        "SparseGPT": "sparsegpt",
        "Wanda": "wanda",
    }
    libraries = {"secateur": "secateur", "llm-compressor 0.14": "llmcompressor"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = _rows.read(ROOT / "benchmarks" / "results" / "llm.csv")
    found = {
        r["case"]: f"{float(r['value']):.1f}"
        for r in rows
        if (r["experiment"], r["metric"]) == ("one_shot", "perplexity")
    }
    assert f"(dense {found['dense']};" in text
    shrunk = {r["case"]: f"{float(r['value']):.1f}" for r in rows if r["metric"] == "perplexity"}
    small, more = ((shrunk[f"{size}%/mixed"], shrunk[f"{size}%/mixed+distilled"]) for size in (10, 20))
    told = f"{small[0]} with 10 % fewer parameters and {more[0]} with 20 %, without training; {small[1]} and {more[1]}"
    assert told in " ".join(text.split())
    took = {r["case"]: float(r["value"]) for r in rows if r["metric"] == "ratio_to_llmcompressor"}
    assert f"SparseGPT at 50 % takes {took['secateur/sparsegpt/50%']:.2f} of llm-compressor's time" in text
    assert f"Wanda {took['secateur/wanda/50%']:.2f} (one" in text
    patterns = ("50%", "2:4", "70%")
    lines = [r for r in table_rows(text) if len(r) == 4 and r[0].partition(", ")[0] in libraries]
    assert len(lines) == 5
    for name, *shown in lines:
        library, _, method = name.partition(", ")
        cases = [f"{libraries[library]}/{methods[method]}/{pattern}" for pattern in patterns]
        assert shown == [found.get(case, "") for case in cases]


@pytest.mark.parametrize("name", ["GroupMagnitudeImportance", "GroupTaylorImportance"])
def test_the_peer_is_brought_to_the_same_number_of_parameters(name: str) -> None:
    torch.manual_seed(0)
    model, example = _models.cnn()
    x, asked = torch.randn(8, 1, 28, 28), 40_000
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = _peer.cut_to(
        model,
        example,
        asked,
        _peer.importance(name),
        loss=lambda m: m(x).square().sum(),
        options=lambda m, ratio: {"ignored_layers": _peer.classifiers(m)},
    )
    assert abs(sum(p.numel() for p in small.parameters()) - asked) <= 0.05 * asked
    assert small(x).shape == (8, 10)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_the_peer_returns_can_be_recovered_and_measured_like_ours() -> None:
    model, example = _models.cnn(8)
    small = _peer.cut_to(
        model,
        example,
        3_000,
        _peer.importance("GroupMagnitudeImportance"),
        options=lambda m, ratio: {"ignored_layers": _peer.classifiers(m)},
    )
    data = [torch.randn(16, 1, 28, 28) for _ in range(2)]
    sc.recalibrate_bn(data).run(small, model, None)
    sc.distill(data, steps=1).run(small, model, None)
    dense, cut = sc.measure_models(sc.eager, [model, small], example, 3)
    assert dense.median > 0
    assert cut.median > 0
    assert isinstance(small, nn.Module)


def test_idx_files_are_read_whatever_folder_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_FASHION_MNIST", str(tmp_path))
    pixels, classes = bytes(range(256)) * (3 * 28 * 28 // 256) + bytes(48), bytes([7, 0, 9])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + classes))
    images = _fashion.load("train")
    assert images.y.tolist() == [7, 0, 9]
    assert images.x.shape == (3, 1, 28, 28)
    back = images.x.flatten() * _fashion.DEVIATION + _fashion.MEAN
    assert (back * 255).round().byte().tolist() == list(pixels)


def test_an_augmented_image_is_the_image_or_its_mirror() -> None:
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    seen = _fashion.augment(x, torch.Generator().manual_seed(1))
    same, mirrored = ((seen == y).flatten(1).all(1) for y in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    assert 20 < same.sum() < 44


def test_epochs_are_a_function_of_seed_and_number() -> None:
    images = _fashion.Images(torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 1, 28, 28), torch.arange(10))
    epoch = _fashion.epochs_of(images, 4, seed=3)
    first, again, other = ([y.tolist() for _, y in epoch(n)] for n in (0, 0, 1))
    assert first == again != other
    assert len({label for batch in first for label in batch}) == 8


def test_photographs_are_split_before_they_are_cut() -> None:
    given = _photos.photos(24, 8, 22, seed=0)
    assert given.calibration.shape == (24, 3, 224, 224)
    assert given.sensitivity.shape == (8, 3, 224, 224)
    assert given.judged.shape == (22, 3, 224, 224)
    assert -1 <= given.judged.min() < -0.5 < 0.5 < given.judged.max() <= 129 / 128
    assert torch.equal(_photos.photos(24, 8, 22, seed=0).judged, given.judged)


@pytest.mark.parametrize("script", ["masked_equals_shrunk", "trace_seconds", "large_models"])
def test_a_smoke_run_writes_its_rows(script: str, tmp_path: Path) -> None:
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = _rows.read(tmp_path / "quick.csv")
    assert {r["experiment"] for r in found} == {script}
    if script == "masked_equals_shrunk":
        errors = [float(r["value"]) for r in found if r["metric"] == "max_relative_error"]
        assert len(errors) == 2
        assert max(errors) <= 1e-10


def test_the_experiments_on_sparse_weights_are_in_the_tables(tmp_path: Path) -> None:
    done = run("sparse", tmp_path, "mask_overhead")
    assert done.returncode == 0, done.stderr[-2000:]
    found = _rows.read(tmp_path / "quick.csv")
    assert {r["case"] for r in found} == {"dense", "secateur", "torch.nn.utils.prune"}
    files = {f.stem for f in (ROOT / "benchmarks" / "sparse").glob("*.py") if not f.stem.startswith("_")}
    assert {t.experiment for t in _tables_sparse.TABLES} == files


def test_a_language_model_is_pruned_saved_and_judged_in_clean_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_BENCH_PARTS", "secateur/*")
    done = run("llm", tmp_path, "one_shot")
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(r["case"], r["metric"]): float(r["value"]) for r in _rows.read(tmp_path / "quick.csv")}
    assert set(found) == {("secateur/wanda/2:4", "perplexity"), ("secateur/wanda/2:4", "sparsity")}
    assert found["secateur/wanda/2:4", "sparsity"] == 50
    assert {t.experiment for t in _tables_llm.TABLES} == {
        "one_shot",
        "orders",
        "structured",
        "time",
        "products",
        "memory",
    }


def test_a_limited_command_tells_its_own_peak_not_its_parents(tmp_path: Path) -> None:
    (tmp_path / "grow.py").write_text("held = bytearray(64 << 20)\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "llm" / "_limited.py"), str(4 << 30), tmp_path / "grow.py"]
    peak = _subject.run(command).peak
    assert peak is not None
    assert 64 << 20 <= peak < 128 << 20  # this process, with torch in it, holds more than that
    assert _subject.run([sys.executable, "-c", ""]).peak is None


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_library_prunes_as_the_plain_loops_do(method: str, pattern: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=2, **shape)).eval()
    windows = torch.randint(0, 128, (8, 16))
    how = Pruning(**_ours.WAYS[method], **_ours.shape(pattern))
    llm_prune(model, windows, how, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    plain = _plain.prune_(model, windows, _plain.LOOPS[method], pattern).state_dict()
    blocks = [name for name in plain if name.endswith("_proj.weight")]
    assert len(blocks) == 14
    assert all(torch.allclose(found[name], plain[name], atol=1e-5) for name in blocks)
    assert all(int((plain[name] == 0).sum()) == plain[name].numel() // 2 for name in blocks)


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "SECATEUR_BENCH_QUICK": "1",
        "SECATEUR_BENCH_RESULTS": str(folder / "quick.csv"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])),
    }
    place = ROOT / "benchmarks" / script
    command = [sys.executable, str(place if place.is_dir() else place.with_suffix(".py")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
