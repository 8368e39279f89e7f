"""The eager target: same outputs as the model, nothing changed around it."""

import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets.eager import build, eager, with_threads


def test_runs_what_the_model_computes_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten()).train()
    x, other = torch.randn(2, 3, 5, 5), torch.randn(6, 3, 5, 5)
    mean = model[1].running_mean.clone()
    artefact = eager.build(model, x, 1)
    assert model.training
    assert all(m.training for m in model.modules())
    ran, called = artefact.run()[0], artefact.call(other)[0]
    assert torch.equal(model[1].running_mean, mean)
    model.eval()
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(ran), model(x))
        assert torch.equal(torch.from_numpy(called), model(other))
    assert (artefact.target, artefact.threads, artefact.batch) == ("eager", 1, 2)
    assert (artefact.nbytes, artefact.path, artefact.peak) == (None, None, None)


class Count(nn.Module):
    def forward(self, a, b=None):
        return {
            "threads": torch.tensor(torch.get_num_threads()),
            "grad": torch.is_grad_enabled() + a.sum() * 0,
        }


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_set_for_the_run_only(threads):
    before = torch.get_num_threads()
    artefact = build(Count(), {"a": torch.zeros(1), "b": None}, threads)
    assert artefact.run()[0].item() == threads
    assert artefact.call({"a": torch.zeros(1)})[0].item() == threads
    assert artefact.run()[1].item() == 0
    assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    artefact = build(nn.Linear(3, 2), torch.ones(1, 3), before + 1)
    with pytest.raises(TargetError, match="Linear does not run on the example given: RuntimeError: mat1"):
        artefact.call(torch.ones(1, 4))
    assert torch.get_num_threads() == before


def test_example_that_does_not_fit_is_refused_when_built():
    with pytest.raises(TargetError, match="Linear does not run on the example given"):
        build(nn.Linear(3, 2), {"y": torch.ones(1, 3)}, 1)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_must_be_positive(threads):
    with pytest.raises(TargetError, match="at least 1"):
        with_threads(eager, threads)


def test_with_threads_changes_a_copy():
    assert with_threads(eager, 4).threads == 4
    assert eager.threads == 1


def test_half_precision_outputs_become_arrays():
    model = nn.Linear(3, 2).bfloat16()
    assert build(model, torch.ones(1, 3, dtype=torch.bfloat16), 1).run()[0].dtype.name == "float32"
