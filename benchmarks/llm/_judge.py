"""Perplexity of a saved folder, loaded anew: ``python _judge.py FOLDER TOKENS REPORT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from secateur.llm.perplexity import perplexity


def load(folder: str) -> nn.Module:
    """By transformers where the shapes are its own, else by secateur."""
    if (Path(folder) / "plan.json").is_file():
        import secateur as sc

        loaded: nn.Module = sc.load(folder)
        return loaded.eval()
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


def zeros(model: nn.Module) -> float:
    """Share of zeros in the linear layers but the head."""
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("lm_head")]
    return sum(int((m.weight == 0).sum()) for m in layers) / sum(m.weight.numel() for m in layers)


if __name__ == "__main__":
    folder, tokens, report = sys.argv[1:]
    windows = load_file(tokens)["tokens"]
    model = load(folder)
    found = {
        "perplexity": perplexity(model, windows.flatten(), windows.shape[1]).value,
        "sparsity": zeros(model),
    }
    Path(report).write_text(json.dumps(found), encoding="utf-8")
