"""The ExecuTorch target, against torch."""

import sys
from pathlib import Path

import pytest
import torch

from edge import assert_names_op_and_line, assert_runs_a_transformer, assert_same_outputs
from secateur.errors import TargetError
from secateur.targets.executorch import executorch, export, load
from tiny import cnn, draws


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("executorch", reason="the executorch extra is not installed")
    model = cnn().eval()
    (x,) = draws(1, 2, 3, 8, 8)
    return model, x, export(model, x, tmp_path_factory.mktemp("pte"))


def test_a_cnn_gives_what_torch_gives_whatever_the_memory_order(written):
    model, x, file = written
    artefact = load(file, x, 1)
    assert (artefact.target, artefact.threads, artefact.batch) == ("executorch", 1, 2)
    assert artefact.nbytes == Path(artefact.path).stat().st_size > sum(p.nbytes for p in model.parameters())
    for other in (x, *draws(2, 2, 3, 8, 8, seed=1), x.to(memory_format=torch.channels_last)):
        assert_same_outputs(artefact, model, other)
    assert_same_outputs(artefact.again(), model, x)


def test_artefacts_with_other_numbers_of_threads_take_turns(written):
    model, x, file = written
    one, two = load(file, x, 1), load(file, x, 2)
    for artefact in (one, two, one, one, two):
        assert_same_outputs(artefact, model, x)


def test_peak_memory_holds_the_weights_at_least(written):
    model, x, file = written
    assert load(file, x).peak() > sum(p.nbytes for p in model.parameters())


def test_other_sizes_and_broken_files_are_refused(written, tmp_path):
    _, x, file = written
    with pytest.raises(TargetError, match=r"\[\(5, 3, 8, 8\)\]; the file takes \[\(2, 3, 8, 8\)\]"):
        load(file, torch.ones(5, 3, 8, 8))
    broken = tmp_path / "broken.pte"
    for data in (b"broken", file.read_bytes()[:-1000]):
        broken.write_bytes(data)
        with pytest.raises(TargetError, match=r"broken.pte cannot be loaded: .*is it a whole file"):
            load(broken, x)
    with pytest.raises(TargetError, match="there is no file"):
        load(tmp_path / "none.pte", x)


def test_a_transformer_called_by_keyword():
    pytest.importorskip("executorch", reason="the executorch extra is not installed")
    assert_runs_a_transformer(executorch)


def test_what_cannot_be_converted_is_named_with_its_line(tmp_path):
    pytest.importorskip("executorch", reason="the executorch extra is not installed")
    assert_names_op_and_line(executorch, tmp_path)


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[executorch\]'"):
        executorch.build(torch.nn.Linear(3, 2), torch.ones(1, 3), 1)
