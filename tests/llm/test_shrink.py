"""Language models are shrunk: masked equals cut, exact costs and choices, folders that load."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from shrinking import BASE, gpt2, llama, made, neox, qwen2, texts
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, BudgetError
from secateur.llm.memory import Needs
from secateur.llm.saved import told
from secateur.llm.shrink import depth, prices
from secateur.llm.shrink.asked import Shrinking, of_decode, of_kv, of_params
from secateur.llm.shrink.dense_pass import surveyed
from secateur.llm.shrink.depth import greedy_depth
from secateur.llm.shrink.effect import Effects
from secateur.llm.shrink.hollow import hollow, kv_cache, params
from secateur.llm.shrink.ladder import fluctuation
from secateur.llm.shrink.options import Menu, Price, cost_of, mixed, ranked, uniform
from secateur.llm.shrink.prices import Anatomy, priced
from secateur.llm.shrink.run import llm_shrink, scaled
from secateur.llm.shrink.survey import kept_of
from secateur.llm.shrink.tail import Tail
from secateur.llm.source import Source
from secateur.llm.walk import Walk
from secateur.score.criteria import obs_with

KINDS = ("head", "neuron")
MODELS: dict[str, Callable[[], nn.Module]] = {
    "gqa": llama,
    "mqa_tied_biased": lambda: llama(
        num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "gpt2": gpt2,
    "neox": neox,
    "qwen2": qwen2,
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=texts(2, seed=5), use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_masked_consumers_are_the_cut_model(name: str) -> None:
    model = MODELS[name]().double()
    anatomy = Anatomy.of(Source.open(model), KINDS)
    rng = np.random.default_rng(0)
    keep = {}
    for f in anatomy.families:
        keep[f.name] = np.ones(f.units, bool)
        keep[f.name][rng.permutation(f.units)[: max(1, f.units // 2)]] = False
    assert {f.block for f in anatomy.families} == {0, 1, 2}
    small = sc.apply(anatomy.cut(keep), model)
    masked = copy.deepcopy(model)
    for b, path in enumerate(anatomy.paths):
        block = masked.get_submodule(path)
        chosen = [(f, keep[f.name]) for f in anatomy.families if f.block == b]
        for weight, kept in kept_of(chosen, block).items():
            tensor = block.get_parameter(weight).data
            tensor.index_fill_(kept.in_dim, torch.nonzero(~kept.columns)[:, 0], 0.0)
    assert params(small) < params(model)
    assert float((logits(small) - logits(masked)).abs().max()) < 1e-10
    assert float((logits(small) - logits(model)).abs().max()) > 1e-3


def test_costs_are_counted_exactly_and_cache_bytes_are_real(tmp_path: Path) -> None:
    anatomy = Anatomy.of(Source.open(llama()), KINDS)
    how = Shrinking()
    offered = how.offered(anatomy.families)
    prices = [budget(anatomy, offered, tmp_path) for budget in (of_params(0.5), of_kv(0.5, 10))]
    n = {f.name: int(offered[f.name][0]) for f in anatomy.families if f.block != 1}
    from secateur.llm.shrink.options import Choice

    choice = Choice(n, (1,), 0.0)
    menu = Menu(3, anatomy.families, offered, {}, np.zeros(3), {})
    keep = {f.name: np.arange(f.units) < n[f.name] for f in anatomy.families if f.name in n}
    small = sc.apply(anatomy.cut(keep, [1]), anatomy.skeleton)
    assert cost_of(choice, menu, prices[0]) == params(small)
    with torch.no_grad():
        cache = hollow(small)(input_ids=texts(1, 10), use_cache=True).past_key_values
    real = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cost_of(choice, menu, prices[1]) == kv_cache(10)(hollow(small)) == real == 2 * 2 * 8 * 10 * 4


def test_a_sliding_window_keeps_no_more_than_itself() -> None:
    sizes = {k: v for k, v in BASE.items() if k != "pad_token_id"}
    model = made(tf.MistralConfig(**sizes, sliding_window=4))
    for tokens in (3, 10, 20):
        with torch.no_grad():
            cache = model(input_ids=texts(1, tokens), use_cache=True).past_key_values
        real = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        assert kv_cache(tokens)(hollow(Source.open(model).skeleton())) == real


def small_menu(seed: int, blocks: int = 3) -> tuple[Menu, list[Price]]:
    """Random errors and savings; families only by name, kind and block."""
    rng = np.random.default_rng(seed)
    anatomy = Anatomy.of(Source.open(llama(num_hidden_layers=blocks)), KINDS)
    offered = {
        f.name: np.arange(1, (2 if f.kind == "head" else 4) + 1) * (f.units // (2 if f.kind == "head" else 4))
        for f in anatomy.families
    }
    errors = {f.name: np.sort(rng.random(len(offered[f.name])))[::-1] for f in anatomy.families}
    for e in errors.values():
        e[-1] = 0
    saved = [{n: np.sort(rng.integers(1, 30, len(c)))[::-1] * 1.0 for n, c in offered.items()} for _ in range(2)]
    for s in saved:
        for v in s.values():
            v[-1] = 0
    drop, gone = rng.random(blocks) * 3, [rng.integers(60, 99, blocks) * 1.0 for _ in range(2)]
    scores = {f.name: rng.random(f.units) for f in anatomy.families}
    prices = [Price(f"c{i}", "", 400.0, saved[i], gone[i], 400.0 - 90 * (1 + i)) for i in range(2)]
    return Menu(blocks, anatomy.families, offered, errors, drop, scores), prices


def test_mixed_choices_are_the_best_of_all() -> None:
    for seed in range(3):
        menu, prices = small_menu(seed)
        best = np.inf
        per_block = []
        for b in range(menu.blocks):
            options: list[tuple[float, list[float]]] = [(menu.drop[b], [p.dropped[b] for p in prices])]
            fs = menu.of(b)
            for at in itertools.product(*(range(len(menu.counts[f.name])) for f in fs)):
                loss = sum(menu.errors[f.name][i] for f, i in zip(fs, at, strict=True))
                options.append((loss, [sum(p.saved[f.name][i] for f, i in zip(fs, at, strict=True)) for p in prices]))
            per_block.append(options)
        for combination in itertools.product(*per_block):
            if all(p.dense - sum(c[1][i] for c in combination) <= p.limit for i, p in enumerate(prices)):
                best = min(best, sum(c[0] for c in combination))
        found = mixed(menu, prices)
        assert found.error == pytest.approx(best)
        assert all(cost_of(found, menu, p) <= p.limit for p in prices)
        assert uniform(menu, prices).error >= best - 1e-12


def test_no_more_blocks_go_than_a_budget_of_counts_asks_for() -> None:
    dense, block = 134_515_008, 3_540_096  # 27 blocks in 20,000 steps are 27 x 741 steps, each rounded up: too many
    drop = np.random.default_rng(0).random(30)
    price = Price("params", "", dense, {}, np.full(30, float(block)), dense - 3 * block + 1e-3)
    found = mixed(Menu(30, (), {}, {}, drop, {}), [price])
    assert found.dropped == tuple(sorted(np.argsort(drop)[:3].tolist()))


def test_budgets_that_cannot_be_met_name_the_closest() -> None:
    menu, prices = small_menu(0)
    few = [Price("c0", "", 400.0, prices[0].saved, prices[0].dropped, 1.0)]
    for allocate in (mixed, uniform, ranked):
        with pytest.raises(BudgetError, match="least that can be reached is"):
            allocate(menu, few)


@pytest.mark.parametrize("name", ["gqa", "mqa_tied_biased", "gpt2"])
def test_a_mixed_plan_loads_again(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    done = llm_shrink(model, texts(), [of_params(0.75)], tmp_path / "o", Shrinking(), batch=4)
    assert done.reached["params"] <= 0.75 * params(model)
    loaded = sc.load(done.folder)
    assert params(loaded) == done.reached["params"]
    expected = sc.apply(done.plan, model)
    expected.load_state_dict(load_file(done.folder / "model.safetensors"), strict=False)
    assert torch.equal(logits(loaded), logits(expected))
    dense, cut = logits(model), logits(loaded)
    assert float((cut - dense).square().mean()) < float(dense.square().mean())


def bare_gpt2(folder: Path) -> nn.Module:
    """Saved as the first GPT-2 was: without the prefix, with the causal masks."""
    model = gpt2()
    model.save_pretrained(folder)  # type: ignore[operator]
    state = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril().bool() for i in range(3)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def mixtral(folder: Path) -> nn.Module:
    """Its experts are apart in the file, and one tensor in the module."""
    model = made(tf.MixtralConfig(**BASE, num_local_experts=4))
    model.save_pretrained(folder)  # type: ignore[operator]
    assert any(".experts.0." in name for name in load_file(folder / "model.safetensors"))
    return model


@pytest.mark.parametrize(("save", "part"), [(bare_gpt2, 0.8), (mixtral, 0.95)])
def test_a_checkpoint_of_other_names_than_the_module_loads_again(
    save: Callable[[Path], nn.Module], part: float, tmp_path: Path
) -> None:
    model, how = save(tmp_path / "dense"), Shrinking(layers=False)
    done = llm_shrink(tmp_path / "dense", texts(), [of_params(part)], tmp_path / "o", how, batch=4)
    assert json.loads((done.folder / "shrink.json").read_text())["loads_with"] == "secateur.load"
    direct = llm_shrink(model, texts(), [of_params(part)], tmp_path / "direct", how, batch=4)
    torch.testing.assert_close(logits(sc.load(done.folder)), logits(sc.load(direct.folder)))


@pytest.mark.parametrize("name", ["gqa", "mqa_tied_biased"])
def test_a_uniform_plan_loads_by_from_pretrained(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    how = Shrinking(allocate=uniform)
    done = llm_shrink(model, texts(), [of_params(0.7)], tmp_path / "o", how, batch=4)
    assert json.loads((done.folder / "shrink.json").read_text())["loads_with"].endswith("from_pretrained")
    loaded = tf.AutoModelForCausalLM.from_pretrained(done.folder).eval()
    expected = sc.apply(done.plan, model)
    expected.load_state_dict(load_file(done.folder / "model.safetensors"), strict=False)
    assert params(loaded) == done.reached["params"]
    assert torch.equal(logits(loaded), logits(expected))


@pytest.mark.parametrize("allocate", [uniform, ranked])
def test_effects_are_measured_only_where_the_choice_depends_on_them(
    allocate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind of unit, cut alike, or ranked by scores: the same plan comes out without the streams (of one batch)."""
    how = Shrinking(kinds=("neuron",), layers=False, allocate=allocate)
    done = llm_shrink(llama(), texts(), [of_params(0.85)], tmp_path / "quick", how, batch=8)
    assert done.told["predicted_divergence"] is None
    monkeypatch.setattr(Shrinking, "weighs", True)
    same = llm_shrink(llama(), texts(), [of_params(0.85)], tmp_path / "weighed", how, batch=8)
    assert allocate is ranked or same.told["predicted_divergence"] > 0
    assert same.choice.kept == done.choice.kept
    assert all(np.array_equal(same.plan.keep[name], mask) for name, mask in done.plan.keep.items())


def test_least_squares_are_not_fitted_on_what_effects_are_measured_on(tmp_path: Path) -> None:
    """Other tokens there change what is measured, and no ladder."""
    how, anatomy = Shrinking(), Anatomy.of(Source.open(llama()), KINDS)
    first, second = texts(4, seed=1), texts(4, seed=2)
    pairs = [
        surveyed(anatomy, how.cut(anatomy), how, batches, tmp_path / str(i))
        for i, batches in enumerate([[first, second], [texts(4, seed=3), second], [first, first]])
    ]
    assert pairs[0][0] == pairs[1][0] != pairs[2][0]
    assert pairs[0][1] != pairs[1][1]


def test_what_no_configuration_says_stays_where_plain_loading_is_asked(tmp_path: Path) -> None:
    how = Shrinking(allocate=uniform, plain=True)
    done = llm_shrink(gpt2(), texts(), [of_params(0.85)], tmp_path / "o", how, batch=8)
    assert all(n == 4 for name, n in done.choice.kept.items() if name.endswith(":head"))
    loaded = tf.AutoModelForCausalLM.from_pretrained(done.folder)
    assert params(loaded) == done.reached["params"]


def keeps(seen: list[torch.Tensor]) -> Callable[..., None]:
    return lambda module, args, output: seen.append(output)


def test_flap_keeps_the_expected_output(tmp_path: Path) -> None:
    """On the calibration tokens the mean output of a cut weight with a bias is what it was."""
    model = gpt2(n_layer=1)
    how = Shrinking(fluctuation, kinds=("neuron",), layers=False, allocate=ranked, damping=None, ridge=None)
    done = llm_shrink(model, texts(), [of_params(0.8)], tmp_path / "o", how, batch=8)
    small = tf.AutoModelForCausalLM.from_pretrained(done.folder).eval()
    means = []
    for net in (model, small):
        seen: list[torch.Tensor] = []
        handle = net.transformer.h[0].mlp.register_forward_hook(keeps(seen))  # type: ignore[union-attr, operator]
        with torch.no_grad():
            net(input_ids=texts(), use_cache=False)
        handle.remove()
        means.append(seen[0].flatten(0, 1).mean(0))
    assert torch.allclose(means[0], means[1], atol=1e-5)
    assert params(small) <= 0.8 * params(model)


def test_streams_on_disk_measure_what_those_in_memory_do(tmp_path: Path) -> None:
    source, tokens = Source.open(llama()), texts(4)
    tail = Tail(source, [f"model.layers.{i}" for i in range(3)])
    found = []
    for folder in (None, tmp_path):
        walk, effects = Walk.begin(source, tokens, batch=2), Effects(2, folder, every=1)
        for index in range(len(walk)):
            live = walk.live(index)
            effects.step(live, [(f"{index}/drop", None)])
            walk.pass_on(live, live.module.state_dict().items())
            if folder is not None:
                effects = Effects(2, folder, every=1)  # as after a kill
        found.append(effects.divergences(3, lambda i, hidden: tail(tokens.split(2)[i], hidden)))
    assert found[0] == found[1]
    dense = F.log_softmax(logits_of(llama(), tokens), -1)
    less = llama()
    less.model.layers = nn.ModuleList(b for i, b in enumerate(less.model.layers) if i != 1)  # type: ignore[union-attr, arg-type]
    cut = F.log_softmax(logits_of(less, tokens), -1)
    assert found[0]["1/drop"] == pytest.approx(float((dense.exp() * (dense - cut)).sum(-1).mean()), rel=1e-4)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


def test_greedy_depth_is_the_plain_loop() -> None:
    model, tokens = llama(num_hidden_layers=4), texts(4)
    found = greedy_depth(Source.open(model), tokens, 2, batch=2)

    def loss(gone: set[int]) -> float:
        less = copy.deepcopy(model)
        less.model.layers = nn.ModuleList(b for i, b in enumerate(less.model.layers) if i not in gone)  # type: ignore[union-attr, arg-type]
        with torch.no_grad():
            scores = less(input_ids=tokens, use_cache=False).logits
        return float(F.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    gone: set[int] = set()
    for block, value in found:
        trials = {b: loss(gone | {b}) for b in range(4) if b not in gone}
        assert block == min(trials, key=lambda b: trials[b])
        assert value == pytest.approx(trials[block], rel=1e-5)
        gone.add(block)


def test_blocks_go_greedily_until_a_budget_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = llama(num_hidden_layers=4), texts()
    how = Shrinking(kinds=(), greedy=True, probes=64)
    done = llm_shrink(model, tokens, [of_params(0.6)], tmp_path / "o", how)
    order = greedy_depth(Source.open(model), tokens[:4], 3)
    assert done.choice.dropped == tuple(sorted(b for b, _ in order[:2]))
    one = sc.params(model).dense - done.reached["params"]
    assert done.reached["params"] <= 0.6 * params(model) < params(model) - one / 2
    assert params(tf.AutoModelForCausalLM.from_pretrained(done.folder)) == done.reached["params"]
    with pytest.raises(Killed):  # in the second round: the first is noted
        llm_shrink(model, tokens, [of_params(0.6)], tmp_path / "k", how, progress=killed_at(1))
    rounds = []
    monkeypatch.setattr(depth, "_next", counted(rounds, depth._next))
    again = llm_shrink(model, tokens, [of_params(0.6)], tmp_path / "k", how)
    assert len(rounds) == 1
    assert again.choice == done.choice
    assert (again.folder / "model.safetensors").read_bytes() == (done.folder / "model.safetensors").read_bytes()


def test_the_order_of_a_greedy_run_is_taken_up_by_the_same_model_alone(tmp_path: Path) -> None:
    """A budget that was refused leaves the whole order: another one takes no more of it than it needs."""
    model, how = llama(num_hidden_layers=4), Shrinking(kinds=(), greedy=True)
    fresh = llm_shrink(model, texts(), [of_params(0.9)], tmp_path / "fresh", how)
    with pytest.raises(BudgetError) as refused:
        llm_shrink(model, texts(), [of_params(0.05)], tmp_path / "o", how)
    one = sc.apply(Anatomy.of(Source.open(model), ()).cut({}, [1, 2, 3]), model)
    assert f"least that can be reached is {params(one):.6g}" in str(refused.value)
    again = llm_shrink(model, texts(), [of_params(0.9)], tmp_path / "o", how)
    assert again.choice == fresh.choice
    assert len(fresh.choice.dropped) == 1


def test_greedy_rounds_in_little_memory_put_their_streams_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, how = llama(num_hidden_layers=4), Shrinking(kinds=(), greedy=True, probes=64)
    whole = llm_shrink(model, texts(), [of_params(0.6)], tmp_path / "whole", how)
    monkeypatch.setattr(Needs, "on_disk", lambda self, limit: limit is not None)
    kept: list[list[str]] = []

    def step(self: Effects, live: Any, changed: Any, gone: bool = False) -> None:
        stepped(self, live, changed, gone)
        kept.append(list(self.held))
        assert self.folder is not None
        assert list(self.folder.rglob("*.safetensors"))

    stepped = Effects.step
    monkeypatch.setattr(Effects, "step", step)
    disk = llm_shrink(model, texts(), [of_params(0.6)], tmp_path / "disk", how, batch=4, memory=1.0)
    assert disk.choice == whole.choice
    assert len(kept) == 2 * 4
    assert not any(kept)
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "disk"}


def counted(calls: list[Any], of: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        calls.append(args)
        return of(*args)

    return called


def test_greed_is_for_whole_layers_and_budgets(tmp_path: Path) -> None:
    model = llama()
    for how, budgets in ((Shrinking(greedy=True), [of_params(0.7)]), (Shrinking(kinds=(), greedy=True), [])):
        with pytest.raises(ArgumentError):
            llm_shrink(model, texts(), budgets, tmp_path / "o", how)
    with pytest.raises(BudgetError, match="the least that can be reached"):
        llm_shrink(model, texts(), [of_params(0.1)], tmp_path / "o", Shrinking(kinds=(), greedy=True))


def test_a_killed_survey_and_cut_go_on(tmp_path: Path) -> None:
    model = llama()
    whole = llm_shrink(model, texts(), [of_params(0.75)], tmp_path / "whole", Shrinking(), batch=4)
    for when in (2, 5):
        out = tmp_path / f"o{when}"
        with pytest.raises(Killed):
            llm_shrink(model, texts(), [of_params(0.75)], out, Shrinking(), batch=4, progress=killed_at(when))
        again = llm_shrink(model, texts(), [of_params(0.75)], out, Shrinking(), batch=4)
        assert again.choice == whole.choice
        for file in ("model.safetensors", "plan.safetensors"):
            assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()


class Killed(BaseException):
    pass


def killed_at(when: int) -> Callable[[int, int, str], None]:
    calls = itertools.count()

    def stop(done: int, of: int, words: str) -> None:
        if next(calls) == when:
            raise Killed

    return stop


def test_a_killed_run_goes_by_the_times_that_it_took_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = itertools.count(1)

    def slower(a: Anatomy, offered: Any, name: str, tokens: int, target: Any, limit: Any) -> Price:
        price = priced(a, offered, name, "s", params, limit)
        times = 1e-9 * next(takes) / 3
        saved = {n: line * times for n, line in price.saved.items()}
        return Price(name, "s", price.dense * times, saved, price.dropped * times, limit(price.dense * times))

    monkeypatch.setattr(prices, "timed", slower)
    given = (llama(), texts(), [of_decode(0.8, sc.eager)])
    for when in (1, 4):  # in the dense pass, behind it
        out = tmp_path / f"o{when}"
        with pytest.raises(Killed):
            llm_shrink(*given, out, batch=4, progress=killed_at(when))
        before = next(takes)
        again = llm_shrink(*given, out, batch=4)
        assert next(takes) == before + 1
        assert again.prices[0].dense == pytest.approx(params(given[0]) * 1e-9 * (before - 1) / 3)
        assert again.reached["decode"] <= again.prices[0].limit
        assert not (tmp_path / f".o{when}.survey").exists()


def test_a_survey_in_memory_begins_again_where_its_streams_go_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Needs, "on_disk", lambda self, limit: limit is not None)
    whole = llm_shrink(llama(), texts(), [of_params(0.75)], tmp_path / "whole", batch=4)
    with pytest.raises(Killed):
        llm_shrink(llama(), texts(), [of_params(0.75)], tmp_path / "o", batch=4, progress=killed_at(2))
    again = llm_shrink(llama(), texts(), [of_params(0.75)], tmp_path / "o", batch=4, memory=1.0)
    assert again.choice == whole.choice


@pytest.mark.parametrize("score", ["taylor", "obs"])
def test_a_stream_is_not_taken_up_with_other_units(score: str, tmp_path: Path) -> None:
    """Criteria of one name, by other data or other settings."""
    model, plain = llama(), {"kinds": ("neuron",), "layers": False, "allocate": uniform}
    if score == "taylor":
        stats = [sc.calibrate(model, [{"input_ids": texts(4, seed=s)}], sc.taylor) for s in (2, 3)]
        ways = [Shrinking(sc.taylor, s, **plain) for s in stats]
    else:
        ways = [Shrinking(obs_with(damping), **plain) for damping in (1e-2, 100.0)]
    with pytest.raises(Killed):
        llm_shrink(model, texts(), [of_params(0.85)], tmp_path / "o", ways[0], batch=4, progress=killed_at(4))
    with pytest.raises(sc.ArgumentError, match="unfinished run of other arguments"):
        llm_shrink(model, texts(), [of_params(0.85)], tmp_path / "o", ways[1], batch=4)


def test_what_would_fail_behind_the_first_pass_is_refused_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, never = llama(), killed_at(0)
    with pytest.raises(sc.ArgumentError, match="no budgets are given"):
        llm_shrink(model, texts(), [], tmp_path / "o", progress=never)
    with pytest.raises(sc.ArgumentError, match="criterion taylor goes by statistics of the whole model"):
        llm_shrink(model, texts(), [of_params(0.8)], tmp_path / "o", Shrinking(sc.taylor), progress=never)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(sc.ArgumentError, match="used is not empty"):
        llm_shrink(model, texts(), [of_params(0.8)], tmp_path / "used", progress=never)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Killed):
        llm_shrink(model, texts(), [of_params(0.8)], "~/o", progress=never)
    assert (tmp_path / ".o.survey" / "dense" / "survey.json").is_file()
    with pytest.raises(sc.ArgumentError, match="0 of 3 blocks are to go"):
        greedy_depth(Source.open(model), texts(), 0)


def test_ranks_measure_no_effects_and_are_told(tmp_path: Path) -> None:
    """Layers may go, but no ranking of units says which: nothing is measured, nothing predicted."""
    done = llm_shrink(llama(), texts(), [of_params(0.9)], tmp_path / "o", Shrinking(allocate=ranked), batch=8)
    assert done.told["predicted_divergence"] is None
    assert done.choice.dropped == ()
    held = json.loads((done.folder / "shrink.json").read_text())
    facts = told(done.folder)
    assert facts["file"] == "shrink.json"
    assert facts["made"].items() <= held["how"].items()
    assert facts["made"]["criterion"] == "obs"
    (done.folder / "llm.json").write_text('{"recovery": [{"steps": 2}]}')
    assert told(done.folder) == facts


def test_scaled_errors_never_rise_with_more_units() -> None:
    rising = np.array([4.0, 2.0, 2.0 + 1e-12, 0.0])
    assert (np.diff(scaled(rising, {2: 1.0, 1: 1.0})) <= 0).all()
    assert scaled(rising, {}).tolist() == [4.0, 2.0 + 1e-12, 2.0 + 1e-12, 0.0]


def test_prices_of_units_add_up_to_the_whole() -> None:
    anatomy = Anatomy.of(Source.open(gpt2()), KINDS)
    offered = Shrinking().offered(anatomy.families)
    price = priced(anatomy, offered, "params", "", params, lambda dense: dense)
    keep = {f.name: np.arange(f.units) < offered[f.name][0] for f in anatomy.families}
    saved = sum(price.saved[f.name][0] for f in anatomy.families)
    assert params(sc.apply(anatomy.cut(keep), anatomy.skeleton)) == price.dense - saved
