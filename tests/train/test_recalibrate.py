import copy

import pytest
import torch
from torch import nn

from secateur.errors import DataError
from secateur.train.recalibrate import recalibrate_bn


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.9),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    ).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2)
            m.running_mean.uniform_(-3, 3)
    return model.eval()


def oracle(model, batches):
    """Mean over the batches of each batch's statistics, every norm by hand."""
    means, variances = [[], []], [[], []]
    for x in batches:
        for i, (conv, bn) in enumerate(((model[0], model[1]), (model[4], model[5]))):
            x = conv(x if i == 0 else x.relu())
            flat = x.movedim(1, -1).reshape(-1, x.shape[1])
            means[i].append(flat.mean(0))
            variances[i].append(flat.var(0, unbiased=True))
            x = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + bn.eps).sqrt() * bn.weight + bn.bias
            b, c = batches[0].shape[0], conv.out_channels
            side = batches[0].shape[2] - 2 * (i + 1)
            x = x.reshape(-1, side, side, c).movedim(-1, 1)
            assert x.shape[0] == b
    return [(torch.stack(m).mean(0), torch.stack(v).mean(0)) for m, v in zip(means, variances, strict=True)]


@pytest.mark.parametrize("n", [1, 3])
def test_statistics_are_the_average_over_batches(n):
    model = net()
    batches = [torch.randn(8, 3, 9, 9, dtype=torch.float64) + i for i in range(n)]
    with torch.no_grad():
        want = oracle(model, batches)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[5].momentum = 0.3
    model[0].weight.requires_grad_(False)
    history = recalibrate_bn(batches).run(model, net(), None)
    for bn, (mean, var) in zip((model[1], model[5]), want, strict=True):
        torch.testing.assert_close(bn.running_mean, mean)
        torch.testing.assert_close(bn.running_var, var)
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert not any(m.training for m in model.modules())
    assert not model[0].weight.requires_grad
    assert history.stopped == f"recalibrated 2 batch norms on {n} batches"
    for k, v in model.state_dict().items():
        assert "running" in k or "tracked" in k or torch.equal(v, before[k])


def test_targets_generators_passes_and_modes():
    batches = [torch.randn(8, 3, 9, 9, dtype=torch.float64) for _ in range(3)]
    a, b, c = net(), net(), net().train()
    recalibrate_bn(batches).run(a, a, None)
    recalibrate_bn((x, torch.zeros(8)) for x in batches).run(b, b, None)
    recalibrate_bn(lambda epoch: iter(batches), passes=2).run(c, c, None)
    for k, v in a.state_dict().items():
        assert torch.equal(v, b.state_dict()[k])
        if "tracked" not in k:
            torch.testing.assert_close(v, c.state_dict()[k])
    assert all(m.training for m in c.modules())


def test_the_random_state_and_other_modules_are_left_alone():
    model = net()
    batches = [torch.randn(4, 3, 9, 9, dtype=torch.float64)]
    state = torch.get_rng_state()
    recalibrate_bn(batches).run(model, model, None)
    assert torch.equal(state, torch.get_rng_state())


def test_no_batch_norm_is_said_and_nothing_is_drawn():
    def never():
        raise AssertionError
        yield

    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))
    assert "no batch norm" in recalibrate_bn(never()).run(model, model, None).stopped


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.unused.running_mean.fill_(7.0)

    def forward(self, x):
        return self.used(x)


def test_an_unreached_norm_keeps_its_statistics():
    model = TwoWays()
    recalibrate_bn([torch.tensor([[1.0, 2.0], [3.0, 4.0]])]).run(model, model, None)
    assert model.used.running_mean.tolist() == [2.0, 3.0]
    assert model.unused.running_mean.tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "empty"),
        (iter([]), "empty"),
        (lambda epoch: [], "empty"),
        ([torch.ones(4, 3, 9, 9).double(), torch.full((4, 3, 9, 9), float("nan")).double()], "batch 1.*NaN"),
        ([torch.full((4, 3, 9, 9), float("inf")).double()], "batch 0.*inf"),
        ([torch.ones(4, 5, 9, 9).double()], "batch 0 does not fit"),
        ([torch.ones(1, 3, 5, 5).double()], "batch 0 does not fit.*more than 1 value"),
        (torch.ones(4, 3, 9, 9), r"pass \[batch\]"),
        (5, "must be a list"),
    ],
)
def test_bad_data_leaves_the_model_as_it_was(batches, match):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=match):
        recalibrate_bn(batches).run(model, model, None)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())


def test_passes():
    with pytest.raises(ValueError, match="passes"):
        recalibrate_bn([torch.ones(1)], passes=0)
    model = net()
    with pytest.raises(DataError, match="2 passes"):
        recalibrate_bn(iter([torch.ones(4, 3, 9, 9).double()]), passes=2).run(model, model, None)
