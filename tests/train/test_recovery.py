import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError, PlanError
from secateur.progress import progress
from secateur.train.recovery import finetune
from tiny import mlp


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


def test_trains_in_place_and_keeps_the_modes():
    def train(model):
        model.train()
        model[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()

    model = net()
    before = copy.deepcopy(model.state_dict())
    history = finetune(train, name="my training").run(model, net(), None)
    assert not torch.equal(model[2].weight, before["2.weight"])
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not any(m.training for m in model.modules())
    assert model[0].weight.requires_grad
    assert history.stopped == "train returned"
    assert history.seconds > 0
    assert finetune(train, name="my training").name == "my training"


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapped, lambda m: torch.compile(m, backend="eager")])
def test_another_module_is_copied(wrap):
    other = net()
    with torch.no_grad():
        other[2].weight.fill_(5.0)
    model = net()
    weight = model[2].weight
    finetune(lambda m: wrap(other)).run(model, net(), None)
    assert model[2].weight is weight
    assert (weight == 5.0).all()


def grow(model):
    model[2] = nn.Linear(4, 3)


def add(model):
    model.add_module("head", nn.Linear(2, 2))


def spoil(model):
    model[2].weight.data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("train", "error", "match"),
    [
        (grow, PlanError, r"2.weight from \(2, 4\) to \(3, 4\)"),
        (add, PlanError, r"unexpected \['head.bias', 'head.weight'\]"),
        (spoil, DataError, "first 2.weight"),
        (lambda m: 0.93, TypeError, "float"),
        (lambda m: nn.Linear(3, 4), PlanError, "missing"),
    ],
)
def test_errors(train, error, match):
    with pytest.raises(error, match=match):
        finetune(train).run(net(), net(), None)


def test_progress_is_quiet_off_a_terminal(capsys, monkeypatch):
    for forced in (False, True):
        if forced:
            monkeypatch.setenv("FORCE_COLOR", "1")
        else:
            monkeypatch.delenv("FORCE_COLOR", raising=False)
        with progress("training", 3) as tell:
            tell(2, "loss 0.5")
        seen = capsys.readouterr()
        assert seen.out == ""
        assert ("training" in seen.err and "loss 0.5" in seen.err) == forced
        assert forced or seen.err == ""


def test_least_squares_wants_the_plan() -> None:
    net = mlp(4, 8, 2)
    with pytest.raises(PlanError, match="refit: no plan was given"):
        sc.refit([torch.randn(8, 4)]).run(net, net, None)
