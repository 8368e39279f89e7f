"""The LiteRT target, against torch."""

import sys
from pathlib import Path

import pytest
import torch

from edge import assert_names_op_and_line, assert_runs_a_transformer, assert_same_outputs, words
from secateur.errors import TargetError
from secateur.targets.litert import export, litert, load
from tiny import cnn, draws


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("litert_torch", reason="the litert extra is not installed")
    model = cnn().eval()
    (x,) = draws(1, 2, 3, 8, 8)
    return model, x, export(model, x, tmp_path_factory.mktemp("tflite"))


def test_a_cnn_gives_what_torch_gives_on_any_number_of_threads(written):
    model, x, file = written
    for threads in (1, 2):
        artefact = load(file, x, threads)
        assert (artefact.target, artefact.threads, artefact.batch) == ("litert", threads, 2)
        assert artefact.nbytes == Path(artefact.path).stat().st_size > sum(p.nbytes for p in model.parameters())
        for other in (x, *draws(2, 2, 3, 8, 8, seed=1), x.to(memory_format=torch.channels_last)):
            assert_same_outputs(artefact, model, other)
        assert_same_outputs(artefact.again(), model, x)


def test_peak_memory_holds_the_weights_at_least(written):
    model, x, file = written
    assert load(file, x).peak() > sum(p.nbytes for p in model.parameters())


def test_other_sizes_types_and_broken_files_are_refused(written, tmp_path):
    _, x, file = written
    with pytest.raises(TargetError, match=r"is float32 \[5, 3, 8, 8\]; .* takes float32 \[2, 3, 8, 8\]"):
        load(file, torch.ones(5, 3, 8, 8))
    with pytest.raises(TargetError, match=r"is float64 .* takes float32"):
        load(file, x.double())
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"broken")
    with pytest.raises(TargetError, match=r"broken.tflite cannot be loaded: .*is it a whole file"):
        load(broken, x)
    with pytest.raises(TargetError, match="there is no file"):
        load(tmp_path / "none.tflite", x)


def test_a_transformer_called_by_keyword():
    pytest.importorskip("litert_torch", reason="the litert extra is not installed")
    assert_runs_a_transformer(litert)


def test_what_cannot_be_converted_is_named_with_its_line(tmp_path):
    pytest.importorskip("litert_torch", reason="the litert extra is not installed")
    assert_names_op_and_line(litert, tmp_path)


def test_whole_numbers_beyond_those_of_the_file_are_refused(tmp_path):
    pytest.importorskip("litert_torch", reason="the litert extra is not installed")
    table = torch.nn.Embedding(20, 4)
    artefact = litert.build(table, words()["ids"], 1)
    assert_same_outputs(artefact, table, words(seed=3)["ids"])
    with pytest.raises(TargetError, match="is int64 .* takes int32"):
        artefact.call(words()["ids"] + 2**40)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[litert\]'"):
        litert.build(torch.nn.Linear(3, 2), torch.ones(1, 3), 1)
