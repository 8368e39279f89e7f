"""SynFlow: the flow through absolute values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.choose.density import ranked, select
from secateur.errors import DataError
from secateur.score.weigh_flow import synflow
from secateur.score.weights import prunable, saliency
from tiny import cnn, mlp
from weighing import close, weighed


def paths(net: nn.Sequential) -> dict[str, Tensor]:
    """Sum over all paths through an edge of the product of their absolute weights, of linear layers without biases."""
    chosen = {n: p.detach().double().abs() for n, p in prunable(net).items()}
    names = list(chosen)
    out = {}
    for k, n in enumerate(names):
        into = torch.ones(chosen[names[0]].shape[1], dtype=torch.float64)
        for before in names[:k]:
            into = chosen[before] @ into
        onward = torch.ones(chosen[names[-1]].shape[0], dtype=torch.float64)
        for behind in reversed(names[k + 1 :]):
            onward = onward @ chosen[behind]
        out[n] = onward[:, None] * chosen[n] * into[None]
    return out


def test_synflow_is_the_sum_over_paths_and_every_layer_has_all_of_it() -> None:
    net = mlp(5, 7, 6, 3, bias=False)
    found = weighed(net, synflow, [torch.randn(1, 5)])
    whole = None
    for n, expected in paths(net).items():
        close(found[n], expected)
        whole = float(expected.sum()) if whole is None else whole
        assert float(found[n].sum()) == pytest.approx(whole, rel=1e-12)


def test_layers_of_a_convolutional_network_with_batch_norm_have_equal_sums() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4, bias=False),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.normal_()
            m.running_var.uniform_(0.5, 2)
    found = weighed(net, synflow, [torch.randn(2, 3, 8, 8)])
    twin = net.double().eval()
    for p in twin.parameters():
        p.data.abs_()
    whole = float(twin(torch.ones(2, 3, 8, 8).double()).detach().sum())
    for s in found.values():
        assert float(s.sum()) == pytest.approx(whole, rel=1e-10)


def test_float32_would_overflow_and_float64_does_not() -> None:
    net = mlp(*[64] * 40, bias=False)
    for w in prunable(net).values():
        w.data.mul_(30)
    found = weighed(net, synflow, [torch.randn(1, 64)])
    assert float(found["0.weight"].sum()) > torch.finfo(torch.float32).max
    sums = [float(s.sum()) for s in found.values()]
    assert max(sums) == pytest.approx(min(sums), rel=1e-10)
    net[0].weight.data.fill_(float("inf"))
    with pytest.raises(DataError, match=r"flow through .* is not finite"):
        weighed(net, synflow, [torch.randn(1, 64)])


def iterated(net: nn.Module, sparsity: float, steps: int) -> dict[str, Tensor]:
    weights = prunable(net)
    stats = synflow.weights.stat(net, [torch.ones(1, 8)], weights)
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    for k in range(1, steps + 1):
        left = {n: w.detach() * masks[n] for n, w in weights.items()}
        masks = select(
            saliency(net, synflow, left, stats), 1 - (1 - sparsity) ** (k / steps), density=ranked, alive=masks
        )
    return masks


def test_a_hundred_steps_empty_no_layer_and_one_does() -> None:
    net = mlp(8, 64, 64, 2, bias=False)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    sparsity = 1 - 30 / (8 * 64 + 64 * 64 + 64 * 2)
    once, often = (iterated(net, sparsity, steps) for steps in (1, 100))
    assert min(int(m.sum()) for m in once.values()) == 0
    assert min(int(m.sum()) for m in often.values()) > 0
    assert sum(int(m.sum()) for m in often.values()) == 30
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    for n, m in prunable(net).items():  # a path is left
        m.data *= often[n]
    assert float(weighed(net, synflow, [torch.ones(1, 8)])["0.weight"].sum()) > 0


def test_token_ids_stay_and_tied_weights_count_twice() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[2].weight = net[1].weight
    found = weighed(net, synflow, [torch.tensor([[1, 4]])])
    w, e = net[1].weight.detach().double().abs(), net[0].weight.detach().double().abs()
    flow = float((w @ w @ (e[1] + e[4])).sum())
    assert float(found["1.weight"].sum()) == pytest.approx(2 * flow, rel=1e-10)  # homogeneous of degree two


def test_nothing_flows_where_the_output_is_cut_off() -> None:
    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(DataError, match="nothing flows"):
        weighed(Cut(3, 2), synflow, [torch.ones(1, 3)])
    with pytest.raises(DataError, match="Cut has no parameter 'other'"):
        weighed(Cut(3, 2), synflow, [torch.ones(1, 3)], {"other": torch.ones(1)})
    net = cnn()
    assert set(weighed(net, synflow, [(torch.ones(2, 3, 8, 8), torch.tensor([0, 1]))])) == set(prunable(net))
