"""The oracle over every net: the masked model and the shrunk one compute the same, and the counts are what is left."""

from __future__ import annotations

import math

import attention_nets
import families
import nets
import numpy as np
import pytest
import torch
import traps
from expected import GROUPS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.calling import run
from secateur.types import Example

CASES = {**nets.CASES, **attention_nets.CASES, **traps.CASES, **families.CASES}
CUT = [name for name in CASES if GROUPS[name] and name != "float_over_size"]


def built(name: str) -> tuple[nn.Module, Example, sc.Groups]:
    torch.manual_seed(0)
    model, example = CASES[name].make(), CASES[name].example()
    return model, example, sc.couple(sc.trace(model, example))


def check(model: nn.Module, example: Example, groups: sc.Groups, plan: sc.Plan) -> nn.Module:
    """Everything that must hold of a cut."""
    small = sc.apply(plan, model)
    report = sc.verify(model, plan, small, example)
    assert report.ok, [(row.what, row.pruned, row.note) for row in report if row.ok is False]
    assert report.max_error <= 1e-10
    for name, mask in plan.keep.items():
        asked = min(round(plan.made["sparsity"] * mask.size), mask.size - 1)
        assert (~mask).sum() == asked, name
    assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)
    tensors = [*small.parameters(), *small.buffers()]
    assert sum(t.numel() * t.element_size() for t in tensors) == groups.nbytes(plan.keep)
    return small


def test_every_case_has_its_expectation() -> None:
    assert GROUPS.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_coupling_finds_what_is_there(name: str) -> None:
    if GROUPS[name]:
        _, _, groups = built(name)
        assert {g.name: g.units for g in groups} == GROUPS[name]
    else:
        with pytest.raises(sc.CoupleError, match="nothing in this model can be cut"):
            built(name)


@pytest.mark.parametrize("name", CUT)
def test_masked_equals_shrunk(name: str) -> None:
    model, example, groups = built(name)
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, sparsity, seed)
        check(model, example, groups, plan)


def work(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one call as torch's own counter has them."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(model.eval(), example)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [name for name in CUT if name not in ("spectral_norm", "recurrent")])
def test_work_left_is_what_the_shrunk_model_does(name: str) -> None:
    model, example, groups = built(name)
    assert groups.macs(groups.all_kept()) == work(model, example)
    plan = sc.random_plan(groups, 0.4, seed=2)
    assert groups.macs(plan.keep) == work(sc.apply(plan, model), example) < groups.macs(groups.all_kept())


@pytest.mark.parametrize("name", ["grouped", "splits", "fused_by_view", "queries_kernel", "two_views", "biased"])
def test_every_single_unit_can_go(name: str) -> None:
    model, example, groups = built(name)
    for group in groups:
        for unit in range(group.units):
            mask = np.arange(group.units) != unit
            plan = sc.make_plan(groups, {group.name: mask}, {"sparsity": 0})
            report = sc.verify(model, plan, sc.apply(plan, model), example)
            assert report.max_error <= 1e-10, (group.name, unit)  # a dead unit may change nothing: no control


def test_a_float_over_a_size_is_caught_by_the_oracle() -> None:
    """``1.0 / x.shape[-1]`` happens inside Python's float and cannot be seen while recording: the check must fail."""
    model, example, groups = built("float_over_size")
    plan = sc.random_plan(groups, 0.5, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), example)
    assert not report.ok
    assert report.max_error > 1e-3


def test_counts_of_a_convolution_are_the_formula() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, (3, 1), stride=2), nn.Flatten(1))
    net.append(nn.Linear(6 * 4 * 3, 5, bias=False))
    groups = sc.couple(sc.trace(net, torch.zeros(2, 3, 8, 7)))
    first, second = (g.name for g in groups)
    keep = {first: np.arange(8) < 5, second: np.arange(6) < 2}
    space = (8 * 7, math.prod((3, 4)))
    assert groups.params(keep) == 5 * (3 * 9 + 1) + 2 * (5 * 3 + 1) + 2 * 12 * 5
    assert groups.macs(keep) == 2 * (5 * 3 * 9 * space[0] + 2 * 5 * 3 * space[1] + 2 * 12 * 5)
    assert groups.nbytes(keep) == 4 * groups.params(keep)


def test_counts_of_attention_are_the_formula() -> None:
    net = attention_nets.Repairable(scaled=True)
    groups = sc.couple(sc.trace(net, torch.zeros(2, 5, 6)))
    keep = {"embed:neuron": np.arange(16) < 10, "c_attn:head": np.arange(4) < 3, "c_attn:head_dim": np.arange(8) < 5}
    b, t, c, inner = 2, 5, 10, 3 * 5
    projections = b * t * (6 * c + c * 3 * inner + inner * c + c * 3)
    assert groups.macs(keep) == projections + 2 * b * 3 * t * t * 5
