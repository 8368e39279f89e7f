"""Costs against a recount of the cut model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.errors import BudgetError, TraceError
from secateur.types import Example
from tiny import attention, cnn, cut_evenly, groups_of, mlp, recount


class Tied(nn.Module):
    """Embedding and output projection are one matrix; a buffer follows the cut, an index buffer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.gain: Tensor
        self.register_buffer("gain", torch.rand(10))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(h + self.down(torch.relu(self.up(h)) * self.gain))


CASES: list[tuple[nn.Module, Example]] = [
    (mlp(4, 8, 6, 2), torch.zeros(3, 4)),
    (mlp(4, 8, 2).to(torch.bfloat16), torch.zeros(3, 4, dtype=torch.bfloat16)),
    (cnn(), torch.zeros(2, 3, 8, 8)),
    (attention(), torch.zeros(2, 5, 16)),
    (Tied(), torch.tensor([[1, 2, 3]])),
    (
        nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 1, 1)),
        torch.zeros(1, 2, 9),
    ),
]


def flops(model: nn.Module, example: Example) -> int:
    # the counter knows no fused attention on CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(example)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("model", "example"), CASES)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_costs_are_those_of_the_cut_model(model: nn.Module, example: Example, sparsity: float) -> None:
    groups = groups_of(model, example)
    plan, small = cut_evenly(model, example, sparsity)
    parameters, size = recount(small)
    costs = sc.params(model), sc.nbytes(model), sc.macs(model, example)
    assert [c.of(groups, plan.keep) for c in costs] == [parameters, size, flops(small, example) / 2]
    assert [c.dense for c in costs] == [*recount(model), flops(model, example) / 2]
    assert [c.of(groups, groups.all_kept()) for c in costs] == [c.dense for c in costs]
    assert [(c.name, c.unit, c.measured, c.target) for c in costs] == [
        ("params", "", None, None),
        ("nbytes", "B", None, None),
        ("macs", "MAC", None, None),
    ]


def test_costs_fall_with_every_unit() -> None:
    model, example = cnn(), torch.zeros(1, 3, 8, 8)
    groups = groups_of(model, example)
    for cost in (sc.params(model), sc.nbytes(model), sc.macs(model, example)):
        values = [cost.of(groups, {g.name: np.arange(g.units) < k for g in groups}) for k in range(8, 0, -1)]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 8


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_a_fraction_is_a_part(fraction: float) -> None:
    with pytest.raises(BudgetError, match=r"budget on params: fraction must be in \(0, 1\].*0.5 means half"):
        sc.Budget.of_dense(sc.params(mlp(4, 8, 2)), fraction)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_positive_and_finite(limit: float) -> None:
    with pytest.raises(BudgetError, match="budget on params: limit must be positive and finite"):
        sc.Budget(sc.params(mlp(4, 8, 2)), limit)


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TraceError, match=r"does not run on the example.*\(3, 5\)"):
        sc.macs(mlp(4, 8, 2), torch.zeros(3, 5))
