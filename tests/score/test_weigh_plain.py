"""Criteria of single weights that need no data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.choose.density import ranked, select
from secateur.score.weigh_plain import lamp, lamp_scores
from tiny import mlp
from weighing import close, weighed


def lamp_of_the_paper(weight: Tensor) -> Tensor:
    """The loop of the definition: each weight over the sum of its own and all larger squares."""
    squares = [float(w) ** 2 for w in weight.double().reshape(-1)]
    order = sorted(range(len(squares)), key=lambda i: (squares[i], -i))  # ascending; of equals the later one first
    scores = [0.0] * len(squares)
    for place, i in enumerate(order):
        above = 0.0
        for j in reversed(order[place:]):
            above += squares[j]
        scores[i] = squares[i] / above
    return torch.tensor(scores, dtype=torch.float64).reshape(weight.shape)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**6), st.floats(0, 0.95))
def test_lamp_and_its_masks_are_the_papers_loop(sizes: list[int], seed: int, sparsity: float) -> None:
    torch.manual_seed(seed)
    net = nn.ParameterDict({f"w{i}": nn.Parameter(torch.randn(n, 3) * 10.0**i) for i, n in enumerate(sizes)})
    found = weighed(net, lamp)
    expected = {name: lamp_of_the_paper(w.detach()) for name, w in net.items()}
    for name, s in expected.items():
        close(found[name], s)
    mine, theirs = (select(s, sparsity, density=ranked) for s in (found, expected))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30).filter(any))
def test_lamp_has_a_largest_of_one_and_follows_magnitude(values: list[int]) -> None:
    w = torch.tensor(values, dtype=torch.float32)
    s = lamp_scores(w)
    assert float(s.max()) == 1.0
    close(s, torch.nan_to_num(lamp_of_the_paper(w)) if 0 not in values else s)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    ranks = s[order].tolist()
    assert ranks == sorted(ranks, reverse=True)
    assert all(float(x) == 0 for x, v in zip(s, values, strict=True) if v == 0)


@pytest.mark.parametrize("scale", [2.0**-100, 3e-30, 0.1, 7.0, 1e30])
def test_lamp_does_not_see_the_scale_of_a_layer(scale: float) -> None:
    w = torch.randn(40, 30, dtype=torch.float64)
    close(lamp_scores(w * scale), lamp_scores(w))


def test_lamp_of_many_weights_does_not_cancel_and_of_none_alive_is_zero() -> None:
    w = torch.cat([torch.full((200_000,), 1e-4), torch.tensor([1e4])])
    exact = 1e-8 / (1e8 + torch.arange(1, 200_001, dtype=torch.float64) * 1e-8)
    close(lamp_scores(w)[:-1], exact, 1e-6)  # float32 cannot hold 1e-4
    assert torch.equal(lamp_scores(torch.zeros(2, 2)), torch.zeros(2, 2, dtype=torch.float64))


def test_lamp_empties_no_layer() -> None:
    net = mlp(6, 8, 4)
    net[0].weight.data *= 1e-6
    masks = select(weighed(net, lamp), 1 - 2 / 80, density=ranked)
    assert [int(m.sum()) for m in masks.values()] == [1, 1]
    assert int(select(weighed(net, sc.magnitude), 1 - 2 / 80, density=ranked)["0.weight"].sum()) == 0


def test_random_is_a_function_of_seed_and_name() -> None:
    net, other = mlp(4, 8, 2, seed=0), mlp(4, 8, 2, seed=1)
    first, again = weighed(net, sc.random(3)), weighed(other, sc.random(3))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["0.weight"], weighed(net, sc.random(4))["0.weight"])
    assert not torch.equal(first["0.weight"].reshape(-1)[:16], first["2.weight"].reshape(-1))
    assert weighed(net, sc.random(3), weights={"2.weight": net[2].weight})["2.weight"].equal(first["2.weight"])
