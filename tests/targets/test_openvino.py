"""The OpenVINO target, against torch; its files, its memory."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets.openvino import export, load, openvino

pytest.importorskip("openvino")


class Masked(nn.Module):
    """Two inputs of one type and shape that do different things, given in either order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, ids, mask):
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1), mask.sum()


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def test_outputs_are_those_of_torch_on_other_examples_and_given_files_stay(tmp_path):
    torch.manual_seed(0)
    model = Masked().train()
    ids, mask = torch.randint(0, 20, (1, 5)), torch.ones(1, 5, dtype=torch.long)
    file = export(model, {"mask": mask, "ids": ids}, tmp_path)
    assert model.training
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    artefact = load(file, {"ids": ids, "mask": mask}, 2)
    assert (artefact.target, artefact.threads, artefact.batch) == ("openvino", 2, 1)
    assert artefact.nbytes == sum(f.stat().st_size for f in tmp_path.iterdir()) > 20 * 8 * 4
    for n in (1, 3):
        ids, mask = torch.randint(0, 20, (n, 5)), torch.randint(0, 2, (n, 5))
        for example in ({"ids": ids, "mask": mask}, {"mask": mask, "ids": ids}):
            for got, want in zip(artefact.call(example), model(ids, mask), strict=True):
                np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-6)
    before = [a.copy() for a in artefact.run()]
    artefact.call({"ids": torch.zeros_like(ids), "mask": mask})
    assert all(np.array_equal(a, b) for a, b in zip(before, artefact.run(), strict=True))
    del artefact
    gc.collect()
    assert file.is_file()


def test_arithmetic_is_float32(tmp_path):
    torch.manual_seed(0)
    model, x = conv_net().eval(), torch.randn(2, 3, 8, 8)
    got = openvino.build(model, x, 1).run()[0]
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_temporary_folder_goes_with_the_last_artefact():
    artefact = openvino.build(nn.Linear(3, 2), torch.ones(1, 3), 1)
    folder = Path(artefact.path).parent
    second = artefact.again()
    del artefact
    gc.collect()
    assert folder.is_dir()
    assert second.run()[0].shape == (1, 2)
    del second
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(1, 5), torch.ones(1, 3).double(), torch.ones(3), (torch.ones(1, 3), torch.ones(1, 3))],
)
def test_example_that_does_not_fit_is_refused(wrong):
    artefact = openvino.build(nn.Linear(3, 2), torch.ones(1, 3), 1)
    with pytest.raises(TargetError, match="the file takes"):
        artefact.call(wrong)


def test_damaged_or_absent_file_is_refused(tmp_path):
    with pytest.raises(TargetError, match=r"openvino: there is no file .*net.xml"):
        load(tmp_path / "net.xml", torch.ones(1, 3))
    file = export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path)
    file.with_suffix(".bin").unlink()
    with pytest.raises(TargetError, match=r"model.xml cannot be loaded: .*is .*model.bin whole"):
        load(file, torch.ones(1, 3))


def test_missing_extra_is_named_before_anything_is_exported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[openvino\]'"):
        export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_is_that_of_a_process_of_its_own():
    parent = np.ones(40_000_000)  # 320 MB here must not count there
    peak = openvino.build(nn.Linear(256, 128), torch.ones(1, 256), 1).peak()
    assert 256 * 128 * 4 < peak < 160_000_000 < parent.nbytes


def test_ctrl_c_after_artefacts_have_gone_in_any_order():
    """The plugin lends its thread a stack for signals: a freed one that came back made Ctrl-C a crash."""
    script = """
import gc, signal, torch, secateur as sc
net, x = torch.nn.Linear(8, 8), torch.zeros(1, 8)
first, second = sc.openvino.build(net, x, 1), sc.openvino.build(net, x, 1)
del first
gc.collect()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("alive")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
