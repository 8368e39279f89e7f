"""Residual width, cut on request: its oracle is the masked model whose norms run over the kept positions."""

from __future__ import annotations

import attention_nets
import families
import nets
import pytest
import torch
from nets import Calls, Case, seq, words
from torch import Tensor, nn

import secateur as sc
from secateur.calling import run, tensors_of
from secateur.evidence.kept import OverKept, kept_under_statistics


class Stream(nn.Module):
    """Embedding, two blocks on a residual stream with layer norms, a head."""

    def __init__(self, norm: type[nn.Module], heads: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.norms = nn.ModuleList(norm(12) for _ in range(3))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.attention = attention_nets.Repairable(scaled=True)
        self.attention.embed, self.attention.c_proj = nn.Linear(12, 16), nn.Linear(32, 16)
        self.attention.head = nn.Linear(16, 12)
        self.heads, self.head = heads, nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.down(torch.nn.functional.gelu(self.up(self.norms[0](h))))
        if self.heads:
            h = h + self.attention(self.norms[1](h))
        return self.head(self.norms[2](h))


STREAMS = {
    "layer_norm": Case(nets.layer_normed, nets.vec),
    "stream": Case(lambda: Stream(nn.LayerNorm, True), words),
    "stream_rms": Case(lambda: Stream(nn.RMSNorm, False), words),
}


@pytest.mark.parametrize("name", STREAMS)
def test_width_is_a_group_and_exact_over_the_kept_positions(name: str) -> None:
    torch.manual_seed(0)
    model, example = STREAMS[name].make().eval(), STREAMS[name].example()
    graph = sc.trace(model, example)
    assert not [g for g in sc.couple(graph) if g.kind == "width"]
    groups = sc.couple(graph, rules=sc.RESIDUAL_RULES)
    widths = {g.name: g.units for g in groups if g.kind == "width"}
    assert sorted(widths.values()) == ([8, 8] if name == "layer_norm" else [12])
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, sparsity, seed)
        small = sc.apply(plan, model)
        assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)
        report = sc.verify(model, plan, small, example)
        assert report.ok, report.rows
        assert report.max_error <= 1e-10


def test_the_plain_masked_model_would_not_agree() -> None:
    """Norms over all positions, zeros and all, are another function: the oracle must not be that."""
    torch.manual_seed(0)
    model, x = Stream(nn.LayerNorm, False).double().eval(), words()
    plan = sc.random_plan(sc.couple(sc.trace(model, x), rules=sc.RESIDUAL_RULES), 0.5, seed=0)
    zeroed, small = sc.masked(plan, model), sc.apply(plan, model)
    with torch.no_grad():
        assert (zeroed(x) - small(x)).abs().max() > 1e-3
        with OverKept(kept_under_statistics(model, plan, x)):
            assert (zeroed(x) - small(x)).abs().max() < 1e-12


def test_norms_say_their_new_shape() -> None:
    torch.manual_seed(0)
    model, x = Stream(nn.LayerNorm, True), words()
    groups = sc.couple(sc.trace(model, x), rules=sc.RESIDUAL_RULES)
    small = sc.apply(sc.random_plan(groups, 0.5, seed=0), model)
    assert [n.normalized_shape for n in small.norms] == [(6,)] * 3
    assert small.embed.embedding_dim == 6
    assert [n.normalized_shape for n in model.norms] == [(12,)] * 3


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "t5", "encoder_layer"])
def test_transformers_keep_running(name: str) -> None:
    """The model's outputs are its residual stream, which stays; what else can go with norms over kept must run."""
    case = {**families.CASES, **attention_nets.CASES}[name]
    torch.manual_seed(0)
    model, example = case.make().eval(), case.example()
    groups = sc.couple(sc.trace(model, example), rules=sc.RESIDUAL_RULES)
    plan = sc.random_plan(groups, 0.4, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), example)
    assert report.ok, report.rows
    outputs = [tuple(t.shape) for t in tensors_of(run(model, example))]
    assert [tuple(t.shape) for t in tensors_of(run(sc.apply(plan, model), example))] == outputs


def test_inner_means_run_over_what_is_kept() -> None:
    net = Calls(lambda s, x: s.out(s.a(x) - s.a(x).mean(-1, keepdim=True)), a=nn.Linear(6, 8), out=nn.Linear(8, 3))
    groups = sc.couple(sc.trace(net, seq()))
    assert {g.name: g.units for g in groups} == {"a:neuron": 8}
    plan = sc.random_plan(groups, 0.5, seed=0)
    report = sc.verify(net, plan, sc.apply(plan, net), seq())
    assert report.ok, report.rows
    with torch.no_grad():  # the plain masked model takes the mean over zeros too
        assert (sc.masked(plan, net)(seq()) - sc.apply(plan, net)(seq())).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "module"), [("LlamaForCausalLM", "llama"), ("GPT2LMHeadModel", "gpt2")])
def test_language_models_lose_width_exactly(kind: str, module: str) -> None:
    sizes = {
        "llama": families.LLAMA,
        "gpt2": {"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4},
    }
    config = {"llama": "LlamaConfig", "gpt2": "GPT2Config"}[module]
    torch.manual_seed(0)
    model = families.build(kind, module, config=config, **sizes[module], tie_word_embeddings=True)()
    groups = sc.couple(sc.trace(model, families.ids()), rules=sc.RESIDUAL_RULES)
    assert {g.units for g in groups if g.kind == "width"} == {16}
    plan = sc.random_plan(groups, 0.4, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), families.ids())
    assert report.ok, report.rows
