"""Whole experts, cut on request: the oracle is the masked model whose router sees the kept experts only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import LLAMA, build, tokens
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.evidence.kept import OverKept, kept_under_statistics


class Mixture(nn.Module):
    """A router and stacked experts; ``mix`` says how they meet."""

    def __init__(self, mix: Callable[[Mixture, Tensor], Tensor]) -> None:
        super().__init__()
        self.n, self.k, self.mix = 6, 2, mix
        self.router = nn.Linear(5, self.n)
        self.up = nn.Parameter(torch.randn(self.n, 5, 7))
        self.bias = nn.Parameter(torch.randn(self.n, 7))
        self.down = nn.Parameter(torch.randn(self.n, 7, 5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.mix(self, x))

    def weighted(self, x: Tensor, gate: Tensor) -> Tensor:
        """All experts, weighted."""
        h = functional.gelu(torch.einsum("bd,edh->beh", x, self.up) + self.bias)
        return torch.einsum("be,beh,ehd->bd", gate, h, self.down)


def soft(net: Mixture, x: Tensor) -> Tensor:
    return net.weighted(x, net.router(x).softmax(-1))


def log_soft(net: Mixture, x: Tensor) -> Tensor:
    scores = functional.log_softmax(net.router(x), dim=-1)
    best, which = scores.topk(net.k)
    return net.weighted(x, torch.zeros_like(scores).scatter(-1, which, best.exp()))


def one_hot(net: Mixture, x: Tensor) -> Tensor:
    best, which = torch.topk(functional.softmax(net.router(x), -1), net.k)
    gate = functional.one_hot(which, net.n) * best.unsqueeze(-1)
    return net.weighted(x, gate.sum(-2))


def scattered(net: Mixture, x: Tensor) -> Tensor:
    best, which = net.router(x).sigmoid().topk(net.k)
    gate = torch.zeros(x.shape[0], net.n, dtype=x.dtype).scatter_(1, which, best)
    return net.weighted(x, gate / gate.sum(-1, keepdim=True))


def picked(net: Mixture, x: Tensor) -> Tensor:
    scores = net.router(x).sigmoid()
    which = scores.topk(net.k, sorted=False)[1]
    gate, flat = scores.gather(1, which), which.reshape(-1)
    h = torch.bmm(x.repeat_interleave(net.k, 0).unsqueeze(1), net.up[flat]).squeeze(1)
    h = functional.gelu(h + net.bias.index_select(0, flat))
    y = torch.bmm(h.unsqueeze(1), net.down[flat]).view(-1, net.k, 5)
    return (y * gate.unsqueeze(-1)).sum(1)


def switch(net: Mixture, x: Tensor) -> Tensor:
    scores = net.router(x).softmax(-1)
    which = scores.argmax(-1)
    h = functional.gelu(torch.einsum("bd,bdh->bh", x, net.up[which]) + functional.embedding(which, net.bias))
    return torch.einsum("bh,bhd->bd", h, net.down[which]) * scores.gather(1, which[:, None])


def counted(net: Mixture, x: Tensor) -> Tensor:
    """The share of each expert scales it; ``bincount`` has no fake kernel."""
    best, which = net.router(x).softmax(-1).topk(net.k)
    share = torch.bincount(which.flatten(), minlength=net.n) / which.numel()
    gate = functional.one_hot(which, net.n) * best.unsqueeze(-1)
    return net.weighted(x, gate.sum(-2) * share)


MIXES = [soft, log_soft, one_hot, scattered, picked, switch, counted]


def made(mix: Any) -> tuple[Mixture, Tensor]:
    torch.manual_seed(0)
    return Mixture(mix), torch.randn(9, 5)


@pytest.mark.parametrize("mix", MIXES)
def test_experts_go_with_their_rows_of_the_router(mix: Any) -> None:
    net, x = made(mix)
    groups = sc.couple(sc.trace(net, x), rules=sc.EXPERT_RULES)
    assert groups.unknown == ()
    experts = groups["router:expert"]
    assert experts.units == 6
    assert experts.least == (1 if mix in (soft, switch) else 2)
    assert {(s.name, s.dim) for s in experts.slices} == {
        *(("router.weight", 0), ("router.bias", 0)),
        *((name, 0) for name in ("up", "bias", "down")),
    }
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, sparsity, seed)
        small = sc.apply(plan, net)
        kept = 6 - round(sparsity * 6)
        assert small.up.shape[0] == small.router.out_features == kept
        assert small.n == (kept if mix in (one_hot, scattered, counted) else 6)  # followed where the code reads it
        assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)
        report = sc.verify(net, plan, small, x)
        assert report.ok, report.rows
        assert report.max_error <= 1e-10


@pytest.mark.parametrize("mix", MIXES)
def test_nothing_changes_unless_it_is_asked_for(mix: Any) -> None:
    net, x = made(mix)
    groups = sc.couple(sc.trace(net, x))
    assert "expert" not in {g.kind for g in groups}
    assert [g.units for g in groups] == [7]  # neurons of experts
    assert not any((s.name, s.dim) == ("up", 0) for g in groups for s in g.slices)
    assert {(f.name, f.dim) for f in groups.frozen} >= {("up", 0), ("router.weight", 0)}


def test_the_plain_masked_model_would_not_agree() -> None:
    """A router that still sees experts of zeros chooses them: the oracle must not be that."""
    net, x = made(one_hot)
    net, x = net.double(), x.double()
    plan = sc.random_plan(sc.couple(sc.trace(net, x), rules=sc.EXPERT_RULES), 0.6, seed=0)
    zeroed, small = sc.masked(plan, net), sc.apply(plan, net)
    with torch.no_grad():
        assert (zeroed(x) - small(x)).abs().max() > 1e-3
        with OverKept(kept_under_statistics(net, plan, x)):
            assert (zeroed(x) - small(x)).abs().max() < 1e-12


def test_fewer_experts_than_are_chosen_are_refused() -> None:
    net, x = made(scattered)
    groups = sc.couple(sc.trace(net, x), rules=sc.EXPERT_RULES)
    with pytest.raises(sc.PlanError, match=r"'router:expert' would keep 1 units; 2 are chosen at a time: keep 2"):
        sc.make_plan(groups, {"router:expert": np.arange(6) < 1})
    assert sc.random_plan(groups, 0.95, seed=0).keep["router:expert"].sum() == 2
    scores = sc.score(net, groups, sc.magnitude)
    plan = sc.allocate(scores, sc.Budget.of_dense(sc.params(net), 0.3), sc.global_)
    assert plan.keep["router:expert"].sum() >= 2
    net.k = 6
    with pytest.raises(sc.CoupleError, match=r"no group"):
        sc.couple(sc.trace(net, x), rules=sc.EXPERT_RULES)["router:expert"]


def by_number(net: Mixture, x: Tensor) -> Tensor:
    """Numbers that the code computes with mean something else."""
    best, which = net.router(x).softmax(-1).topk(net.k)
    return net.weighted(x, functional.one_hot(which, net.n).sum(-2) * best.mean(-1, keepdim=True)) + (which < 3).sum()


def in_a_loop(net: Mixture, x: Tensor) -> Tensor:
    gate = net.router(x).softmax(-1)
    return torch.stack([x @ net.up[i] @ net.down[i] * gate[:, i, None] for i in range(net.n)]).sum(0)


def unbound(net: Mixture, x: Tensor) -> Tensor:
    gate = net.router(x).softmax(-1)
    return sum((x @ u @ d * g[:, None] for u, d, g in zip(net.up, net.down, gate.unbind(-1), strict=True)), x)


def literal(net: Mixture, x: Tensor) -> Tensor:
    best, which = net.router(x).softmax(-1).topk(net.k)
    return net.weighted(x, (functional.one_hot(which, 6) * best.unsqueeze(-1)).sum(-2))


def in_order(net: Mixture, x: Tensor) -> Tensor:
    return net.weighted(x, net.router(x).softmax(-1).sort(-1)[0])


@pytest.mark.parametrize("mix", [by_number, in_a_loop, unbound, literal, in_order])
def test_what_is_not_followed_stays(mix: Any) -> None:
    net, x = made(mix)
    groups = sc.couple(sc.trace(net, x), rules=sc.EXPERT_RULES)
    assert not [g for g in groups if g.kind == "expert"]
    plan = sc.random_plan(groups, 0.5, seed=0)
    assert sc.verify(net, plan, sc.apply(plan, net), x).ok


def test_numbers_that_come_out_stay() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = made(picked)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), self.inner.router(x).sigmoid().topk(2)[1]

    groups = sc.couple(sc.trace(Router(), torch.randn(9, 5)), rules=sc.EXPERT_RULES)
    assert not [g for g in groups if g.kind == "expert"]


def test_a_softmax_over_channels_is_no_choice_of_experts() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = sc.trace(net, torch.randn(3, 4))
    found = [{g.name: g.units for g in sc.couple(graph, rules)} for rules in (sc.RULES, sc.EXPERT_RULES)]
    assert found[0] == found[1] == {"2:neuron": 6}


SIZES = {**LLAMA, "num_experts_per_tok": 2}
FAMILIES = {
    "mixtral": build("MixtralModel", "mixtral", **SIZES, num_local_experts=8),
    "qwen3_moe": build("Qwen3MoeModel", "qwen3_moe", **SIZES, head_dim=8, num_experts=8, moe_intermediate_size=16),
    "olmoe": build("OlmoeModel", "olmoe", **{**SIZES, "eos_token_id": 1}, num_experts=8),
    "gpt_oss": build("GptOssModel", "gpt_oss", **SIZES, head_dim=8, num_local_experts=8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    """Their grouped products refuse float64: compared in float32."""
    torch.manual_seed(0)
    model, x = FAMILIES[name](), tokens()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.3)  # as they are made, experts add next to nothing
    graph = sc.trace(model, x)
    groups = sc.couple(graph, rules=sc.EXPERT_RULES)
    experts = [g for g in groups if g.kind == "expert"]
    assert [(g.units, g.least) for g in experts] == [(8, 2)] * 2
    assert not [g for g in sc.couple(graph) if g.kind == "expert"]
    assert [g.kind for g in sc.couple(graph)].count("neuron") == [g.kind for g in groups].count("neuron") == 2
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, sparsity, seed)
        small = sc.apply(plan, model)
        kept = 8 - round(8 * sparsity)
        assert [m.num_experts for n, m in small.named_modules() if n.endswith("experts")] == [kept] * 2
        assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)
        report = sc.verify(model, plan, small, x)
        assert report.ok, report.rows
        assert report.max_error <= 1e-4


@pytest.mark.filterwarnings("ignore")
def test_where_one_expert_is_chosen_two_must_stay() -> None:
    """They are counted over a range of numbers, which one number is not."""
    make = build("MixtralModel", "mixtral", **{**SIZES, "num_experts_per_tok": 1}, num_local_experts=8)
    torch.manual_seed(0)
    model, x = make(), tokens()
    groups = sc.couple(sc.trace(model, x), rules=sc.EXPERT_RULES)
    assert [(g.units, g.least) for g in groups if g.kind == "expert"] == [(8, 2)] * 2
    plan = sc.random_plan(groups, 0.9, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), x)
    assert report.ok, report.rows


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_says_how_many_experts_are_left(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = FAMILIES["mixtral"](), families.ids()
    groups = sc.couple(sc.trace(model, x), rules=sc.EXPERT_RULES)
    keep = {g.name: np.arange(8) % 2 == 0 for g in groups if g.kind == "expert"}
    plan = sc.make_plan(groups, keep)
    sc.save_pretrained(tmp_path / "small", sc.apply(plan, model), plan, x)
    loaded = type(model).from_pretrained(tmp_path / "small")
    assert loaded.config.num_local_experts == 4
    assert loaded.layers[0].mlp.gate.weight.shape[0] == 4


@pytest.mark.filterwarnings("ignore")
def test_experts_and_residual_width_go_together() -> None:
    torch.manual_seed(0)
    make = build("MixtralForCausalLM", "mixtral", config="MixtralConfig", **SIZES, num_local_experts=8)
    model, x = make(), families.ids()
    groups = sc.couple(sc.trace(model, x), rules={**sc.RESIDUAL_RULES, **sc.EXPERT_RULES})
    assert {"expert", "width", "neuron"} <= {g.kind for g in groups}
    plan = sc.random_plan(groups, 0.5, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), x)
    assert report.ok, report.rows
