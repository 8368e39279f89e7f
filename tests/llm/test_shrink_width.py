"""A narrower residual stream: what carries nothing costs nothing; embedding, blocks and head are cut alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from shrinking import BASE, gpt2, llama, made, neox, qwen2, texts
from torch import nn

import secateur as sc
from secateur.cli.app import main
from secateur.errors import ArgumentError, BudgetError, CoupleError, DataError, FormatError
from secateur.llm.memory import Needs
from secateur.llm.shrink import prices
from secateur.llm.shrink.asked import Shrinking, of_kv, of_params
from secateur.llm.shrink.hollow import params
from secateur.llm.shrink.options import uniform
from secateur.llm.shrink.prices import Anatomy, timed
from secateur.llm.shrink.refit import Kept, make_up_, refit_
from secateur.llm.shrink.run import llm_shrink
from secateur.llm.shrink.survey import moments_of
from secateur.llm.shrink.units import within
from secateur.llm.shrink.width import channel_scores, strongest
from secateur.llm.source import Source
from secateur.llm.walk import Walk
from secateur.score.calibrate import Moment

ALONE = Shrinking(kinds=(), layers=False, width=0.75)
"""24 of 32 channels, and nothing else."""
MODELS: dict[str, Callable[[], nn.Module]] = {
    "untied": llama,
    "tied_biased": lambda: llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen2": qwen2,
    "gpt2": gpt2,
    "neox": neox,
}


def gemma() -> nn.Module:
    return made(tf.GemmaConfig(**BASE, head_dim=8))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=texts(2, seed=5), use_cache=False).logits  # type: ignore[no-any-return]


def loaded(folder: Path) -> nn.Module:
    told = json.loads((folder / "shrink.json").read_text())
    if told["loads_with"] == "secateur.load":
        return sc.load(folder)
    return tf.AutoModelForCausalLM.from_pretrained(folder).eval()  # type: ignore[no-any-return]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), qwen2, gemma])
def test_channels_that_carry_nothing_cost_nothing(make: Callable[[], Any], tmp_path: Path) -> None:
    """Every norm divides by another number then: the weights behind it, and the last norm, make up for that."""
    model, dead = make(), torch.arange(0, 32, 4)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, dead] = 0
        for block in model.model.layers:
            block.self_attn.o_proj.weight[dead] = 0
            block.mlp.down_proj.weight[dead] = 0
    done = llm_shrink(model, texts(), [], tmp_path / "o", ALONE)
    assert np.nonzero(~done.plan.keep[next(n for n, k in done.plan.kinds.items() if k == "width")])[0].tolist() == [
        *range(0, 32, 4)
    ]
    assert relative(logits(loaded(done.folder)), logits(model)) < 1e-4


@pytest.mark.parametrize("name", list(MODELS))
def test_without_a_refit_it_is_the_plain_cut(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    done = llm_shrink(model, texts(), [], tmp_path / "o", replace(ALONE, damping=None, ridge=None))
    small = loaded(done.folder)
    expected = sc.apply(done.plan, model)
    assert params(small) == params(expected) < 0.8 * params(model)
    assert torch.equal(logits(small), logits(expected))
    again = load_file(done.folder / "model.safetensors")
    assert all(torch.equal(again[n], t) for n, t in expected.state_dict().items() if n in again)


@pytest.mark.parametrize("name", ["untied", "tied_biased"])
def test_a_narrower_model_loads_by_from_pretrained(name: str, tmp_path: Path) -> None:
    done = llm_shrink(MODELS[name](), texts(), [], tmp_path / "o", ALONE)
    assert json.loads((done.folder / "shrink.json").read_text())["loads_with"].endswith("from_pretrained")
    small: Any = tf.AutoModelForCausalLM.from_pretrained(done.folder)
    assert (small.config.hidden_size, small.config.head_dim, small.config.num_attention_heads) == (24, 8, 4)
    assert sum(p.numel() for p in small.parameters()) == done.told["parameters"]["left"]


def test_a_part_is_rounded_to_what_a_configuration_can_say(tmp_path: Path) -> None:
    """Llama's refuses a width that is no multiple of the number of heads, though the width of a head is said apart."""
    model = llama(num_attention_heads=3, num_key_value_heads=1, head_dim=8, hidden_size=48)
    part = llm_shrink(model, texts(), [], tmp_path / "part", replace(ALONE, width=0.8))
    assert part.told["width"] == {"dense": 48, "asked": 0.8, "left": 24}
    assert tf.AutoModelForCausalLM.from_pretrained(part.folder).config.hidden_size == 24
    number = llm_shrink(model, texts(), [], tmp_path / "number", replace(ALONE, width=32))
    assert json.loads((number.folder / "shrink.json").read_text())["loads_with"] == "secateur.load"
    assert sc.load(number.folder).lm_head.weight.shape == (64, 32)
    with pytest.raises(FormatError, match="no configuration gives"):
        sc.save_pretrained(tmp_path / "no", sc.apply(number.plan, model), number.plan, {"input_ids": texts(1)})


@pytest.mark.parametrize("name", list(MODELS))
def test_a_refit_brings_it_nearer_to_the_dense_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    plain = llm_shrink(model, texts(), [], tmp_path / "plain", replace(ALONE, damping=None, ridge=None))
    refitted = llm_shrink(model, texts(), [], tmp_path / "refitted", ALONE)
    far, near = (float((loaded_on(d.folder, texts()) - on(model, texts())).square().mean()) for d in (plain, refitted))
    assert near < 0.8 * far


def on(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


def loaded_on(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    return on(loaded(folder), tokens)


def test_scores_are_what_channels_carry_into_the_weights_that_read_them() -> None:
    anatomy = Anatomy.of(Source.open(llama()), ("head", "neuron"), width=True)
    assert anatomy.stream is not None
    live = Walk.begin(anatomy.source, texts(), batch=4).live(0)
    local = within(anatomy.stream, live.path)
    scores = channel_scores(live.module, local, moments_of(live, [], [local]))
    expected = np.zeros(32)
    block: Any = live.module
    with torch.no_grad():
        before = torch.cat([live.hidden[i] for i in range(2)])
        attended = torch.cat([live.calls[i](AttendingOnly(block), live.hidden[i]) for i in range(2)])
        for x, weights in (
            (block.input_layernorm(before), [getattr(block.self_attn, f"{n}_proj").weight for n in "qkv"]),
            (block.post_attention_layernorm(attended), [block.mlp.gate_proj.weight, block.mlp.up_proj.weight]),
        ):
            for weight in weights:
                energy = x.flatten(0, 1).square().mean(0) * weight.square().sum(0)
                expected += (energy / energy.sum()).numpy()
    assert scores == pytest.approx(expected, rel=1e-4)
    assert strongest(scores, 8).sum() == 8
    assert scores[strongest(scores, 8)].min() >= scores[~strongest(scores, 8)].max()


class AttendingOnly(nn.Module):
    """What the second norm of a Llama block is fed."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden + self.block.self_attn(self.block.input_layernorm(hidden), **kwargs)[0]  # type: ignore[no-any-return]


def test_a_head_that_something_else_feeds_is_left_alone(tmp_path: Path) -> None:
    """A layer as wide as the stream stands between stream and head: its inputs go, those of the head do not."""
    config = tf.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, is_decoder=True, tie_word_embeddings=False,
    )  # fmt: skip
    done = llm_shrink(tf.BertLMHeadModel(config).eval(), texts(), [], tmp_path / "o", ALONE)
    assert done.rows[-1]["norms"] == {}
    assert sc.load(done.folder).cls.predictions.decoder.weight.shape == (64, 32)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def test_a_router_that_sends_tokens_elsewhere_is_told() -> None:
    """Two experts by the sign of the first channel: other rows reach them than in the dense block."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([Expert(), Expert()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, first = x.clone(), x[:, 0] > 0
            for expert, at in zip(self.experts, (first, ~first), strict=True):
                out[at] += expert(x[at])
            return out

    block = Routed().requires_grad_(False)
    given = [({"x": torch.randn(20, 32)}, {"x": torch.randn(20, 32)})]
    kept = {"experts.0.up.weight": Kept(1, torch.ones(32, dtype=torch.bool), cut=True)}
    with pytest.raises(DataError, match=r"experts.0.up.weight is fed \d+ rows in the cut model"):
        refit_(block, block, given.__getitem__, 1, kept)


def test_a_refit_is_the_ridge_solution_on_the_inputs_of_the_narrower_block() -> None:
    """Two layers: the first reads a narrower stream, the second writes to one."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))
    stay = torch.tensor([True, True, False, True, True, False])
    small = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
    dense.requires_grad_(False)
    small.requires_grad_(False)
    wide = torch.randn(64, 6)
    narrow = 1.3 * wide[:, stay] + 0.1 * torch.randn(64, 4)
    kept = {
        "0.weight": Kept(1, stay, cut=True),
        "2.weight": Kept(1, torch.ones(5, dtype=torch.bool), rows=stay),
    }
    small[0].bias.data.copy_(dense[0].bias.data)  # as cut
    small[2].bias.data.copy_(dense[2].bias.data[stay])
    told = refit_(small, dense, lambda _: ({"input": narrow}, {"input": wide}), 1, kept, 1e-2, 1e-9)
    x, y = np.c_[narrow.numpy(), np.ones(64)], dense[0](wide).detach().numpy()
    found = np.linalg.lstsq(x, y, rcond=None)[0].T
    assert np.c_[small[0].weight.detach(), small[0].bias.detach()] == pytest.approx(found, abs=1e-4)
    x = np.c_[small[1](small[0](narrow)).detach().numpy(), np.ones(64)]
    found = np.linalg.lstsq(x, dense(wide).detach().numpy()[:, stay.numpy()], rcond=None)[0].T
    assert np.c_[small[2].weight.detach(), small[2].bias.detach()] == pytest.approx(found, abs=1e-4)
    assert all(after <= before for before, after in told.values())


def test_what_is_cut_already_is_made_up_for_as_what_is_zeroed() -> None:
    torch.manual_seed(0)
    dense, x, stay = nn.Linear(6, 5).requires_grad_(False), torch.randn(40, 6).double(), torch.arange(6) % 3 > 0
    rows = torch.arange(5) % 2 == 0
    moment = Moment(x.T @ x, x.sum(0), 40, 1, 1, "bias")
    zeroed, cut = nn.Linear(6, 5), nn.Linear(4, 3)
    zeroed.load_state_dict(dense.state_dict())
    cut.bias.data.copy_(dense.bias.data[rows])
    make_up_(zeroed, {"weight": Kept(1, stay, "bias")}, {"weight": moment}, 1e-2)
    make_up_(cut, {"weight": Kept(1, stay, "bias", rows, True)}, {"weight": moment}, 1e-2, dense)
    assert torch.equal(cut.weight, zeroed.weight[rows][:, stay])
    assert torch.equal(cut.bias, zeroed.bias[rows])


@pytest.mark.parametrize("name", ["untied", "tied_biased", "gpt2"])
def test_budgets_count_the_narrower_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    how = Shrinking(width=24)
    done = llm_shrink(model, texts(), [of_params(0.6), of_kv(0.9, 16)], tmp_path / "o", how, batch=4)
    assert done.reached["params"] <= 0.6 * params(model)
    small = loaded(done.folder)
    assert params(small) == done.reached["params"]
    expected = sc.apply(done.plan, model)
    expected.load_state_dict(load_file(done.folder / "model.safetensors"), strict=False)
    assert torch.equal(logits(small), logits(expected))
    width_alone = llm_shrink(model, texts(), [of_params(0.99)], tmp_path / "more", how, batch=4)
    assert set(width_alone.choice.kept.values()) == {2, 48} or name == "gpt2"
    assert not width_alone.choice.dropped


def test_a_uniform_plan_of_a_narrower_model_loads_by_from_pretrained(tmp_path: Path) -> None:
    how = Shrinking(allocate=uniform, width=24)
    done = llm_shrink(llama(), texts(), [of_params(0.5)], tmp_path / "o", how, batch=4)
    small: Any = tf.AutoModelForCausalLM.from_pretrained(done.folder)
    assert params(small) == done.reached["params"] <= 0.5 * params(llama())
    assert small.config.hidden_size == 24


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    how = replace(ALONE, kinds=("neuron",))
    given = (llama(), texts(), [of_params(0.6)])
    whole = llm_shrink(*given, tmp_path / "whole", how, batch=4)
    for when in (1, 4, 5):  # in the survey; behind the first and the second block of the cut
        with pytest.raises(KeyboardInterrupt):
            llm_shrink(*given, tmp_path / f"o{when}", how, batch=4, progress=stops_at(when))
        again = llm_shrink(*given, tmp_path / f"o{when}", how, batch=4)
        for file in ("model.safetensors", "plan.safetensors", "config.json"):
            if (whole.folder / file).is_file():
                assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def stops_at(when: int) -> Callable[[int, int, str], None]:
    calls: list[str] = []

    def stop(done: int, of: int, words: str) -> None:
        calls.append(words)
        if len(calls) > when:
            raise KeyboardInterrupt

    return stop


def test_hidden_states_on_disk_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llm_shrink(llama(), texts(), [], tmp_path / "memory", ALONE, batch=4)
    monkeypatch.setattr(Needs, "on_disk", lambda self, limit: limit is not None)
    disk = llm_shrink(llama(), texts(), [], tmp_path / "disk", ALONE, batch=4, memory=1.0)
    assert (disk.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_times_are_those_of_narrower_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target on which a block takes as long as it has parameters, and what lies behind them a second."""

    def measured(built: list[nn.Module], repeats: int) -> list[Any]:
        return [SimpleNamespace(seconds=[params(block)]) for block in built]

    def run_once(run: Callable[[], Any], repeats: int) -> float:
        run()
        return 1.0

    monkeypatch.setattr(prices, "measure", measured)
    monkeypatch.setattr(prices, "_median", run_once)
    target: Any = SimpleNamespace(build=lambda block, example, threads: block, name="counts")
    model = llama()
    blocks = sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
    anatomy = Anatomy.of(Source.open(model), ("neuron",), width=True)
    narrow = anatomy.narrowed(np.arange(32) < 24)
    offered = Shrinking(kinds=("neuron",)).offered(anatomy.families)
    price = timed(narrow, offered, "prefill", 8, target, lambda dense: dense)
    small = sc.apply(narrow.cut({}), model)
    assert price.dense == 1 + blocks
    assert price.whole == 1 + sum(p.numel() for n, p in small.named_parameters() if "layers" in n)
    assert all(line[-1] == 0 and line[0] == 3 * 24 * 40 for line in price.saved.values())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    source = Source.open(llama())
    for width, words in (
        (40, "a multiple of 1, or .* got 40: give 1 to 31"),
        (1.0, "a multiple of 8, .* give 8 to 24"),
    ):
        with pytest.raises(ArgumentError, match=words):
            llm_shrink(source, texts(), [], tmp_path / "o", replace(ALONE, width=width))
    with pytest.raises(ArgumentError, match=r"says a residual stream of 30 channels; 28 channels it can say: plain"):
        llm_shrink(source, texts(), [of_params(0.8)], tmp_path / "o", Shrinking(allocate=uniform, plain=True, width=30))
    with pytest.raises(ArgumentError, match="only the width would be cut"):
        llm_shrink(source, texts(), [], tmp_path / "o", Shrinking(width=24))
    with pytest.raises(ArgumentError, match="nothing would go"):
        llm_shrink(source, texts(), [], tmp_path / "o", replace(ALONE, width=None))
    with pytest.raises(BudgetError, match="the least that can be reached"):
        llm_shrink(source, texts(), [of_params(0.1)], tmp_path / "o", Shrinking(width=24, layers=False))
    headless = tf.LlamaModel(tf.LlamaConfig(**BASE))
    with pytest.raises(CoupleError, match="cannot become narrower: .* is an output of the model"):
        Anatomy.of(Source.open(headless), ("neuron",), width=True)
    with pytest.raises(CoupleError, match="cannot become narrower: .* decides by looking at its data"):
        Anatomy.of(Source.open(made(tf.MixtralConfig(**BASE))), ("neuron",), width=True)
    assert not (tmp_path / "o").exists()


def test_the_command_narrows_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama().save_pretrained(tmp_path / "model")
    save_file({"tokens": texts()}, tmp_path / "tokens.safetensors")
    words = ["llm", "shrink", str(tmp_path / "model"), "--calibration", str(tmp_path / "tokens.safetensors")]
    assert main([*words, "--out", str(tmp_path / "small"), "--width", "75%", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["width"] == {"dense": 32, "asked": 0.75, "left": 24}
    assert tf.AutoConfig.from_pretrained(tmp_path / "small").hidden_size == 24
    assert main([*words, "--out", str(tmp_path / "both"), "--width", "24", "--budget", "params=60%"]) == 0
    shown = capsys.readouterr().out
    assert "width" in shown
    for wrong in ("wide", "nan", "inf", "120%", "0"):
        assert main([*words, "--out", str(tmp_path / "no"), "--width", wrong]) == 64
        assert "write 512, or 90%" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "no")]) == 64
    assert "params=75%" in capsys.readouterr().err


def test_a_ridge_is_chosen_on_batches_kept_aside() -> None:
    """What is fitted on three batches is judged by the forward pass on the fourth; then it is fitted on all four."""
    torch.manual_seed(0)
    dense = nn.Linear(6, 5).requires_grad_(False)
    kept = {"weight": Kept(1, torch.arange(6) != 2)}
    noisy = [(x + 0.8 * torch.randn(9, 6), x) for x in torch.randn(4, 9, 6)]
    given = [({"input": own}, {"input": wide}) for own, wide in noisy]
    ridges = (1e-3, 0.3, 30.0)

    def refitted(pairs: list[Any], ridge: float | tuple[float, ...]) -> nn.Linear:
        small = nn.Linear(6, 5).requires_grad_(False)
        small.load_state_dict(dense.state_dict())
        refit_(small, dense, pairs.__getitem__, len(pairs), kept, 1e-2, ridge)
        return small

    def lost(small: nn.Module) -> float:
        return float((small(noisy[3][0]) - dense(noisy[3][1])).square().sum())

    losses = [lost(refitted(given[:3], ridge)) for ridge in ridges]
    best = ridges[losses.index(min(losses))]
    assert best == 0.3  # neither end, or nothing is shown
    torch.testing.assert_close(refitted(given, ridges).state_dict(), refitted(given, best).state_dict())
    torch.testing.assert_close(refitted(given[:1], ridges).weight, refitted(given[:1], ridges[0]).weight)
