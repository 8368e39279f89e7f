"""Large models: seconds to know what must go together, and the memory that it takes beside the weights.

Experiment ``large_models``; cases ``vit_h14``, ``convnext_l`` and ``llama_1b`` with their weights in memory, drawn at
random, and the same with ``_meta`` behind the name, where no weight exists. Each is a process of its own that first
records a tiny model, so that what torch loads at its first fake tensor is in neither figure. ``seconds`` is one
``sc.couple(sc.trace(model, example))``, of which ``trace_seconds`` is the recording; ``growth`` is how far the highest
resident set during it rises above the one before, as a share of the bytes that the weights take or would take.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import _models
import secateur as sc
from _rows import Figure, quick, say, write

EXPERIMENT = "large_models"
Made = tuple[nn.Module, dict[str, torch.Tensor]]


def vit_h14() -> Made:
    """ViT-H/14 for 224 x 224 images."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    return ViTModel(ViTConfig(**sizes, image_size=224, patch_size=14)), _pixels()


def convnext_l() -> Made:
    """ConvNeXt-L for 224 x 224 images."""
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(depths=[3, 3, 27, 3], hidden_sizes=[192, 384, 768, 1536])
    return ConvNextModel(config), _pixels()


def llama_1b() -> Made:
    """A Llama of 1.1 billion parameters with 4 key heads, on 32 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=5632, vocab_size=32_000, use_cache=False)
    return LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 32, dtype=torch.long)}


def _pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(1, 3, 224, 224)}


MODELS: dict[str, Callable[[], Made]] = {"vit_h14": vit_h14, "convnext_l": convnext_l, "llama_1b": llama_1b}
CASES = [f"{name}{where}" for name in MODELS for where in ("", "_meta")]


def _memory(key: str) -> int:
    """A figure of /proc/self/status in bytes; where there is none, the highest resident set so far."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key)) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured(case: str) -> dict[str, float]:
    """The figures of a case, in this process."""
    _models.quiet()
    with torch.device("meta") if case.endswith("_meta") else contextlib.nullcontext():
        model, example = MODELS[case.removesuffix("_meta")]()
    tiny = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sc.couple(sc.trace(tiny, torch.zeros(1, 4)))
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set is counted anew
    before, start = _memory("VmRSS"), time.perf_counter()
    graph = sc.trace(model.eval(), example)
    recorded = time.perf_counter()
    groups = sc.couple(graph)
    end, growth = time.perf_counter(), max(0, _memory("VmHWM") - before)
    return {
        "seconds": end - start,
        "trace_seconds": recorded - start,
        "growth": growth / sum(p.numel() * p.element_size() for p in model.parameters()),
        "growth_bytes": growth,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(groups),
    }


UNITS = {"seconds": "s", "trace_seconds": "s", "growth_bytes": "B"}


def one_case(case: str) -> list[Figure]:
    """The same from a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--one", case], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures = [Figure(case, metric, value, UNITS.get(metric, "")) for metric, value in found.items()]
    say(EXPERIMENT, figures)
    return figures


def main() -> None:
    """Every case; writes the rows when all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="only these, and write nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    figures = [f for case in options.cases or (CASES[1:2] if quick() else CASES) for f in one_case(case)]
    if not options.cases:
        print(write(EXPERIMENT, figures))


if __name__ == "__main__":
    main()
