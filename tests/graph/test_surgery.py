"""The cut itself: what the models keep, in place and as a copy, optimizers, masks, and plans that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attention_nets
import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import Calls, img, seq, vec
from test_oracle import built
from torch import Tensor, nn

import secateur as sc
from secateur.calling import run
from secateur.types import Example

NAMES = [
    "mlp",
    "residual",
    "shared",
    "tied_embedding",
    "buffers",
    "splits",
    "fused_by_view",
    "biased",
    "statistics_only",
]


def planned(name: str, sparsity: float = 0.4) -> tuple[nn.Module, Example, sc.Groups, sc.Plan]:
    model, example, groups = built(name)
    return model, example, groups, sc.random_plan(groups, sparsity, seed=1)


def facts(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a recording or a cut of a copy might disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "tensors": {n: (id(t), t._version, t.detach().clone()) for n, t in model.state_dict(keep_vars=True).items()},
        "buffers": [n for n, _ in model.named_buffers()],
        "own": {
            n: {k: copy.copy(v) for k, v in vars(m).items() if not k.startswith("_")} for n, m in model.named_modules()
        },
        "types": {
            n: {k: type(v) for k, v in vars(m).items() if not k.startswith("_")} for n, m in model.named_modules()
        },
        "hooks": {n: [len(getattr(m, h)) for h in hooks] for n, m in model.named_modules()},
        "grads": [p.grad is None for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, (identity, version, value) in before.pop("tensors").items():
        new = after["tensors"][name]
        assert (identity, version) == new[:2]
        assert torch.equal(value, new[2])
    del after["tensors"]
    assert before == after


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_model_is_left_as_it_was(name: str) -> None:
    model, example, _ = built(name)
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *a: None)
    state = torch.random.get_rng_state()
    before = facts(model)
    groups = sc.couple(sc.trace(model, example))
    plan = sc.random_plan(groups, 0.4, seed=1)
    small, zeroed = sc.apply(plan, model), sc.masked(plan, model)
    sc.verify(model, plan, small, example)
    assert_same(before, facts(model))
    assert torch.equal(state, torch.random.get_rng_state())
    shared = {id(t) for t in model.state_dict(keep_vars=True).values()}
    for other in (small, zeroed):
        assert not shared & {id(t) for t in other.state_dict(keep_vars=True).values()}
        assert [m.training for m in other.modules()] == [m.training for m in model.modules()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cut_keeps_class_names_dtypes_and_flags(name: str, dtype: torch.dtype) -> None:
    model, _, _, plan = planned(name)
    model = model.to(dtype)
    frozen = [p for i, p in enumerate(model.parameters()) if i % 2]
    for p in frozen:
        p.requires_grad_(False)
    small = sc.apply(plan, model)
    assert type(small) is type(model)
    old, new = model.state_dict(keep_vars=True), small.state_dict(keep_vars=True)
    assert list(old) == list(new)
    for n in old:
        assert (type(old[n]), old[n].dtype, old[n].requires_grad) == (type(new[n]), new[n].dtype, new[n].requires_grad)
        expected = old[n].detach()
        for d in range(expected.dim()):
            if (n, d) in plan.axes:
                expected = expected.index_select(d, torch.from_numpy(np.nonzero(plan.axes[n, d])[0]))
        assert new[n].shape == expected.shape
        if n not in plan.renumber:
            assert torch.equal(new[n], expected)
        assert new[n].is_contiguous()


@pytest.mark.parametrize("name", ["shared", "tied_embedding"])
def test_shared_parameters_stay_shared(name: str) -> None:
    model, _, _, plan = planned(name)

    def sharing(m: nn.Module) -> list[list[str]]:
        by: dict[int, list[str]] = {}
        for n, p in m.named_parameters(remove_duplicate=False):
            by.setdefault(id(p), []).append(n)
        return [names for names in by.values() if len(names) > 1]

    assert sharing(model) == sharing(sc.apply(plan, model)) == sharing(sc.masked(plan, model)) != []
    assert sharing(sc.apply_(plan, model)) != []


def test_index_buffers_are_renumbered() -> None:
    model, example, groups = built("buffers")
    keep = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    plan = sc.make_plan(groups, {"a:neuron": keep})
    small = sc.apply(plan, model)
    assert small.order.tolist() == [2, 1, 0, 5, 4, 3]  # of 3 1 0 2 7 6 5 4, without 2 and 4
    assert torch.equal(small.scale, model.scale[[0, 1, 2, 4, 5, 6]])
    assert sc.verify(model, plan, small, example).ok


def test_attributes_of_modules_follow() -> None:
    model, _, _, plan = planned("splits", 0.5)
    small = sc.apply(plan, model)
    kept = {n: int(m.sum()) for n, m in plan.keep.items()}
    assert (small.narrow, small.wide) == (kept["b:neuron"], kept["b:neuron2"]) == (2, 5)
    assert (model.narrow, model.wide) == (4, 10)
    assert type(small.wide) is int
    assert (small.a.out_features, small.b.in_features, small.d.in_features) == (8, 4, 5)

    cnn, _, _, plan = planned("grouped", 0.5)
    small = sc.apply(plan, cnn)
    for layer in (small.stem, small.depthwise, small.grouped, small.up, small.head):
        inner, outer = layer.weight.shape[1], layer.weight.shape[0]
        if layer.transposed:
            assert (layer.in_channels, layer.out_channels) == (outer, inner * layer.groups)
        else:
            assert (layer.in_channels, layer.out_channels) == (inner * layer.groups, outer)
    assert cnn.depthwise.groups == 8
    assert small.depthwise.groups == small.depthwise.in_channels == small.stem.out_channels


def test_norms_say_their_new_width() -> None:
    model, example, _, plan = planned("statistics_only", 0.5)
    small = sc.apply(plan, model)
    assert (small[1].num_features, small[3].num_features) == (4, 3)
    run(small, example)  # no warning: warnings are errors here


def test_shrunk_modules_can_be_printed_saved_and_run() -> None:
    model, example, _, plan = planned("residual")
    small = sc.apply(plan, model)
    twin = sc.apply(plan, nets.Residual())
    twin.load_state_dict(small.state_dict())
    small.eval()
    assert repr(twin) == repr(small.train())
    assert torch.equal(twin.eval()(example), small.eval()(example))


@pytest.mark.parametrize("name", NAMES)
def test_in_place_equals_the_copy_and_keeps_identity(name: str) -> None:
    model, example, _, plan = planned(name)
    model.eval()
    small = sc.apply(plan, model)
    out = run(model, example)
    out.sum().backward()
    before = {n: (id(p), p.grad) for n, p in model.named_parameters(remove_duplicate=False)}
    assert sc.apply_(plan, model) is model
    for (n, p), q in zip(
        model.named_parameters(remove_duplicate=False), small.state_dict(keep_vars=True), strict=False
    ):
        assert id(p) == before[n][0]
        assert p.grad is None if before[n][1] is None else p.grad.shape == p.shape
        assert q in dict(small.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small.state_dict().values(), strict=True))
    assert torch.equal(run(model, example), run(small, example))
    run(model, example).sum().backward()


def test_gradients_are_cut_like_their_parameters() -> None:
    model, example, groups = built("mlp")
    model(example).square().sum().backward()
    dense = {n: p.grad.clone() for n, p in model.named_parameters()}
    plan = sc.make_plan(groups, {"0:neuron": np.arange(8) % 2 == 0})
    sc.apply_(plan, model)
    assert torch.equal(model[0].weight.grad, dense["0.weight"][::2])
    assert torch.equal(model[2].weight.grad, dense["2.weight"][:, ::2])
    assert torch.equal(model[4].weight.grad, dense["4.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_masks_keep_every_shape_and_zero_just_what_goes(name: str) -> None:
    model, _, _, plan = planned(name)
    zeroed = sc.masked(plan, model)
    for n, t in model.state_dict().items():
        new = zeroed.state_dict()[n]
        assert new.shape == t.shape
        gone = torch.zeros(t.shape, dtype=torch.bool)
        for d in range(t.dim()):
            if (n, d) in plan.axes:
                shape = [-1 if e == d else 1 for e in range(t.dim())]
                gone |= ~torch.from_numpy(np.asarray(plan.axes[n, d])).view(shape)
        if t.dtype.is_floating_point:
            assert torch.equal(new, torch.where(gone, torch.zeros_like(t), t))
        else:
            assert torch.equal(new, t)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor, keep: Callable[[], None]) -> None:
    optimizer.zero_grad()
    run(model, example).square().sum().backward()
    keep()
    optimizer.step()


@pytest.mark.parametrize("make", [momentum, adam])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["mlp", "residual", "repairable_scaled", "shared"])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(name: str, make: Any, in_place: bool) -> None:
    """A step after the cut equals a step of the masked dense model with masked gradients and masked state."""
    model, example, _, plan = planned(name)
    model, example = model.double().eval(), example.double()
    optimizer = make([{"params": list(model.parameters())[:2], "lr": 0.02}, {"params": list(model.parameters())[2:]}])
    for _ in range(3):
        one_step(model, optimizer, example, lambda: None)

    dense = sc.masked(plan, model)
    twin = make([{"params": list(dense.parameters())[:2], "lr": 0.02}, {"params": list(dense.parameters())[2:]}])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gone = {n: p == 0 for n, p in sc.masked(plan, all_ones(model)).named_parameters()}

    def hold() -> None:
        for n, p in dense.named_parameters():
            p.grad[gone[n]] = 0
            for value in twin.state[p].values():
                if value.shape == p.shape:
                    value[gone[n]] = 0

    one_step(dense, twin, example, hold)
    if in_place:
        small = sc.apply_(plan, model)
        sc.apply_to_optimizer_(plan, optimizer, model, small)
    else:
        small = sc.apply(plan, model)
        sc.apply_to_optimizer_(plan, optimizer, model, small)
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()} == {id(p) for p in optimizer.state}
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in twin.param_groups]
    one_step(small, optimizer, example, lambda: None)
    wanted = sc.apply(plan, dense).state_dict()
    for n, t in small.state_dict().items():
        torch.testing.assert_close(t, wanted[n], rtol=1e-9, atol=1e-12)


def all_ones(model: nn.Module) -> nn.Module:
    ones = copy.deepcopy(model)
    with torch.no_grad():
        for p in ones.parameters():
            p.fill_(1)
    return ones


def test_a_plan_for_another_model_is_refused() -> None:
    model, _, _, plan = planned("mlp")
    with pytest.raises(sc.PlanError, match="which Residual does not have: another architecture"):
        sc.apply(plan, nets.Residual())
    wider = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 10), nn.Tanh(), nn.Linear(10, 3))
    for act in (sc.apply, sc.apply_, sc.masked):
        before = copy.deepcopy(wider.state_dict())
        with pytest.raises(sc.PlanError, match=r"cuts dim 0 of '0.weight' from 8 positions, but its shape is \(9, 6\)"):
            act(plan, wider)
        assert all(torch.equal(t, before[n]) for n, t in wider.state_dict().items())
    small = sc.apply(plan, model)
    with pytest.raises(sc.PlanError, match="was the model cut already"):
        sc.apply(plan, small)


def test_a_plan_for_another_configuration_is_refused() -> None:
    _, _, _, plan = planned("separate", 0.5)
    other = attention_nets.Separate(heads=3, dim=8)
    with pytest.raises(sc.PlanError, match="changes heads from 4 to 2, but it is 3|changes .*heads from 4"):
        sc.apply(plan, other)


def test_masks_that_do_not_fit_are_refused() -> None:
    _, _, groups = built("mlp")
    with pytest.raises(sc.PlanError, match=r"mask for group '0:neuron' has shape \(5,\); expected \(8,\)"):
        sc.make_plan(groups, {"0:neuron": np.ones(5, bool)})
    with pytest.raises(sc.PlanError, match="mask for group 'fc'"):
        sc.make_plan(groups, {"fc": np.ones(8, bool)})
    with pytest.raises(sc.PlanError, match="would lose all of its 8 units; keep at least one"):
        sc.make_plan(groups, {"0:neuron": np.zeros(8, bool)})


def test_the_whole_plan_is_checked_not_each_group_alone() -> None:
    """Either half may shrink to one feature and leave more than eight; both together may not."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.cat([s.a(x), s.b(x)], -1)
        return s.out(F.relu(h) if h.shape[-1] > 8 else torch.tanh(h))

    net = Calls(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 8), out=nn.Linear(16, 3))
    groups = sc.couple(sc.trace(net, vec()))
    few = {"a:neuron": np.arange(8) < 2, "b:neuron": np.arange(8) < 2}
    assert sc.make_plan(groups, {"a:neuron": few["a:neuron"]}).removed == 6
    with pytest.raises(sc.CoupleError, match=r"cannot be carried out: \(shape\[1\] > 8\) would come out otherwise"):
        sc.make_plan(groups, few)


def test_one_number_for_two_sizes_is_replaced_where_it_is_passed_on() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.a(x).view(len(x), s.parts, -1)).flatten(1)
        return s.out(F.relu(s.b(h).view(len(x), s.parts, -1)).flatten(1))

    net = Calls(forward, a=nn.Linear(6, 16), b=nn.Linear(16, 12), out=nn.Linear(12, 3))
    net.parts = 4
    groups = sc.couple(sc.trace(net, torch.randn(5, 6)))
    assert {g.name: g.units for g in groups} == {"a:neuron2": 4, "b:neuron2": 3}
    assert sum("sizes in the code would have to be replaced" in f.reason for f in groups.frozen) == 2
    every = sc.couple(sc.trace(net, torch.randn(5, 6)), every=True)
    assert {g.name: g.units for g in every} == {"a:neuron": 4, "a:neuron2": 4, "b:neuron": 4, "b:neuron2": 3}
    plan = sc.make_plan(every, {"a:neuron": np.arange(4) < 3})
    assert (plan.attributes, plan.sizes) == ({("", "parts"): (4, 3)}, {("", "view", 1, 1): (3, 4)})
    report = sc.verify(net, plan, sc.apply(plan, net), torch.randn(5, 6))
    assert report.ok, report.rows


@pytest.mark.parametrize("example", [img, seq])
def test_an_empty_plan_changes_nothing(example: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    model = nets.Residual() if example is img else attention_nets.Separate()
    x = example()
    groups = sc.couple(sc.trace(model, x))
    plan = sc.make_plan(groups, {})
    assert (plan.removed, plan.axes, plan.attributes) == (0, {}, {})
    small = sc.apply(plan, model).eval()
    assert torch.equal(small(x), model.eval()(x))
    assert sc.verify(model, plan, small, x).max_error == 0
