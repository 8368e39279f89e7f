"""Code in which pruners go wrong, each under its name: what can go is exact, at other batch sizes too, and twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attention_nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import build, ids, pixels
from nets import Calls, img, seq, vec
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from traps import EIGHT, net

import secateur as sc
from secateur.calling import run
from secateur.graph.rules import Rule
from secateur.types import Example

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")


def holds(model: nn.Module, example: Example, groups: sc.Groups, *also: Example) -> nn.Module:
    """The oracle at two sparsities, on the example and on others."""
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, sparsity, seed)
        small = sc.apply(plan, model)
        for given in (example, *also):
            report = sc.verify(model, plan, small, given)
            assert report.ok, report.rows
            assert report.max_error <= 1e-10
        assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)
    return small


def shuffle(s: Any, x: Tensor) -> Tensor:
    h = s.stem(x)
    b, c, height, width = h.shape
    h = h.reshape(b, s.groups, c // s.groups, height, width).transpose(1, 2).reshape(b, -1, height, width)
    return s.head(torch.tanh(s.grouped(h)))


def global_response(s: Any, x: Tensor) -> Tensor:
    h = F.gelu(s.stem(x))
    norm = h.norm(p=2, dim=(2, 3), keepdim=True)
    h = s.gamma * (h * (norm / (norm.mean(1, keepdim=True) + 1e-6))) + h
    return s.head(h)


def standardised(s: Any, x: Tensor) -> Tensor:
    """As timm's StdConv2d has it."""
    w = s.conv.weight
    w = F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)
    return s.head(F.relu(F.conv2d(s.stem(x), w, s.conv.bias)))


def from_the_input(s: Any, x: Tensor) -> Tensor:
    """Sizes that no attribute holds: timm's attention."""
    x = s.embed(x)
    b, n, c = x.shape
    q, k, v = s.qkv(x).reshape(b, n, 3, s.heads, c // s.heads).permute(2, 0, 3, 1, 4)
    return s.head(x + s.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)))


def literals(s: Any, x: Tensor) -> Tensor:
    h = s.a(x).view(x.shape[0], 2, 4).transpose(1, 2).reshape(x.shape[0], 8)
    return s.out(F.relu(h))


def rotary_cache(s: Any, x: Tensor) -> Tensor:
    x, t = s.embed(x), x.shape[1]
    q, k, v = (p(x).view(len(x), t, s.heads, s.dim).transpose(1, 2) for p in (s.q, s.k, s.v))
    q, k = (p * s.cos[:t] + attention_nets.turned(p) * s.sin[:t] for p in (q, k))
    return s.head(x + s.out(F.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2).flatten(2)))


class Rotary(attention_nets.Rotary):
    """Angles worked out when it is built."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(12.0), self.inv_freq).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return rotary_cache(self, x)


class Packed(nn.Module):
    """Two layers both ways over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(x.shape[1], 0, -1)[: len(x)]
        packed = pack_padded_sequence(F.relu(self.embed(x)), lengths, batch_first=True)
        y, (h, _) = self.lstm(packed)
        return self.head(pad_packed_sequence(y, batch_first=True)[0]) + h.mean()


def old_weight_norm() -> nn.Module:
    norm = nn.utils.weight_norm
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), norm(nn.Linear(8, 10)), nn.Linear(10, 3))


def parts(forward: Callable[[Any, Tensor], Tensor], **made: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Calls(forward, **{name: make() for name, make in made.items()})


def conv(*sizes: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*sizes, **options)


def linear(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*sizes)


def picked_experts(s: Any, x: Tensor) -> Tensor:
    """Weights picked one by one by numbers of which there are as many as the data asks for."""
    h = s.a(x)
    y, best = h, s.gate(h).argmax(-1)
    for k in best.unique():
        y = y + F.silu(h @ s.up.view(3, -1, 10).transpose(1, 2)[k].t()) @ s.down[k] * (best == k)[:, None]
    return s.out(y)


TRAPS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, int]]] = {
    "sdpa_default_scale": (
        lambda: attention_nets.Repairable(scaled=False),
        seq,
        {"embed:neuron": 16, "c_attn:head": 4, "c_attn:head_dim": 8},
    ),
    "from_the_input": (
        parts(
            from_the_input,
            embed=linear(6, 12),
            qkv=linear(12, 36),
            proj=linear(12, 12),
            head=linear(12, 3),
            heads=lambda: 3,
        ),
        seq,
        {"embed:neuron": 12, "qkv:head": 3, "qkv:head_dim": 4},
    ),
    "flip": (
        net(lambda s, x: s.out(s.c(F.relu(s.a(x)).flip(-1)) + s.b(x).flip(-1))),
        vec,
        {"a:neuron": 8, "b:neuron": 8},
    ),
    "roll_by_half": (
        net(lambda s, x: s.out(s.c(F.relu((h := s.a(x)).roll(h.shape[-1] // 2, -1))) + s.b(x))),
        vec,
        {"b:neuron": 8},
    ),
    "index_select": (
        net(lambda s, x: s.out(F.relu(s.a(x)).index_select(1, s.order) + s.b(x)), order=EIGHT),
        vec,
        {"a:neuron": 8},
    ),
    "advanced_indexing": (
        net(lambda s, x: s.out(s.c(F.relu(s.a(x))[:, s.order]) + s.b(x)[..., s.order]), order=EIGHT),
        vec,
        {"a:neuron": 8},
    ),
    "shuffle": (
        parts(shuffle, stem=conv(3, 8, 1), grouped=conv(8, 12, 1, groups=2), head=conv(12, 2, 1), groups=lambda: 2),
        img,
        {"stem:channel": 2, "stem:channel2": 2, "stem:channel3": 2, "grouped:channel": 6},
    ),
    "global_response": (
        parts(
            global_response,
            stem=conv(3, 8, 1),
            head=conv(8, 2, 1),
            gamma=lambda: nn.Parameter(torch.randn(1, 8, 1, 1)),
        ),
        img,
        {"stem:channel": 8},
    ),
    "rotary_cache": (Rotary, seq, {"embed:neuron": 16, "q:head": 3, "q:head_dim": 4, "v:head_dim": 8}),
    "old_weight_norm": (old_weight_norm, vec, {"0:neuron": 8, "2:neuron": 10}),
    "standardised": (
        parts(standardised, stem=conv(3, 8, 1), conv=conv(8, 6, 3), head=conv(6, 2, 1)),
        img,
        {"stem:channel": 8, "conv:channel": 6},
    ),
    "picked_experts": (
        parts(
            picked_experts,
            a=linear(6, 8),
            gate=linear(8, 3),
            up=lambda: nn.Parameter(torch.randn(24, 10)),
            down=lambda: nn.Parameter(torch.randn(3, 10, 8)),
            out=linear(8, 3),
        ),
        lambda: torch.randn(9, 6),
        {"a:neuron": 8, "up:neuron": 10},
    ),
    "interleaved": (
        parts(lambda s, x: s.out((h := s.a(x))[..., ::2] * h[..., 1::2]), a=linear(6, 8), out=linear(4, 3)),
        vec,
        {"a:neuron": 4},
    ),
    "all_but_the_last": (
        parts(lambda s, x: s.out(torch.tanh(s.a(x))[..., :-2]), a=linear(6, 8), out=linear(6, 3)),
        vec,
        {"a:neuron": 6},
    ),
    "literals": (net(literals), vec, {"a:neuron": 2, "a:neuron2": 4}),
    "packed": (Packed, seq, {"embed:neuron": 8, "lstm:hidden": 5}),
}


def found(name: str) -> tuple[nn.Module, Tensor, sc.Groups]:
    torch.manual_seed(0)
    make, example, _ = TRAPS[name]
    model, x = make(), example()
    return model, x, sc.couple(sc.trace(model, x), every=True)


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_stepped_over(name: str) -> None:
    """Also on another number of items than recorded."""
    model, x, groups = found(name)
    assert groups.unknown == ()
    assert {g.name: g.units for g in groups} == TRAPS[name][2]
    holds(model, x, groups, torch.cat([x, x.flip(1) + 1])[:3], x[:1])


@pytest.mark.parametrize("name", TRAPS)
def test_a_cut_model_can_be_cut_again(name: str) -> None:
    """Whatever the first cut put on the model, the second one's goes with it."""
    model, x, groups = found(name)
    once = sc.apply(sc.random_plan(groups, 0.3, seed=0), model)
    again = sc.couple(sc.trace(once, x), every=True)
    assert again.params(again.all_kept()) == sum(p.numel() for p in once.parameters())
    assert {g.name for g in again} <= {g.name for g in groups}
    holds(once, x, again)


def test_any_of_the_weights_may_be_picked_next_time() -> None:
    make, example, _ = TRAPS["picked_experts"]
    model: Any = make()
    model.gate.bias.data[0] = 100.0  # the first is best whatever comes
    groups = sc.couple(sc.trace(model, example()))
    assert {g.name: g.units for g in groups} == {"a:neuron": 8, "up:neuron": 10}
    assert [f.size for f in groups.frozen if (f.name, f.dim) == ("down", 0)] == [3]


@pytest.mark.parametrize("rules", [sc.RULES, sc.RESIDUAL_RULES])
def test_tied_embeddings_stay_one_object(rules: Mapping[str, Rule]) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}
    model = build("GPT2LMHeadModel", "gpt2", config="GPT2Config", **sizes, tie_word_embeddings=True)()
    groups = sc.couple(sc.trace(model, ids()), rules=rules)
    kinds = {g.kind: g.units for g in groups}
    assert kinds.get("width") == (16 if rules is sc.RESIDUAL_RULES else None)
    assert (kinds["neuron"], kinds["head"]) == (64, 4)  # of transformers' Conv1D, whose weights lie transposed
    small = holds(model, ids(), groups)
    assert small.lm_head.weight is small.transformer.wte.weight
    assert small.lm_head.weight.shape == (30, 6 if rules is sc.RESIDUAL_RULES else 16)


class Frozen(nn.Module):
    """Runs without gradients, and some of its weights are not to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.a.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.b(F.gelu(self.a(x)))))


def test_frozen_weights_are_pruned_like_any() -> None:
    torch.manual_seed(0)
    model, x = Frozen(), vec()
    plan = sc.prune(model, x, budget=sc.Budget.of_dense(sc.params(model), 0.5)).plan
    free = Frozen().requires_grad_()
    free.load_state_dict(model.state_dict())
    result = sc.prune(free, x, budget=sc.Budget.of_dense(sc.params(free), 0.5))
    assert all((plan.keep[n] == result.plan.keep[n]).all() for n in plan.keep | result.plan.keep)
    assert plan.removed == result.plan.removed > 0
    with torch.no_grad():
        small = sc.prune(model, x, budget=sc.Budget.of_dense(sc.params(model), 0.5)).model
    assert [p.requires_grad for p in small.parameters()] == [False] * 2 + [True] * 4


class Remembering(nn.Module):
    """Keeps what it worked out: in a method, in a dict, in hooks that its first call puts in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.seen: dict[int, Tensor] = {}
        self.heard: list[Tensor] = []
        self.table: Tensor | None = None

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def ramp(self, n: int) -> Tensor:
        return torch.linspace(0, 1, n, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(x.shape[1]).double()
            self.b.register_forward_hook(lambda module, args, out: self.heard.append(out))
        if x.shape[1] not in self.seen:
            self.seen[x.shape[1]] = torch.outer(self.table, torch.ones(2)).cos()
        turn = (self.seen[x.shape[1]].sum(1) + self.ramp(x.shape[1])).to(x)
        return self.out(torch.tanh(self.b(F.relu(self.a(x + turn[:, None])))))


def tensors_in(item: Any) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    inside = item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
    return [t for value in inside for t in tensors_in(value)]


def test_a_model_that_ran_gives_the_plan_of_one_that_did_not() -> None:
    plans, example = [], seq()
    for runs in (0, 2):
        torch.manual_seed(0)
        model = Remembering()
        with torch.no_grad():
            for _ in range(runs):
                model(example)
        hooks = len(model.b._forward_hooks)
        groups = sc.couple(sc.trace(model, example))
        assert {g.name: g.units for g in groups} == {"a:neuron": 8, "b:neuron": 12}
        assert len(model.b._forward_hooks) == hooks
        kept = [t for part in model.modules() for t in tensors_in(vars(part))]
        assert not [t for t in kept if isinstance(t, FakeTensor)]
        assert not isinstance(model.ramp(5), FakeTensor)
        plans.append(sc.random_plan(groups, 0.5, seed=0))
        holds(model, example, groups)
        assert torch.isfinite(model(example)).all()
    assert all((plans[0].keep[n] == plans[1].keep[n]).all() for n in plans[0].keep | plans[1].keep)


def test_positions_of_windows_are_looked_up_as_before() -> None:
    """Swin's tables of relative positions are made from sizes, its masks from the height and width of the input."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
    model, example = build("SwinModel", "swin", **sizes)(), pixels()
    groups = sc.couple(sc.trace(model, example))
    assert {g.kind for g in groups} == {"head", "neuron"}
    more = {"pixel_values": torch.randn(3, 3, 32, 32)}
    small = holds(model, example, groups, more)
    assert len(run(small, more).last_hidden_state) == 3
    order = {n: b for n, b in small.named_buffers() if not b.dtype.is_floating_point}
    assert order
    assert all(torch.equal(b, model.get_buffer(n)) for n, b in order.items())


def test_another_path_shown_by_another_example_runs_too() -> None:
    """A branch on data: what one example shows stays for both; `also` shows the other's weights, and both run."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.out(s.b(x) if x.sum() > 0 else s.c(x).flip(-1))

    made = {"b": two_layers(8), "c": two_layers(8), "out": nn.Linear(8, 3)}
    model, up, down = Calls(forward, **made), torch.ones(2, 6), -torch.ones(2, 6)
    alone = sc.couple(sc.trace(model, up))
    assert {g.name for g in alone} == {"b.0:neuron"}
    why = {f.name: f.reason for f in alone.frozen}
    assert why["b.2.weight"] == "passes through code that decides by looking at its data"
    assert why["c.0.weight"] == "is not used on the example"
    both = sc.couple(sc.trace(model, up, also=[down]))
    assert {g.name for g in both} == {"b.0:neuron", "c.0:neuron"}
    small = sc.apply(sc.make_plan(both, {g.name: np.arange(g.units) % 2 == 0 for g in both}), model)
    assert (small.b[0].out_features, small.c[0].out_features) == (5, 5)
    holds(model, up, both)
    plan = sc.random_plan(both, 0.5, seed=0)
    for example in (up, down):
        assert sc.verify(model, plan, sc.apply(plan, model), example).max_error <= 1e-10


def two_layers(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, width))


def test_a_projection_keeps_another_size_than_the_hidden_state() -> None:
    """Torch tells a projected LSTM by its two sizes: equal ones would be another layer."""
    net = nn.Sequential(
        nn.LSTM(4, 5, proj_size=3, batch_first=True), Calls(lambda s, x: s.out(x[0]), out=nn.Linear(3, 2))
    )
    x = torch.randn(2, 6, 4)
    groups = sc.couple(sc.trace(net, x))
    name = next(g.name for g in groups if g.kind == "hidden")
    for kept in (2, 4):
        plan = sc.make_plan(groups, {name: np.arange(5) < kept})
        assert sc.verify(net, plan, sc.apply(plan, net), x).ok
    with pytest.raises(sc.CoupleError, match="would come out otherwise"):
        sc.make_plan(groups, {name: np.arange(5) < 3})
