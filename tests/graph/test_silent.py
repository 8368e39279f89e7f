"""Whatever zeros a net of the zoo has: cutting the units that are said to be silent leaves its function as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attention_nets
import families
import nets
import numpy as np
import pytest
import torch
import traps
from expected import GROUPS
from test_experts import MIXES, made
from torch import Tensor, nn

import secateur as sc
import tiny
from secateur.calling import named_tensors, run, tensors_of
from secateur.choose.zeros import zero_units
from secateur.types import Example, Group

CASES = {**nets.CASES, **attention_nets.CASES, **traps.CASES}
CASES |= {n: families.CASES[n] for n in ("bert", "llama", "mixtral", "t5", "mamba", "gpt2") if n in families.CASES}
CUT = [name for name in CASES if GROUPS[name] and name not in ("float_over_size", "weight_norm")]
"""Zero rows have no direction, by which weight norm would divide."""


def silence_(group: Group, unit: int, tensors: dict[str, Tensor], rng: np.random.Generator) -> None:
    """Zero a random part of what a unit has: what makes it, what reads it, or any of its tensors."""
    slices = [s for s in group.slices if tensors[s.name].is_floating_point()]
    how = rng.integers(4)
    if how < 2:
        chosen = [s for s in slices if s.role == ("out", "in")[how]]
    else:
        chosen = [s for s in slices if rng.random() < 0.5]
    with torch.no_grad():
        for s in chosen:
            tensors[s.name].index_fill_(s.dim, torch.from_numpy(s.index[unit]), 0)


def check(name: str, seed: int, rules: Mapping[str, Any] = sc.RULES) -> None:
    torch.manual_seed(seed)
    check_model(CASES[name].make().eval(), CASES[name].example(), seed, rules)


def check_model(model: nn.Module, example: Example, seed: int, rules: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for t in (p for p in model.parameters() if p.is_floating_point()):
            t.add_(torch.randn_like(t), alpha=0.1)  # nothing is zero, one or equal by its initialization
    groups = sc.couple(sc.trace(model, example), rules=rules)
    rng = np.random.default_rng(seed)
    tensors = {k: v for part in named_tensors(model) for k, v in part.items()}
    for g in groups:
        for unit in rng.permutation(g.units)[: -(-g.units // 2)]:
            silence_(g, int(unit), tensors, rng)
    keep = zero_units(model, groups)
    assert all(mask.any() for mask in keep.values())
    plan = sc.make_plan(groups, keep)
    assert_same(model, sc.apply(plan, model), example)


def assert_same(model: nn.Module, small: nn.Module, example: Example) -> None:
    with torch.no_grad():
        for one, other in zip(
            tensors_of(run(model.double().eval(), _double(example))),
            tensors_of(run(small.double().eval(), _double(example))),
            strict=True,
        ):
            if one.shape == other.shape:  # caches shrink
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True)


def _double(example: Any) -> Any:
    if isinstance(example, Tensor):
        return example.double() if example.is_floating_point() else example
    if isinstance(example, dict):
        return {k: _double(v) for k, v in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(_double(v) for v in example)
    return example


@pytest.mark.parametrize("name", CUT)
def test_the_function_stays(name: str) -> None:
    check(name, 0)
    check(name, 1)


@pytest.mark.parametrize(
    "name", ["llama", "bert", "layer_norm", "group_norm_of_1", "group_norm_of_2", "residual", "encoder_layer"]
)
def test_the_function_stays_where_norms_and_routers_can_be_cut(name: str) -> None:
    check(name, 2, {**sc.RESIDUAL_RULES, **sc.EXPERT_RULES})


@pytest.mark.parametrize("mix", MIXES)
def test_experts_are_chosen_among_whatever_they_weigh(mix: Any) -> None:
    for seed in range(2):
        net, x = made(mix)
        check_model(net, x, seed, sc.EXPERT_RULES)


def zeroed(model: nn.Module, name: str, dim: int, at: list[int]) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).index_fill_(dim, torch.tensor(at), 0)
    return model


def gone(model: nn.Module, example: Tensor) -> dict[str, list[int]]:
    """Units that can go, by group."""
    keep = zero_units(model, tiny.groups_of(model, example))
    return {name: np.nonzero(~mask)[0].tolist() for name, mask in keep.items()}


def test_a_constant_stays() -> None:
    model = tiny.mlp(4, 6, 3)
    zeroed(model, "0.weight", 0, [1, 2, 4])
    zeroed(model, "0.bias", 0, [2, 3])
    assert gone(model, torch.zeros(1, 4)) == {"0:neuron": [2]}


def test_what_nobody_reads_goes() -> None:
    model = zeroed(tiny.mlp(4, 6, 3), "2.weight", 1, [0, 5])
    assert gone(model, torch.zeros(1, 4)) == {"0:neuron": [0, 5]}


def test_behind_a_sigmoid_zero_is_a_constant() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Sigmoid(), nn.Linear(6, 2))
    zeroed(model, "0.weight", 0, [1, 2])
    assert gone(model, torch.zeros(1, 4)) == {"0:neuron": []}
    zeroed(model, "2.weight", 1, [2])
    assert gone(model, torch.zeros(1, 4)) == {"0:neuron": [2]}


def test_a_batch_norm_must_be_zero_too() -> None:
    model = tiny.cnn()
    zeroed(model, "0.weight", 0, [0, 1, 2])
    zeroed(model, "1.weight", 0, [1, 3])
    zeroed(model, "1.bias", 0, [1, 2, 3])  # 2: the shift is gone, but the mean that is subtracted is not
    assert gone(model, torch.zeros(1, 3, 8, 8))["0:channel"] == [1, 3]


def test_zero_values_silence_a_head_but_zero_queries_do_not() -> None:
    def with_(*names: str) -> list[int]:
        model = tiny.attention()
        for name in names:
            zeroed(model, f"{name}.weight", 0, [4, 5, 6, 7])
            zeroed(model, f"{name}.bias", 0, [4, 5, 6, 7])
        return gone(model, torch.zeros(1, 5, 16))["q:head"]

    assert with_("v") == [1]
    assert with_("q", "k") == []
