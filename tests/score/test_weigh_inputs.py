"""Wanda and RIA against the loops of their papers, and what the norms of inputs are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.choose.select import top
from secateur.errors import ArgumentError, CoupleError, DataError
from secateur.score.weigh_inputs import input_norms, ria, ria_with, wanda
from secateur.score.weights import prunable
from weighing import close, weighed


def by_row(scores: Tensor, removed: int) -> Tensor:
    return torch.stack([top(row, scores.shape[1] - removed) for row in scores])


def wanda_of_the_paper(weight: Tensor, batches: list[Tensor], sparsity: float) -> Tensor:
    """The mask of the authors' code: a running mean of squared norms, rows sorted, the first so many columns zeroed."""
    scaler, samples = torch.zeros(weight.shape[1], dtype=torch.float64), 0
    for x in batches:
        scaler *= samples / (samples + len(x))
        samples += len(x)
        scaler += torch.norm(x.reshape(-1, x.shape[-1]).T.double(), p=2, dim=1) ** 2 / samples
    metric = weight.double().abs() * scaler.sqrt().reshape(1, -1)
    order = torch.sort(metric, dim=-1, stable=True)[1]
    gone = torch.zeros_like(metric, dtype=torch.bool)
    gone.scatter_(1, order[:, : int(metric.shape[1] * sparsity)], True)
    return ~gone


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 4), st.floats(0, 0.99), st.integers(0, 10**6))
def test_wanda_masks_are_the_papers(rows: int, width: int, count: int, sparsity: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(width, rows)
    data = [torch.randn(2, 5, width) * torch.rand(width) for _ in range(count)]
    mine = by_row(weighed(layer, wanda, data)["weight"], int(width * sparsity))
    assert torch.equal(mine, wanda_of_the_paper(layer.weight.detach(), data, sparsity))


def test_wanda_is_the_formula_and_with_plain_inputs_magnitude() -> None:
    layer = nn.Linear(6, 4).double()
    x = torch.randn(7, 6).double()
    close(weighed(layer, wanda, [x[:3], x[3:]])["weight"], layer.weight.detach().abs() * x.norm(dim=0))
    found = weighed(layer, wanda, [3.0 * torch.eye(6).double()])["weight"]
    close(found, 3.0 * layer.weight.detach().abs())
    assert torch.equal(by_row(found, 3), by_row(layer.weight.detach().abs(), 3))
    x[:, 2] = 0
    assert float(weighed(layer, wanda, [x])["weight"][:, 2].abs().max()) == 0


def test_wanda_does_not_see_a_rescale_that_keeps_the_function() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5)).double()
    net[0].bias.data.normal_()
    data = [torch.randn(4, 6).double()]
    before, size = weighed(net, wanda, data)["1.weight"], weighed(net, sc.magnitude)["1.weight"]
    scale = torch.tensor([100.0, 3.0, 1.0, 0.5, 0.1, 1e-3]).double()
    out = net(data[0])
    for p, by in ((net[0].weight, scale), (net[0].bias, scale), (net[1].weight, 1 / scale)):
        p.data *= by
    close(net(data[0]), out, 1e-12)
    close(weighed(net, wanda, data)["1.weight"], before)
    assert not torch.equal(by_row(weighed(net, sc.magnitude)["1.weight"], 3), by_row(size, 3))


def ria_of_the_paper(weight: Tensor, x: Tensor, power: float) -> Tensor:
    w, out = weight.abs().tolist(), torch.zeros_like(weight)
    for i in range(len(w)):
        for j in range(len(w[0])):
            column, row = sum(r[j] for r in w), sum(w[i])
            out[i, j] = (w[i][j] / column + w[i][j] / row) * float(x[:, j].square().sum()) ** (power / 2)
    return out


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_ria_is_the_loop_and_its_shares_add_up(power: float) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(8, 5).double()
    close(weighed(layer, ria_with(power), [x])["weight"], ria_of_the_paper(layer.weight.detach(), x, power))
    if power == 0:
        assert float(weighed(layer, ria_with(power), [x])["weight"].sum()) == pytest.approx(5 + 3, rel=1e-12)


def test_ria_does_not_see_scale_and_moves_with_a_permutation() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(8, 5).double()
    before = weighed(layer, ria, [x])["weight"]
    layer.weight.data *= 1e-5
    close(weighed(layer, ria, [x])["weight"], before)
    order = torch.randperm(5)
    layer.weight.data = layer.weight.data[:, order]
    close(weighed(layer, ria, [x[:, order]])["weight"], before[:, order])
    layer.weight.data[:, 0] = 0
    assert float(weighed(layer, ria, [x])["weight"][:, 0].abs().max()) == 0


def test_ria_keeps_something_of_every_row_and_column() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    layer.weight.data[:, 0] *= 1e-3
    layer.weight.data[1] *= 1e-3
    data = [torch.eye(16)]
    shares = weighed(layer, ria_with(0), data)["weight"]
    assert float(shares.amax(0).min()) >= 1 / 16  # the largest share of a column is no less than the mean one
    assert float(shares.amax(1).min()) >= 1 / 16
    mine, size = (top(weighed(layer, c, data)["weight"], 140) for c in (ria, sc.magnitude))
    assert int(mine.sum(0).min()) > 0
    assert int(mine.sum(1).min()) > 0
    assert int(size.sum(0).min()) == int(size.sum(1).min()) == 0


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 11)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 7, 6)),
    (nn.Conv2d(4, 6, 3, padding="same", groups=2), (2, 4, 5, 6)),
    (nn.Conv2d(4, 8, 3, stride=3, padding=1, groups=4), (2, 4, 8, 7)),  # a depth-wise one, some inputs left out
    (nn.Conv2d(4, 6, 3), (4, 5, 6)),  # no batch
    (nn.Conv3d(4, 6, 2, padding=1, groups=2), (1, 4, 4, 5, 3)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_norms_of_a_convolution_are_those_of_what_its_weights_multiply(layer: nn.Module, shape: Any) -> None:
    torch.manual_seed(0)
    layer, x = layer.double(), torch.randn(shape).double()
    found = weighed(layer, wanda, [x, x])["weight"]
    space, rank = shape[-(layer.weight.dim() - 2) :], layer.weight.dim() - 2
    # what a single weight of value 1 makes of the input is what it is fed: its square sum is the squared norm
    probe = type(layer)(4, 6 if layer.groups != 4 else 8, layer.kernel_size, layer.stride, layer.padding,
                        layer.dilation, layer.groups, bias=False, padding_mode=layer.padding_mode).double()  # fmt: skip
    expected = torch.zeros_like(layer.weight)
    for at in range(probe.weight.numel()):
        probe.weight.data.zero_().view(-1)[at] = 1.0
        expected.view(-1)[at] = probe(x).square().sum() * 2
    assert len(space) == rank
    close(found, layer.weight.detach().abs() * expected.detach().sqrt())


def test_ria_of_a_grouped_convolution_is_that_of_its_parts() -> None:
    torch.manual_seed(0)
    whole, x = nn.Conv2d(4, 6, 3, groups=2).double(), torch.randn(2, 4, 6, 6).double()
    found = weighed(whole, ria, [x])["weight"]
    for g in range(2):
        part = nn.Conv2d(2, 3, 3).double()
        part.weight.data.copy_(whole.weight.data[3 * g : 3 * g + 3])
        close(found[3 * g : 3 * g + 3], weighed(part, ria, [x[:, 2 * g : 2 * g + 2]])["weight"])


def test_transposed_weights_are_known_by_their_contraction() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer, x = Conv1D(3, 5).double(), torch.randn(2, 4, 5).double()
    usual = nn.Linear(5, 3).double()
    usual.weight.data.copy_(layer.weight.data.T)
    for criterion in (wanda, ria):
        close(weighed(layer, criterion, [x])["weight"], weighed(usual, criterion, [x])["weight"].T)
    assert input_norms(layer, [x], prunable(layer))["weight"].in_dim == 0


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_attention_is_looked_into(batch_first: bool) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).double().eval()
    x = torch.randn(2, 5, 8).double()
    found = input_norms(net, [x], prunable(net))
    assert set(found) == {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    attention = net.self_attn
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    heads = [t.unflatten(-1, (2, 4)).movedim(-2, 0) for t in (q, k, v)]
    if not batch_first:
        heads = [t.transpose(1, 2) for t in heads]
    mixed = F.scaled_dot_product_attention(*heads).movedim(0, -2).flatten(-2)
    close(found["self_attn.in_proj_weight"].square[0], x.reshape(-1, 8).square().sum(0))
    close(found["self_attn.out_proj.weight"].square[0], mixed.reshape(-1, 8).square().sum(0))
    across = nn.TransformerDecoderLayer(8, 2, 16).eval()
    with pytest.raises(CoupleError, match=r"multihead_attn\.in_proj_weight cannot be seen"):
        weighed(across, wanda, [(torch.randn(2, 1, 8), torch.randn(3, 1, 8))])


def test_a_weight_used_twice_has_the_inputs_of_both() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    net[1].weight = net[0].weight
    x = torch.randn(4, 3).double()
    expected = (x.square().sum(0) + net[0](x).square().sum(0)).detach()
    close(input_norms(net, [x], prunable(net))["0.weight"].square[0], expected)

    class Both(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) @ self.weight

    with pytest.raises(CoupleError, match="weight is used in two ways"):
        weighed(Both(3, 3), wanda, [torch.ones(1, 3)])


def test_what_cannot_be_seen_is_named() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2)

    net = nn.Sequential(nn.Linear(3, 3), Scaled(3, 2))
    with pytest.raises(CoupleError, match=r"inputs of 1\.weight cannot be seen.*ignore=\['1\.weight'\]"):
        weighed(net, wanda, [torch.ones(1, 3)])
    assert set(weighed(net, wanda, [torch.ones(1, 3)], prunable(net, ignore=["1"]))) == {"0.weight"}
    with pytest.raises(CoupleError, match="inputs of weight cannot be seen"):
        weighed(nn.ConvTranspose2d(2, 2, 2), wanda, [torch.ones(1, 2, 3, 3)])


def test_inputs_that_are_not_finite_are_named_with_their_batch() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.log())

    with pytest.raises(DataError, match=r"the input of a\.weight has 1 of 2 entries NaN or inf .* batch 1"):
        weighed(Breaks(), wanda, [torch.ones(1, 2), torch.tensor([[0.0, 1]])])
    with pytest.raises(ArgumentError, match="power of at least 0, got -1"):
        ria_with(-1)
    with pytest.raises(DataError, match=r"no statistics were gathered for 0\.weight"):
        wanda.weights.score(nn.Linear(2, 2), {"0.weight": torch.ones(2, 2)}, {})
