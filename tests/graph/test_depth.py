"""Whole layers taken out: which can be, what is repaired, and the oracle, the model with identities in their places."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import BERT, LLAMA, build, ids, masked_ids, pixels, tokens
from nets import Calls, Case
from torch import Tensor, nn

import secateur as sc
from secateur.calling import run, tensors_of
from secateur.graph.depth import examine
from secateur.types import Example


class Block(nn.Module):
    """x + f(norm(x)), its number kept deep inside, and a cache."""

    def __init__(self, index: int, hidden: int = 12) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Sequential(nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 8))
        self.mix.layer_idx = index

    def forward(self, x: Tensor, cache: list[Any] | None = None) -> Tensor:
        if cache is not None:
            cache[self.mix.layer_idx] = x.sum()
        return x + self.mix(self.norm(x))


@dataclass
class Sizes:
    """A config whose count of blocks says neither layer nor depth."""

    blocks: int = 4
    heads: int = 4
    kinds: list[str] = field(default_factory=lambda: ["a", "b", "c", "d"])
    pair: tuple[int, int] = (1, 2)


class Stream(nn.Module):
    """Reads the count that it holds, makes a cache by its config, and returns a list with an entry a layer."""

    def __init__(self, sizes: Sizes, first: int = 0) -> None:
        super().__init__()
        self.config, self.n, self.heads = sizes, sizes.blocks, sizes.heads
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Block(i + first) for i in range(sizes.blocks))
        self.register_buffer("steps", torch.zeros(()))
        for kind in sizes.kinds[: self.n]:
            assert kind
        self.last = sizes.kinds[sizes.blocks - 1]

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.steps += 1
        h, hidden = self.embed(x), []
        cache: list[Any] = [None] * (self.config.blocks + 1)
        for i in range(self.n):
            hidden.append(h)
            h = self.layers[i](h.view(*h.shape[:-1], self.heads, -1).flatten(-2), cache=cache)
        return {"out": self.head(h), "hidden": (*hidden, h), "cache": [c for c in cache if c is not None]}


class Stages(nn.Module):
    """Stages of a residual network: the first block of the second stage changes the shape."""

    class Bottle(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
            self.b, self.nb = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            same = before == after and stride == 1
            self.down = nn.Sequential() if same else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            y = self.nb(self.b(torch.relu(self.na(self.a(x)))))
            y += self.down(x)
            return y.relu_()

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(*(self.Bottle(8, 8, 1) for _ in range(3)))
        self.two = nn.Sequential(self.Bottle(8, 12, 2), self.Bottle(12, 12, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


class Scaled(nn.Module):
    """x + factor f(x), in place."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: Any = 1.0) -> tuple[Tensor, Tensor]:
        x += factor * self.f(x)
        return x, x.sum()


def looped(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    first = x = self.embed(x)
    for block in self.blocks:
        x, _ = block(x)
    return self.head(x), first


def beside(self: Any, x: Tensor) -> Tensor:
    x = self.embed(x)
    for block, factor in zip(self.blocks, self.factors, strict=True):
        x, _ = block(x, factor)
    return self.head(x)


def by_number(self: Any, x: Tensor) -> Tensor:
    x = self.embed(x)
    for i, block in enumerate(self.blocks):
        x, _ = block(x=x, factor=self.factors[i])
    return self.head(x)


def scaled(forward: Any, factors: Any, size: int = 4) -> Calls:
    blocks = nn.ModuleList(Scaled() for _ in range(size))
    net = Calls(forward, blocks=blocks, embed=nn.Linear(8, 8), head=nn.Linear(8, 3))
    net.factors = factors
    return net


def vec8() -> Tensor:
    return torch.randn(5, 8)


def named() -> nn.Module:
    net = nn.Sequential()
    for name in ("first", "second", "third"):
        net.add_module(name, Block(0))
    return net


@dataclass(frozen=True)
class Deep(Case):
    """A case with the layers that can go, some to drop, and what must be set for these."""

    can: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    sets: dict[str, Any] = field(default_factory=dict)


def four(prefix: str, n: int = 4) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(n))


def indices(path: str, *pairs: tuple[int, int]) -> dict[str, Any]:
    return {path.format(old): (old, new) for old, new in pairs}


T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 4}
TEXT = {**BERT, "num_hidden_layers": 4, "max_position_embeddings": 32}
LAYERED = {**LLAMA, "num_hidden_layers": 4}
GPT2 = {
    "vocab_size": 30,
    "n_positions": 16,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BART = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
}  # fmt: skip
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 3], "num_heads": [2, 4], "window_size": 4}
VIT = {**BERT, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
VIT.pop("vocab_size")


def both() -> Example:
    return {"input_ids": tokens(), "decoder_input_ids": tokens()[:, :5]}


CASES: dict[str, Deep] = {
    "stream": Deep(
        lambda: Stream(Sizes()), lambda: torch.randn(2, 5, 6), four("layers."), ("layers.0", "layers.2"),
        {
            "n": (4, 2), "config.blocks": (4, 2), "config.kinds": (("a", "b", "c", "d"), ("b", "d")),
            **indices("layers.{}.mix.layer_idx", (1, 0), (3, 1)),
        },
    ),
    "numbered_from_one": Deep(
        lambda: Stream(Sizes(), first=1), lambda: torch.randn(2, 5, 6), four("layers."), ("layers.1",),
        {
            "n": (4, 3), "config.blocks": (4, 3), "config.kinds": (("a", "b", "c", "d"), ("a", "c", "d")),
            **indices("layers.{}.mix.layer_idx", ), "layers.2.mix.layer_idx": (3, 2), "layers.3.mix.layer_idx": (4, 3),
        },
    ),
    "sequential": Deep(
        lambda: nn.Sequential(nn.Linear(6, 8), *(Block(0) for _ in range(3)), nn.Linear(8, 2)),
        lambda: torch.randn(4, 6), ("1", "2", "3"), ("1", "3"),
    ),
    "named": Deep(named, vec8, ("first", "second", "third"), ("second",)),
    "in_place": Deep(
        lambda: scaled(looped, None, 3), vec8, four("blocks.", 3), ("blocks.0", "blocks.1"),
    ),
    "list_beside": Deep(
        lambda: scaled(beside, [0.5, 1.0, 2.0, 4.0]), vec8, four("blocks."), ("blocks.1",),
        {"factors": ((0.5, 1.0, 2.0, 4.0), (0.5, 2.0, 4.0))},
    ),
    "tuple_by_number": Deep(
        lambda: scaled(by_number, (0.5, 1.0, 2.0), 3), vec8, four("blocks.", 3), ("blocks.0",),
        {"factors": ((0.5, 1.0, 2.0), (1.0, 2.0))},
    ),
    "stages": Deep(
        Stages, lambda: torch.randn(2, 3, 8, 8), ("one.0", "one.1", "one.2", "two.1"), ("one.1", "two.1"),
    ),
    "torch_encoder": Deep(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3),
        lambda: torch.randn(2, 5, 8), four("layers.", 3), ("layers.0",), {"num_layers": (3, 2)},
    ),
    "bert": Deep(
        build("BertModel", "bert", **TEXT), masked_ids, four("encoder.layer."), ("encoder.layer.1", "encoder.layer.2"),
        {"config.num_hidden_layers": (4, 2), "encoder.layer.3.attention.self.layer_idx": (3, 1)},
    ),
    "gpt2": Deep(
        build("GPT2LMHeadModel", "gpt2", config="GPT2Config", **GPT2), masked_ids, four("transformer.h."),
        ("transformer.h.0", "transformer.h.2"),
        {"config.n_layer": (4, 2), **indices("transformer.h.{}.attn.layer_idx", (1, 0), (3, 1))},
    ),
    "llama": Deep(
        build("LlamaForCausalLM", "llama", config="LlamaConfig", **LAYERED), masked_ids, four("model.layers."),
        ("model.layers.1",),
        {"config.num_hidden_layers": (4, 3), **indices("model.layers.{}.self_attn.layer_idx", (2, 1), (3, 2))},
    ),
    "gemma2": Deep(
        build("Gemma2Model", "gemma2", **LAYERED, head_dim=8), ids, four("layers."), ("layers.0",),
        {
            "config.num_hidden_layers": (4, 3),
            "config.layer_types": (
                ("sliding_attention", "full_attention") * 2, ("full_attention", "sliding_attention", "full_attention")
            ),
            **indices("layers.{}.self_attn.layer_idx", (1, 0), (2, 1), (3, 2)),
            **indices("layers.{}.layer_idx"),
        },
    ),
    "t5": Deep(
        build("T5Model", "t5", **T5), both, ("encoder.block.1", "encoder.block.2", "decoder.block.1", "decoder.block.2"),
        ("encoder.block.1", "decoder.block.2"),
        {
            "config.num_layers": (3, 2), "encoder.config.num_layers": (3, 2), "config.num_decoder_layers": (3, 2),
            "decoder.config.num_layers": (3, 2), "encoder.block.2.layer.0.SelfAttention.layer_idx": (2, 1),
        },
    ),
    "bart": Deep(
        build("BartModel", "bart", **BART), both, (*four("encoder.layers.", 3), *four("decoder.layers.", 3)),
        ("decoder.layers.1",),
        {
            "config.decoder_layers": (3, 2), "decoder.layers.2.self_attn.layer_idx": (2, 1),
            "decoder.layers.2.encoder_attn.layer_idx": (2, 1),
        },
    ),
    "vit": Deep(
        build("ViTModel", "vit", **VIT), pixels, four("layers."), ("layers.3",), {"config.num_hidden_layers": (4, 3)}
    ),
    "swin": Deep(
        build("SwinModel", "swin", **SWIN), pixels,
        (
            "encoder.layers.0.blocks.0", "encoder.layers.0.blocks.1", "encoder.layers.1", "encoder.layers.1.blocks.0",
            "encoder.layers.1.blocks.1", "encoder.layers.1.blocks.2",
        ),
        ("encoder.layers.1.blocks.1",), {"config.depths.1": (3, 2)},
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    return CASES[name].make().eval(), CASES[name].example()


def state(model: nn.Module) -> list[Any]:
    """Everything that a look at a model could leave behind."""
    modules = [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]
    settings = [
        copy.deepcopy({k: v for k, v in vars(m).items() if isinstance(v, (int, list, tuple, float, str))})
        for m in model.modules()
    ]
    config = getattr(model, "config", None)
    return [modules, settings, None if config is None else copy.deepcopy(vars(config))]


@pytest.mark.parametrize("name", CASES)
def test_the_layers_that_can_go_are_found_and_the_model_is_left_alone(name: str) -> None:
    model, example = built(name)
    model.train()
    before, tensors = state(model), {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.get_rng_state()
    assert tuple(layer.path for layer in sc.layers(model, example)) == CASES[name].can
    assert torch.equal(torch.get_rng_state(), random)
    assert state(model) == before
    assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_without_is_identity_in_their_place(name: str) -> None:
    model, example = built(name)
    case, before = CASES[name], state(model)
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    plan = sc.drop_layers(model, example, case.drop)
    assert {f"{m}.{p}".lstrip("."): change for (m, p), change in plan.attributes.items()} == case.sets
    small = sc.apply(plan, model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    report = sc.verify(model, plan, small, example)
    assert report.ok, report.rows
    assert report.max_error <= 1e-10
    assert state(model) == before
    assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())
    assert torch.equal(
        tensors_of(run(sc.apply_(plan, copy.deepcopy(model)), example))[0], tensors_of(run(small, example))[0]
    )


def test_what_goes_with_a_layer_is_counted_and_residual_ones_are_told() -> None:
    model, example = built("sequential")
    shared = model[2].mix[0]
    model[3].mix[0].weight = shared.weight
    found = {layer.path: layer for layer in sc.layers(model, example)}
    own = sum(p.numel() for p in model[1].parameters())
    assert [found[k].params for k in "123"] == [own, own - 96, own - 96]
    assert all(layer.residual for layer in found.values())
    assert (found["2"].container, found["2"].index) == ("", 2)
    assert not any(layer.residual for layer in sc.layers(*built("bert")))
    assert all(layer.residual for name in ("stages", "llama") for layer in sc.layers(*built(name)))


def test_why_others_stay_is_said() -> None:
    fixed = examine(*built("stages"))[1]
    assert fixed["two.0"] == "makes float32 (2, 12, 4, 4) of float32 (2, 8, 8, 8)"
    assert fixed["stem.1"] == fixed["stem.2"] == "holds no weight of two or more dims"
    alone = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 4))
    assert examine(alone, torch.ones(1, 4))[1] == {"0.0": "is the only one of its container"}
    block = nn.Linear(8, 8)
    again = nn.Sequential(block, block)
    assert set(examine(again, vec8())[1].values()) == {"is called 2 times on the example"}
    twice = Calls(lambda s, x: s.other(x), blocks=nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    twice.other = twice.blocks
    assert set(examine(twice, vec8())[1].values()) == {"is in a container of several names, blocks, other"}
    idle = Calls(lambda s, x: s.blocks[0](x), blocks=nn.ModuleList(nn.Linear(8, 8) for _ in range(2)))
    found, fixed = examine(idle, vec8())
    assert found == ()
    assert fixed["blocks.1"] == "is called 0 times on the example"


def test_a_layer_that_others_count_on_stays() -> None:
    norms = Calls(
        lambda s, x: s.blocks[1](s.norms[0](s.blocks[0](x))) + s.norms[1](x),
        blocks=nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), norms=nn.ModuleList(nn.LayerNorm(8) for _ in range(2)),
    )  # fmt: skip
    assert "IndexError" in examine(norms, vec8())[1]["blocks.0"]

    net = scaled(by_number, nn.ParameterList(nn.Parameter(torch.tensor(float(i + 1))) for i in range(3)), 3)
    found, fixed = examine(net, vec8())
    assert [layer.path for layer in found] == ["blocks.2"]  # nothing is behind it
    assert "not the model with the identity in its place" in fixed["blocks.1"]
    with pytest.raises(sc.PlanError, match=r"blocks.1 cannot be dropped: is needed.* can be, each by itself: blocks.2"):
        sc.drop_layers(net, vec8(), ["blocks.1"])


class Numbered(nn.Module):
    """Computes with its number, or only holds it, in one of two parts."""

    def __init__(self, index: int, uses: bool) -> None:
        super().__init__()
        self.uses, self.f = uses, nn.Linear(8, 8)
        self.even, self.odd = nn.Identity(), nn.Identity()
        (self.odd if index == 1 else self.even).number = index

    def forward(self, x: Tensor) -> Tensor:
        number = getattr(self.even, "number", None)
        return x + self.f(x) / (1 + (self.odd.number if number is None else number) if self.uses else 1)


def test_layers_that_compute_with_their_number_hold_what_is_before_them() -> None:
    torch.manual_seed(0)
    found, fixed = examine(nn.Sequential(*(Numbered(i, True) for i in range(4))), vec8())
    assert [layer.path for layer in found] == ["3"]
    assert "not the model with the identity in its place" in fixed["0"]


def test_a_number_in_another_part_of_a_single_layer_follows() -> None:
    net = nn.Sequential(*(Numbered(i, False) for i in range(4)))
    plan = sc.drop_layers(net, vec8(), ["0"])
    assert plan.attributes == {
        ("1.odd", "number"): (1, 0), ("2.even", "number"): (2, 1), ("3.even", "number"): (3, 2)
    }  # fmt: skip


def test_names_that_are_other_numbers_are_refused() -> None:
    net = nn.Sequential(OrderedDict((name, Block(0)) for name in ("0", "2", "5")))
    assert set(examine(net, vec8())[1].values()) >= {"has siblings whose names are numbers but not their positions"}


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(i) for i in range(3))

    def forward(self, x: Tensor, cache: list[Any]) -> Tensor:
        for layer in self.layers:
            x = layer(x, cache=cache)
        return x


def test_a_cache_in_the_example_is_not_written_to() -> None:
    example = {"x": vec8(), "cache": [None] * 3}
    assert len(sc.layers(Cached(), example)) == 3
    assert sc.drop_layers(Cached(), example, "layers.1").layers == ("layers.1",)
    assert example["cache"] == [None] * 3


def test_the_first_block_of_t5_holds_the_positions_of_all() -> None:
    model, example = built("t5")
    with pytest.raises(sc.PlanError, match=r"encoder.block.0 cannot be dropped: is needed"):
        sc.drop_layers(model, example, ["encoder.block.0"])


def test_an_int_that_only_equals_the_count_stays() -> None:
    model, example = built("stream")
    small = sc.apply(sc.drop_layers(model, example, ["layers.3"]), model)
    assert (small.heads, small.config.heads, small.config.pair) == (4, 4, (1, 2))
    assert (small.n, small.config.blocks, model.n, model.config.blocks) == (3, 3, 4, 4)
    assert isinstance(small.config.kinds, list)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["layers.9"], r"'layers.9' is not a child of an nn.ModuleList .* can be, each by itself: layers.0, layers.1"),
        ([], "no layers are given to drop"),
        (four("layers."), "nothing would be left of layers: keep one"),
        (["layers.1", "layers.1.mix.0"], "layers.1.mix.0 cannot be dropped: it makes float32 .*, 12.* of float32"),
    ],
)
def test_what_cannot_be_dropped_is_refused(paths: list[str], words: str) -> None:
    with pytest.raises(sc.PlanError, match=words):
        sc.drop_layers(*built("stream"), paths)


def test_a_layer_inside_of_another_that_goes_is_refused() -> None:
    model, example = built("swin")
    with pytest.raises(sc.PlanError, match=r"encoder.layers.1.blocks.0 goes with encoder.layers.1 already"):
        sc.drop_layers(model, example, ["encoder.layers.1", "encoder.layers.1.blocks.0"])


def test_a_model_that_does_not_run_is_refused() -> None:
    with pytest.raises(sc.TraceError, match="Stream does not run on the example"):
        sc.drop_layers(built("stream")[0], torch.ones(3), ["layers.0"])


def test_a_plan_for_another_depth_is_refused_and_nothing_changes() -> None:
    model, example = built("sequential")
    plan = sc.drop_layers(model, example, ["1", "3"])
    small = sc.apply(plan, model)
    before = {n: t.clone() for n, t in small.state_dict().items()}
    for other, words in ((small, "drops"), (nn.Linear(2, 2), r"drops \['1', '3'\] of the model, which holds \[\]")):
        with pytest.raises(sc.PlanError, match=words):
            sc.apply_(sc.drop_layers(model, example, ["1", "3"]), other)
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())


def test_a_wrong_cut_is_caught() -> None:
    model, example = built("stream")
    plan = sc.drop_layers(model, example, ["layers.1"])
    small = sc.apply(plan, model)
    assert sc.verify(model, plan, small, example).ok
    small.n = 2
    rows = {row.what: row.ok for row in sc.verify(model, plan, small, example)}
    assert rows["shapes follow the plan"]
    assert not rows["shrunk computes as planned"]
    rows = {row.what: row.ok for row in sc.verify(model, plan, model, example)}
    assert not rows["shapes follow the plan"]
    without = sc.Plan(**{**vars(plan), "attributes": {}})
    report = sc.verify(model, without, sc.apply(without, model), example)
    assert "index 3 is out of range" in report.rows[0].note


@pytest.mark.parametrize("name", ["stream", "stages", "gpt2", "llama", "bert", "t5", "vit"])
def test_widths_and_layers_go_in_one(name: str) -> None:
    model, example = built(name)
    groups = sc.couple(sc.trace(model, example))
    widths = sc.random_plan(groups, 0.4, seed=1)
    plan = sc.drop_layers(model, example, CASES[name].drop, plan=widths)
    assert plan.layers
    assert plan.keep is widths.keep
    small = sc.apply(plan, model)
    report = sc.verify(model, plan, small, example)
    assert report.ok, report.rows
    assert report.max_error <= 1e-10
    only = sc.apply(sc.drop_layers(model, example, CASES[name].drop), model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in only.parameters())
    with pytest.raises(sc.PlanError, match="already: give all layers at once"):
        sc.drop_layers(model, example, CASES[name].drop, plan=plan)


def test_residual_width_and_layers_go_in_one() -> None:
    model, example = built("llama")
    widths = sc.random_plan(sc.couple(sc.trace(model, example), rules=sc.RESIDUAL_RULES), 0.4, seed=0)
    plan = sc.drop_layers(model, example, ["model.layers.0", "model.layers.3"], plan=widths)
    report = sc.verify(model, plan, sc.apply(plan, model), example)
    assert report.ok, report.rows


def test_sizes_replaced_by_their_place_in_the_forward_pass_do_not_shift() -> None:
    model, example = built("sequential")
    sizes = {("", "view", 1, 0): (8, 4)}
    plan = sc.Plan(**{**vars(sc.drop_layers(model, example, ["1"])), "layers": (), "sizes": sizes})
    with pytest.raises(sc.PlanError, match="drop layers first, apply, and make the other plan for what is left"):
        sc.drop_layers(model, example, ["1"], plan=plan)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_optimizer_follows(in_place: bool) -> None:
    model, example = built("sequential")
    groups = sc.couple(sc.trace(model, example))
    plan = sc.drop_layers(model, example, ["2"], plan=sc.random_plan(groups, 0.5, seed=0))
    optimizer = torch.optim.Adam(model.parameters())
    model(example).sum().backward()
    optimizer.step()
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    small = sc.apply_(plan, model) if in_place else sc.apply(plan, model)
    sc.apply_to_optimizer_(plan, optimizer, model, small)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in small.parameters()} <= held
    if not in_place:
        assert len(held) == len(optimizer.state) == len(list(small.parameters()))
    for p in small.parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
    keep = plan.axes["3.mix.0.weight", 0]
    assert torch.equal(
        optimizer.state[small[2].mix[0].weight]["exp_avg"], moments["3.mix.0.weight"][np.flatnonzero(keep)]
    )
    optimizer.zero_grad()
    small(example).sum().backward()
    optimizer.step()


def test_refit_finds_the_dense_weights_under_their_old_names() -> None:
    model, example = built("sequential")
    plan = sc.drop_layers(model, example, ["2"], plan=sc.random_plan(sc.couple(sc.trace(model, example)), 0.5, seed=0))
    small, batches = sc.apply(plan, model), [torch.randn(64, 6) for _ in range(4)]

    @torch.no_grad()
    def error() -> float:
        return float((small(batches[0]) - model(batches[0])).square().mean())

    before = error()
    sc.refit(batches).run(small, model, plan)
    assert error() < before


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_generation_with_a_cache_is_that_without(name: str) -> None:
    kind, module = {
        "gpt2": ("GPT2LMHeadModel", "gpt2"),
        "llama": ("LlamaForCausalLM", "llama"),
        "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    }[name]
    sizes = GPT2 if name == "gpt2" else {**LAYERED, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = {"gpt2": "GPT2Config", "llama": "LlamaConfig", "gemma2": "Gemma2Config"}[name]
    torch.manual_seed(0)
    model = build(kind, module, config=config, **sizes, initializer_range=0.5)()
    model.config.use_cache = True
    example = ids()
    layers = [layer.path for layer in sc.layers(model, example)]
    assert len(layers) == 4
    plan = sc.drop_layers(model, example, [layers[0], layers[2]])
    small, whole = sc.apply(plan, model), sc.masked(plan, model)
    assert sc.verify(model, plan, small, example).ok
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for mask in (torch.ones(2, 8, dtype=torch.long), torch.tensor([[0] * 3 + [1] * 5, [1] * 8])):
        told = small.generate(example["input_ids"], attention_mask=mask, use_cache=True, **options)
        assert torch.equal(told, small.generate(example["input_ids"], attention_mask=mask, use_cache=False, **options))
        assert torch.equal(told, whole.generate(example["input_ids"], attention_mask=mask, use_cache=True, **options))
    with torch.no_grad():
        out = small(example["input_ids"], use_cache=True, output_hidden_states=True)
    assert len(out.past_key_values) == 2
    assert len(out.hidden_states) == 3
    report = sc.verify(model, plan, small, {**example, "output_hidden_states": True})
    assert report.ok, report.rows


def test_a_config_that_is_shared_changes_in_the_copy_alone() -> None:
    model, example = built("llama")
    small = sc.apply(sc.drop_layers(model, example, ["model.layers.1"]), model)
    assert small.config is small.model.config is small.model.layers[0].self_attn.config
    assert (small.config.num_hidden_layers, model.config.num_hidden_layers) == (3, 4)
    rebuilt = type(small)(small.config)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}


LOAD = """
import sys, torch, secateur as sc
model = sc.load(sys.argv[1])
with torch.no_grad():
    out = model(torch.arange(8)[None]).last_hidden_state
torch.save(out, sys.argv[2])
print(len(model.encoder.layer), model.config.num_hidden_layers, [l.attention.self.layer_idx for l in model.encoder.layer])
"""


def test_it_loads_in_another_process_to_the_same_bits(tmp_path: Path) -> None:
    model, example = built("bert")
    groups = sc.couple(sc.trace(model, example))
    plan = sc.drop_layers(model, example, ["encoder.layer.0", "encoder.layer.2"], plan=sc.random_plan(groups, 0.5, 0))
    small = sc.apply(plan, model).eval()
    folder = sc.save(tmp_path / "small", small, plan)
    assert sc.load_plan(folder).layers == plan.layers
    assert sc.load_plan(folder).attributes == plan.attributes
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "out.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2 2 [0, 1]"
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), small(torch.arange(8)[None]).last_hidden_state)


@pytest.mark.parametrize("name", ["stream", "named", "gemma2", "t5", "bart", "swin"])
def test_round_trips(name: str, tmp_path: Path) -> None:
    """Counts, lists and configs inside of parts come back, from the factory and from the config alone."""
    model, example = built(name)
    plan = sc.drop_layers(model, example, CASES[name].drop)
    small = sc.apply(plan, model).eval()
    folder = sc.save(tmp_path / "small", small, plan)
    factories: list[Any] = [CASES[name].make] + ([None] if name in families.CASES or name in ("gemma2", "bart") else [])
    for factory in factories:
        loaded = sc.load(folder, factory)
        with torch.no_grad():
            pairs = zip(tensors_of(run(loaded, example)), tensors_of(run(small, example)), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    again = sc.save(tmp_path / "again", sc.load(folder, CASES[name].make), sc.load_plan(folder))
    assert (again / "plan.safetensors").read_bytes() == (folder / "plan.safetensors").read_bytes()
    if (folder / "config.json").exists():
        assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()
