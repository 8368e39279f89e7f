"""Folders that plain transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import secateur as sc
from normal_nets import SIZES, bert, gpt2, llama, tokens
from secateur.errors import ArgumentError, FormatError

HEADS_AND_NEURONS = ["*:head_dim"]
NEURONS = ["*:head*"]


def cut(make: Callable[..., nn.Module], ignore: list[str], sparsity: float = 0.5) -> tuple[nn.Module, sc.Plan]:
    torch.manual_seed(0)
    model = make().eval()
    plan = sc.random_plan(sc.couple(sc.trace(model, tokens()), ignore=ignore), sparsity, seed=0)
    return sc.apply(plan, model), plan


def same(folder: Path, small: Any) -> Any:
    """Loaded without secateur, it computes the same to the last bit."""
    loaded, info = type(small).from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, small(**tokens()).logits)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    return loaded


def changed(config: Any, dense: Any) -> dict[str, Any]:
    before = dense.to_dict()
    aside = ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version")
    return {k: v for k, v in config.to_dict().items() if before.get(k) != v and k not in aside}


@pytest.mark.parametrize("tied", [False, True])
def test_llama_loses_heads_and_neurons(tmp_path: Path, tied: bool) -> None:
    small, plan = cut(lambda: llama(tie_word_embeddings=tied), HEADS_AND_NEURONS)
    small.generation_config.max_new_tokens = 3
    assert sc.save_pretrained(tmp_path / "small", small, plan) == tmp_path / "small"
    loaded = same(tmp_path / "small", small)
    new = {"intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert changed(loaded.config, llama(tie_word_embeddings=tied).config) == new
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert loaded.generation_config.max_new_tokens == 3
    assert loaded.generate(**tokens(), do_sample=False).shape == (2, 11)
    assert {p.name for p in (tmp_path / "small").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip


def test_the_width_of_a_head_is_said_where_it_no_longer_follows(tmp_path: Path) -> None:
    """Qwen2's configuration has none: it is the width of the model by the number of heads."""

    def make() -> nn.Module:
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, num_key_value_heads=2))

    small, plan = cut(make, HEADS_AND_NEURONS)
    assert not hasattr(small.config, "head_dim")
    sc.save_pretrained(tmp_path, small, plan, tokens())
    new = {"head_dim": 4, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert changed(same(tmp_path, small).config, small.config) == new


def test_bert_loses_neurons_and_loads_by_its_automatic_class(tmp_path: Path) -> None:
    small, plan = cut(bert, NEURONS, 0.25)
    sc.save_pretrained(tmp_path, small, plan)
    assert changed(same(tmp_path, small).config, bert().config) == {"intermediate_size": 18}
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, small(**tokens()).logits)


def test_gpt2_names_a_size_that_it_left_open(tmp_path: Path) -> None:
    small, plan = cut(gpt2, NEURONS)
    assert small.config.n_inner is None
    sc.save_pretrained(tmp_path, small, plan)
    loaded = same(tmp_path, small)
    assert changed(loaded.config, gpt2().config) == {"n_inner": 32}
    assert small.config.n_inner is None  # the model given is not touched
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_half_precision_stays(tmp_path: Path) -> None:
    small, plan = cut(llama, HEADS_AND_NEURONS)
    sc.save_pretrained(tmp_path, small.bfloat16(), plan)
    loaded = type(small).from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(**tokens()).logits, small(**tokens()).logits)


class Tower(nn.Module):
    """Not of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def uneven() -> tuple[nn.Module, sc.Plan]:
    torch.manual_seed(0)
    model = bert().eval()
    groups = sc.couple(sc.trace(model, tokens()), ignore=NEURONS)
    plan = sc.make_plan(groups, {groups.groups[1].name: np.arange(24) < 20})
    return sc.apply(plan, model), plan


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (uneven, r"gives bert.encoder.layer.1.intermediate.dense.weight the shape \(20, 16\); the nearest gives \(24, 16\)"),
        (lambda: cut(bert, HEADS_AND_NEURONS), r"BertForMaskedLM cannot .* gives bert.*query.weight the shape \(8, 16\)"),
        (lambda: cut(gpt2, ["*:head_dim", "*mlp*"]), r"gives transformer.h.0.attn.c_attn.weight the shape \(16, 24\)"),
        (lambda: cut(llama, ["*:head", "*:neuron"]), r"what it builds computes something else \(relative difference .*scale"),
    ],
)  # fmt: skip
def test_what_no_configuration_says_is_refused(made: Any, words: str, tmp_path: Path) -> None:
    small, plan = made()
    with pytest.raises(FormatError, match=f"{words}.*Use sc.save and sc.load"):
        sc.save_pretrained(tmp_path / "small", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    tower = Tower()
    plan = sc.random_plan(sc.couple(sc.trace(tower, x)), 0.5, seed=0)
    with pytest.raises(ArgumentError, match="Tower is no transformers model .*: use sc.save and sc.load"):
        sc.save_pretrained(tmp_path / "small", sc.apply(plan, tower), plan)
    small, plan = cut(bert, NEURONS)
    with pytest.raises(ArgumentError, match="BertForMaskedLM does not run on the example: .* give save_pretrained an"):
        sc.save_pretrained(tmp_path / "small", small, plan, {"input_ids": torch.tensor([[10**6]])})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    with pytest.raises(FormatError, match="is in use"):
        sc.save_pretrained(tmp_path / "used", small, plan)
    sc.save_pretrained(tmp_path / "used", small, plan, overwrite=True)
    assert not (tmp_path / "used" / "mine.txt").exists()
    assert json.loads((tmp_path / "used" / "config.json").read_text())["intermediate_size"] == 12


def test_a_model_whose_dummy_inputs_are_no_use(tmp_path: Path) -> None:
    """Pixels are given as an example."""
    sizes = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8)
    model, x = transformers.ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    plan = sc.random_plan(sc.couple(sc.trace(model, x), ignore=NEURONS), 0.5, seed=0)
    small = sc.apply(plan, model)
    with pytest.raises(ArgumentError, match="does not run on its own dummy_inputs"):
        sc.save_pretrained(tmp_path / "small", small, plan)
    sc.save_pretrained(tmp_path / "small", small, plan, x)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert torch.equal(loaded(**x).logits, small(**x).logits)
    assert loaded.config.intermediate_size == 12
