"""Recovery of language models: the oracles are the loss written plainly, and the zeros that went in."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mixtures import mixture, parts, texts
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.llm.blocks import blocks_of
from secateur.llm.experts import prune_experts_
from secateur.llm.lora import Lora
from secateur.llm.recover import checkpointed, distill_tokens, token_kl, zeros_of
from secateur.llm.recover_folder import recover_folder


def llama(**sizes: Any) -> Any:
    torch.manual_seed(0)
    given = dict(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return wide(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**given, **sizes})))


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    return wide(transformers.GPT2LMHeadModel(config))


def wide(model: Any) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.3)
    return model.eval()


def sparse(model: Any) -> Any:
    """Two of every four weights of the blocks' matrices."""
    small = copy.deepcopy(model)
    for name, p in small.named_parameters():
        if p.dim() == 2 and any(name.startswith(b) for b in blocks_of(small)):
            mask = torch.zeros_like(p, dtype=torch.bool)
            mask.view(-1, 4).scatter_(1, p.detach().abs().view(-1, 4).topk(2, dim=1).indices, True)
            p.data *= mask
    return small


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() == 0 for n, p in model.named_parameters() if p.dim() > 1}


def same_zeros(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(model.get_parameter(n) == 0, z) for n, z in before.items())


def error(small: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = (m(input_ids=x).logits.double().softmax(-1) for m in (dense, small))
    return float((p * (p / q).log()).sum(-1).mean())


def windows(n: int = 24) -> Tensor:
    return texts(n, 16)


@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_the_loss_is_the_mean_divergence_of_a_token(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 21, 11, requires_grad=True)
    y = torch.randn(3, 21, 11)
    out = [type("Out", (), {"logits": z})() for z in (x, y)]
    for temperature in (1.0, 2.0):
        loss = token_kl(temperature, rows)(*out, None)
        p, q = (y / temperature).softmax(-1), (x / temperature).softmax(-1)
        expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(loss, sc.kl_logits(temperature)(x, y, None), rtol=1e-5, atol=1e-7)
        one, two = (torch.autograd.grad(v, x)[0] for v in (loss, expected))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_sparse_model_comes_closer_and_keeps_its_zeros(make: Any) -> None:
    dense = make()
    small, x = sparse(dense), windows()
    before, start = zeros(small), error(small, dense, x)
    kept = {n: p.clone() for n, p in dense.named_parameters()}
    assert 0.3 < sum(int(z.sum()) for z in before.values()) / sum(z.numel() for z in before.values()) < 0.5
    history = distill_tokens(x, steps=40, lr=5e-3, weight_decay=0.1, accumulate=2).run(small, dense, None)
    assert history.stopped.startswith("all 40 steps done")
    assert error(small, dense, x) < 0.5 * start
    assert same_zeros(small, before)
    assert all(torch.equal(p, kept[n]) for n, p in dense.named_parameters())


def test_blocks_that_run_again_give_the_same_gradients() -> None:
    dense, x = llama(), windows(4)
    small = sparse(dense)
    runs = []
    for checkpointing in (False, True):
        mine = copy.deepcopy(small)
        distill_tokens(x, steps=3, hidden=0.5, checkpointing=checkpointing).run(mine, dense, None)
        runs.append(mine)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))
    held: list[int] = []
    with (
        checkpointed(small, blocks_of(small)),
        torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t),
    ):
        small(input_ids=x)
    with_all: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: with_all.append(t.numel()) or t, lambda t: t):
        small(input_ids=x)
    assert sum(held) < 0.5 * sum(with_all)
    assert "forward" not in vars(small.model.layers[0])


def test_weights_that_do_best_on_held_out_windows_are_kept() -> None:
    dense, x = llama(), windows()
    small = sparse(dense)
    stage = distill_tokens(x, steps=20, lr=5e-3, held_out=8, validate_every=5)
    history = stage.run(small, dense, None)
    assert history.initial is not None
    assert min(history.validation) < history.initial
    assert error(small, dense, x[-8:]) == pytest.approx(min(history.validation), rel=1e-4)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    dense, x = llama(), windows()
    small = sparse(dense)
    whole, halves = copy.deepcopy(small), copy.deepcopy(small)
    options: dict[str, Any] = dict(steps=12, lr=5e-3, checkpoint_every=0)
    distill_tokens(x, **options).run(whole, dense, None)

    class Killed(BaseException):
        pass

    calls = 0

    def kill(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed

    hook = halves.register_forward_hook(kill)
    with pytest.raises(Killed):
        distill_tokens(x, checkpoint=tmp_path / "state", **options).run(halves, dense, None)
    hook.remove()
    again = copy.deepcopy(small)
    distill_tokens(x, checkpoint=tmp_path / "state", **options).run(again, dense, None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_mixture_without_some_experts_comes_closer() -> None:
    dense, x = mixture("Qwen3Moe"), windows()
    small = copy.deepcopy(dense)
    prune_experts_(small, {"input_ids": x}, lambda: small(input_ids=x), 3)
    start = error(small, dense, x)
    distill_tokens(x, steps=40, lr=5e-3).run(small, dense, None)
    assert error(small, dense, x) < 0.6 * start
    assert all(p.shape[0] == 3 for _, e in parts(small) for p in e.parameters())


def test_shrunk_and_shallower_models_learn_hidden_states_too() -> None:
    dense, x = llama(num_hidden_layers=4), windows()
    groups = sc.couple(sc.trace(dense, {"input_ids": x[:2]}), ignore=["*:head_dim"])
    plan = sc.random_plan(groups, 0.4, seed=0)
    plan = sc.drop_layers(dense, {"input_ids": x[:2]}, ["model.layers.1"], plan)
    small = sc.apply(plan, dense)
    start = error(small, dense, x)
    with pytest.raises(sc.DataError, match="3 and 4 blocks, and which became which is not known"):
        distill_tokens(x, steps=1, hidden=1.0).run(small, dense, None)
    distill_tokens(x, steps=40, lr=5e-3, hidden=0.5).run(small, dense, plan)
    assert error(small, dense, x) < 0.6 * start


# folders


def in_folder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="8KB")
    (folder / "tokenizer_config.json").write_text('{"mine": 1}')
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    dense, x = llama(tie_word_embeddings=True), windows()
    small = sparse(dense).to(dtype)
    (tmp_path / "small").mkdir()
    in_folder(small, tmp_path / "small")
    (tmp_path / "small" / "llm.json").write_text('{"made": {"method": "magnitude"}}')
    in_folder(dense, tmp_path / "dense")
    done = recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "out", steps=30, lr=5e-3)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert loaded.dtype == dtype
    assert same_zeros(loaded, zeros(small))
    assert error(loaded, dense, x) < 0.6 * error(small, dense, x)
    told = json.loads((tmp_path / "out" / "llm.json").read_text())
    assert told["made"] == {"method": "magnitude"}
    assert told["recovery"] == [done.told]
    assert done.told["loss"][-1] < done.told["loss"][0]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"mine": 1}
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "out", "small"]
    with pytest.raises(sc.FormatError, match=r"out is in use"):
        recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "out", steps=1)


def test_tensors_of_several_types_come_back_in_their_own(tmp_path: Path) -> None:
    dense, x = llama(), windows()
    in_folder(dense, tmp_path / "dense")
    small = in_folder(sparse(dense), tmp_path / "small")
    kinds = {}
    for file in sorted(small.glob("*.safetensors")):
        held = {n: t if "norm" in n or t.dim() == 1 else t.bfloat16() for n, t in load_file(file).items()}
        kinds |= {n: t.dtype for n, t in held.items()}
        save_file(held, file, metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    recover_folder(small, tmp_path / "dense", x, tmp_path / "out", steps=1, lr=0.0)
    found = {n: t for file in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(file).items()}
    assert {n: t.dtype for n, t in found.items()} == kinds
    assert len(set(kinds.values())) == 2
    before = {n: t for file in small.glob("*.safetensors") for n, t in load_file(file).items()}
    assert all(torch.equal(t, before[n]) for n, t in found.items())


def test_cut_and_packed_folders_come_back_as_they_were(tmp_path: Path) -> None:
    dense, x = llama(), windows()
    in_folder(dense, tmp_path / "dense")
    groups = sc.couple(sc.trace(dense, {"input_ids": x[:2]}), ignore=["*:head_dim"])
    plan = sc.random_plan(groups, 0.4, seed=0)
    sc.save(tmp_path / "cut", sc.apply(plan, dense), plan)
    recover_folder(tmp_path / "cut", tmp_path / "dense", x, tmp_path / "one", steps=30, lr=5e-3)
    before, after = sc.load(tmp_path / "cut"), sc.load(tmp_path / "one")
    assert error(after, dense, x) < 0.7 * error(before, dense, x)
    sc.save_sparse(tmp_path / "packed", sparse(dense))
    recover_folder(tmp_path / "packed", tmp_path / "dense", x, tmp_path / "two", steps=30, lr=5e-3)
    before, after = sc.load(tmp_path / "packed"), sc.load(tmp_path / "two")
    assert same_zeros(after, zeros(before))
    assert error(after, dense, x) < 0.7 * error(before, dense, x)


def test_a_killed_folder_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = llama(), windows()
    in_folder(dense, tmp_path / "dense")
    in_folder(sparse(dense), tmp_path / "small")
    options: dict[str, Any] = dict(steps=10, lr=5e-3, checkpoint_every=0)
    recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "whole", **options)
    import secateur.train.loop as loop

    class Killed(BaseException):
        pass

    step, done = loop._step_, []

    def kill(r: Any) -> None:
        done.append(1)
        if len(done) == 6:
            raise Killed
        step(r)

    monkeypatch.setattr(loop, "_step_", kill)
    with pytest.raises(Killed):
        recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(loop, "_step_", step)
    with pytest.raises(sc.FormatError, match="made by another run"):
        recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "out", **{**options, "lr": 1e-3})
    recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "out", **options)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = llama(), windows()
    in_folder(dense, tmp_path / "dense")
    other = in_folder(llama(vocab_size=48), tmp_path / "other")
    with pytest.raises(sc.DataError, match="vocabularies of 40 and 48"):
        recover_folder(tmp_path / "dense", other, x, tmp_path / "out", steps=1)
    with pytest.raises(sc.DataError, match="token 40 is not in the model's vocabulary of 40"):
        recover_folder(tmp_path / "dense", tmp_path / "dense", x + 1, tmp_path / "out", steps=1)
    with pytest.raises(sc.DataError, match="token -1 is not in the model's vocabulary of 40"):
        recover_folder(tmp_path / "dense", tmp_path / "dense", x - int(x.min()) - 1, tmp_path / "out", steps=1)
    with pytest.raises(sc.ArgumentError, match="nowhere: there is no such folder"):
        recover_folder(tmp_path / "nowhere", tmp_path / "dense", x, tmp_path / "out", steps=1)
    with pytest.raises(sc.ArgumentError, match="is the folder of one of the models"):
        recover_folder(tmp_path / "dense", tmp_path / "dense", x, tmp_path / "dense", steps=1, force=True)
    with pytest.raises(sc.ArgumentError, match=r"windows are torch.float32 \(2, 3\)"):
        distill_tokens(torch.zeros(2, 3), steps=1)
    with pytest.raises(sc.ArgumentError, match="24 of 24 windows are held out"):
        distill_tokens(x, steps=1, held_out=24)
    with pytest.raises(sc.ArgumentError, match="rank of LoRA is 0"):
        Lora(0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(sc.TargetError, match=r"peft is needed .* pip install 'secateur\[peft\]'"):
        distill_tokens(x, steps=1, lora=Lora()).run(copy.deepcopy(dense), dense, None)


# through peft


@pytest.mark.parametrize("make", [llama, gpt2])
def test_low_rank_updates_are_merged_under_the_masks(make: Any) -> None:
    pytest.importorskip("peft")
    dense = make()
    small, x = sparse(dense), windows()
    before, start, modules = zeros(small), error(small, dense, x), [n for n, _ in small.named_modules()]
    vectors = {n: p.clone() for n, p in small.named_parameters() if p.dim() == 1}
    history = distill_tokens(x, steps=40, lr=2e-2, lora=Lora(4)).run(small, dense, None)
    assert same_zeros(small, before)
    assert [n for n, _ in small.named_modules()] == modules
    assert error(small, dense, x) < 0.8 * start
    assert error(small, dense, x) < history.loss[-1] * 1.1  # what was trained is what is left
    assert all(torch.equal(small.get_parameter(n), v) for n, v in vectors.items())
    assert all(p.requires_grad for p in small.parameters())


def test_the_masked_update_is_the_one_that_is_trained() -> None:
    pytest.importorskip("peft")
    from secateur.llm.lora import adapted

    dense, x = llama(), windows(4)
    small = sparse(dense)
    with adapted(small, Lora(4), zeros_of(small)), torch.no_grad():
        for name, p in small.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
        trained = small(input_ids=x).logits
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=x).logits, trained, rtol=1e-4, atol=1e-4)
        assert (sparse(dense)(input_ids=x).logits - trained).abs().max() > 0.1
    assert same_zeros(small, zeros(sparse(dense)))


def test_after_an_error_nothing_of_the_adapters_is_left() -> None:
    pytest.importorskip("peft")
    from secateur.llm.lora import adapted

    small = sparse(llama())
    before = {n: p.clone() for n, p in small.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), adapted(small, Lora(4), zeros_of(small)):
        raise RuntimeError("stop")
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in before.items()}
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in small.named_parameters())


def test_a_killed_run_of_low_rank_updates_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    dense, x = llama(), windows()
    in_folder(dense, tmp_path / "dense")
    in_folder(sparse(dense), tmp_path / "small")
    options: dict[str, Any] = dict(steps=6, lora=Lora(4))
    state = tmp_path / "state"
    distill_tokens(x, checkpoint=state, **options).run(sparse(dense), dense, None)
    with pytest.raises(sc.FormatError, match="made by another run"):
        distill_tokens(x, checkpoint=state, steps=6, lora=Lora(4, alpha=64.0)).run(sparse(dense), dense, None)
    recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "one", **options)
    recover_folder(tmp_path / "small", tmp_path / "dense", x, tmp_path / "two", **options)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert same_zeros(loaded, zeros(sparse(dense)))
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
