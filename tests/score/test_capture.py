"""What the watch sees of a model, against torch's own unfolding and explicit loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.score.capture import Contraction, Watch, columns, from_matrix, matrix, unfolded

SETTINGS = [
    dict(kernel=3, stride=1, padding=0, dilation=1),
    dict(kernel=3, stride=2, padding=1, dilation=1),
    dict(kernel=2, stride=1, padding=2, dilation=2),
]


def seen_by(model: nn.Module, x: Any) -> list[Contraction]:
    found: list[Contraction] = []
    with torch.no_grad(), Watch(model, found.append):
        model(x)
    return found


@pytest.mark.parametrize("s", SETTINGS)
def test_unfolded_is_torch_unfold(s: dict[str, int]) -> None:
    x = torch.randn(2, 3, 7, 6)
    kernel, stride, padding, dilation = (
        (s["kernel"], s["kernel"] + 1),
        (s["stride"], 1),
        (s["padding"], 0),
        (s["dilation"], 1),
    )
    expected = F.unfold(x, kernel, dilation, padding, stride)  # (N, C * taps, positions)
    got = unfolded(x, kernel, stride, padding, dilation)
    assert torch.equal(got, expected.transpose(1, 2).reshape(-1, expected.shape[1]))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("s", SETTINGS)
def test_unfolded_is_the_loop(rank: int, s: dict[str, int]) -> None:
    x = torch.randn(2, 2, *[6, 5, 7][:rank])
    padded = F.pad(x, [s["padding"]] * 2 * rank)
    reach = s["dilation"] * (s["kernel"] - 1) + 1
    places = [range(0, n - reach + 1, s["stride"]) for n in padded.shape[2:]]
    rows = []
    for n in range(2):
        for at in itertools.product(*places):
            window = tuple(slice(a, a + reach, s["dilation"]) for a in at)
            rows.append(padded[(n, slice(None), *window)].reshape(-1))
    got = unfolded(x, *((s[k],) * rank for k in ("kernel", "stride", "padding", "dilation")))
    assert torch.equal(got, torch.stack(rows))


CONVOLUTIONS = [
    (nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), (2, 3, 11)),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 7, 6)),
    (nn.Conv2d(3, 4, 3, padding="same", bias=False), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, 3), (3, 5, 6)),  # no batch
    (nn.Conv3d(3, 4, 2, padding=1), (1, 3, 4, 5, 3)),
    (nn.Linear(3, 4), (2, 5, 3)),
    (nn.Linear(3, 4, bias=False), (3,)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_weight_times_rows_is_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (c,) = seen_by(layer, torch.randn(shape))
    weight: Tensor = layer.get_parameter("weight").detach()
    got = c.rows() @ matrix(weight, c.in_dim).T
    if c.bias is not None:
        assert c.bias == "bias"
        got = got + layer.get_parameter("bias")
    torch.testing.assert_close(got, c.outputs(), rtol=1e-5, atol=1e-5)
    assert c.rows().shape[1] == weight.shape[c.in_dim] * c.taps


@pytest.mark.parametrize("most", [1, 4, 7, 1000])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_a_part_of_the_rows_is_evenly_spaced(layer: nn.Module, shape: tuple[int, ...], most: int) -> None:
    (c,) = seen_by(layer, torch.randn(shape))
    rows = c.rows()
    assert torch.equal(c.rows(most=most), rows[:: -(-len(rows) // most)])


class Products(nn.Module):
    """The ways to multiply by a parameter, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(7)])
        self.b = nn.Parameter(torch.randn(3))
        self.batched = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.w[0]
        x = torch.matmul(x, self.w[1])
        x = torch.mm(x, self.w[2])
        x = x.matmul(self.w[3]).mm(self.w[4])
        x = torch.addmm(self.b, x, self.w[5])  # as transformers' Conv1D has it
        x = F.linear(input=x, weight=self.w[6], bias=self.b)
        x = torch.addmm(self.b, x, self.w[5], beta=0.5)  # scaled: not y = W x + b
        x = torch.matmul(input=x, other=self.w[1])
        return (x @ self.batched).sum(0)  # a stack of matrices is no matrix


def test_products_with_parameters_are_seen() -> None:
    net = Products()
    found = seen_by(net, torch.randn(4, 3))
    assert [(c.weight, c.bias, c.in_dim) for c in found] == [
        *((f"w.{i}", None, 0) for i in range(5)),
        ("w.5", "b", 0),
        ("w.6", "b", 1),
    ]
    for c in found:
        bias = 0 if c.bias is None else net.b
        got = c.rows() @ matrix(net.get_parameter(c.weight), c.in_dim).T + bias
        torch.testing.assert_close(got, c.outputs())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_grouped_transposed_and_nameless_weights_are_not_reported() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 2, 2, padding="same"))
    assert seen_by(net, torch.randn(1, 4, 6, 6)) == []

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2, self.bias)

    assert seen_by(Scaled(3, 2), torch.randn(1, 3)) == []


def test_tied_weights_have_their_first_name() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert [c.weight for c in seen_by(net, torch.randn(1, 3))] == ["0.weight", "0.weight"]


@pytest.mark.parametrize("in_dim", [0, 1])
def test_matrix_there_and_back(in_dim: int) -> None:
    weight = torch.randn(4, 5, 3, 2)
    flat = matrix(weight, in_dim)
    assert flat.shape == (weight.shape[1 - in_dim], weight.shape[in_dim] * 6)
    assert torch.equal(from_matrix(flat, weight, in_dim), weight)
    fewer = flat.reshape(len(flat), -1, 6)[:, ::2].reshape(len(flat), -1)
    assert torch.equal(
        from_matrix(fewer, weight, in_dim), weight.index_select(in_dim, torch.arange(0, weight.shape[in_dim], 2))
    )


def test_columns_are_the_positions_of_the_matrix() -> None:
    weight = torch.zeros(4, 6, 3)
    index = np.array([[0, 3], [5, 1]])
    weight[:, index[1]] = 1
    (at,) = matrix(weight, 1).sum(0).nonzero(as_tuple=True)
    assert sorted(columns(index, 3)[1].tolist()) == at.tolist()


def test_additions_are_heard_before_they_overwrite() -> None:
    heard: list[tuple[Tensor, Tensor]] = []

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y += x
            z = torch.add(y, x, alpha=3)  # no plain sum: not reported
            return z + x

    x = torch.ones(2)
    with Watch(nn.Module(), lambda c: None, lambda left, right: heard.append((left.clone(), right.clone()))):
        Adds()(x)
    assert [(a.tolist(), b.tolist()) for a, b in heard] == [([2.0, 2.0], [1.0, 1.0]), ([6.0, 6.0], [1.0, 1.0])]
