"""Language models of a few thousand parameters, and a tokenizer of as many words, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]


def llama(seed: int = 0, layers: int = 2, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    net = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(8 if p.dim() > 1 else 1)  # as drawn, all logits are alike
    return net


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({"[UNK]": 0, "</s>": 1, **{w: i + 2 for i, w in enumerate(WORDS)}}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>")


def text(words: int = 400, seed: int = 1) -> str:
    draw = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[i] for i in draw)


def folder(where: Path, net: LlamaForCausalLM) -> Path:
    net.save_pretrained(where)
    tokenizer().save_pretrained(where)
    return where


def halved(net: LlamaForCausalLM) -> LlamaForCausalLM:
    """Half the entries of the blocks' matrices zero, the smallest."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "layers" in name and p.dim() == 2:
                p[p.abs() < p.abs().median()] = 0
    return net
