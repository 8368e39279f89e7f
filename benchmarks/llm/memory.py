"""A checkpoint of 1.5 billion parameters pruned in an address space of 6 GB, and a run that is killed in the middle.

Experiment ``memory``; case ``secateur/METHOD/1.5B`` with the metrics ``checkpoint_gb``, ``limit_gb`` (which the
operating system enforces on the process: ``RLIMIT_AS``, its whole address space, mapped files included), ``peak_gb``
(largest resident set of the process), ``resumed_peak_gb`` (of the run that was killed with SIGKILL in the middle and
resumed), ``seconds`` of both, and ``identical_files`` (1 where the two folders agree byte for byte, but for the report,
which tells times). The checkpoint is a Llama of random bf16 weights, 30 blocks of width 2048, made shard by
shard: 3.1 GB as stored, which is below the limit, and 6.2 GB in float32, which is above it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _subject
import torch
from safetensors.torch import save, save_file
from torch import Tensor
from transformers import LlamaConfig

from _rows import Figure
from secateur.atomic import write_bytes
from secateur.llm.prune import REPORT

LIMIT = 6_000_000_000
BUDGET = "4GB"
"""Of the whole process, as the stream plans it: its ``--memory``."""


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("memory", "_subject", "_ours", "_limited")


def config(small: bool) -> LlamaConfig:
    """1.55 billion parameters; a smoke run takes 0.3 million."""
    shape = (64, 160, 4, 4, 2, 512) if small else (2048, 5632, 30, 16, 4, 49_152)
    width, inner, layers, heads, groups, words = shape
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def checkpoint(small: bool) -> Path:
    """Its folder, made once, with no more than one block in memory."""
    folder = _subject.FOLDER / ("synthetic-tiny" if small else "synthetic-1.5b")
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    made = config(small)
    made.save_pretrained(folder)
    index, total = {}, 0
    for number, tensors in enumerate(_shards(made)):
        file = f"model-{number + 1:05}-of-{made.num_hidden_layers + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    write_bytes(folder / "model.safetensors.index.json", text.encode())
    return folder


def _shards(made: LlamaConfig) -> Iterator[dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=drawn) / columns**0.5).bfloat16()

    d, inner, words = made.hidden_size, made.intermediate_size, made.vocab_size
    keys = d // made.num_attention_heads * made.num_key_value_heads
    ones = torch.ones(d, dtype=torch.bfloat16)
    yield {"model.embed_tokens.weight": random(words, d), "model.norm.weight": ones, "lm_head.weight": random(words, d)}
    for i in range(made.num_hidden_layers):
        shapes = {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (keys, d),
            "self_attn.v_proj": (keys, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (inner, d),
            "mlp.up_proj": (inner, d),
            "mlp.down_proj": (d, inner),
        }
        block = {f"{name}.weight": random(*shape) for name, shape in shapes.items()}
        block |= {"input_layernorm.weight": ones.clone(), "post_attention_layernorm.weight": ones.clone()}
        yield {f"model.layers.{i}.{name}": t for name, t in block.items()}


def tokens(small: bool) -> Path:
    """Random calibration windows."""
    path = _subject.FOLDER / f"synthetic-tokens{'-tiny' if small else ''}.safetensors"
    shape = (4, 16) if small else (8, 256)
    ids = torch.randint(0, config(small).vocab_size, shape, generator=torch.Generator().manual_seed(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({"tokens": ids}))
    return path


def part(method: str, small: bool) -> list[Figure]:
    """One run under the limit, one that is killed and resumed, both of the same settings."""
    model, given = checkpoint(small), tokens(small)
    size = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    whole, broken = _subject.fresh("memory-whole"), _subject.fresh("memory-broken")

    def command(out: Path) -> list[str | Path]:
        limited = [sys.executable, _subject.HERE / "_limited.py", str(LIMIT)]
        return [*limited, *_subject.ours(model, given, method, "50%", out, BUDGET)[1:]]

    first = _subject.run(command(whole))
    kill_at_half(command(broken), first.seconds)
    second = _subject.run(command(broken))
    case = f"secateur/{method}/{'tiny' if small else '1.5B'}"
    figures = [
        Figure(case, "checkpoint_gb", size / 1e9, "GB"),
        Figure(case, "limit_gb", LIMIT / 1e9, "GB"),
        Figure(case, "peak_gb", _gigabytes(first.peak), "GB"),
        Figure(case, "resumed_peak_gb", _gigabytes(second.peak), "GB"),
        Figure(case, "seconds", first.seconds, "s"),
        Figure(case, "resumed_seconds", second.seconds, "s"),
        Figure(case, "identical_files", float(digests(whole) == digests(broken))),
    ]
    for folder in ("memory-whole", "memory-broken"):
        _subject.fresh(folder)
    return figures


def _gigabytes(peak: int | None) -> float:
    if peak is None:
        raise RuntimeError("the command under the limit told no peak: _limited.py writes it when it ends")
    return peak / 1e9


def kill_at_half(command: list[str | Path], seconds: float) -> None:
    """Start it, and send SIGKILL after half of the time that the whole takes."""
    process = subprocess.Popen(
        [str(a) for a in command], env=_subject.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds / 2)
    if process.poll() is not None:
        raise RuntimeError(f"it ended with {process.returncode} before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the report, by name."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != REPORT:
            with file.open("rb") as f:
                found[str(file.relative_to(folder))] = hashlib.file_digest(f, "blake2b").hexdigest()
    return found


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a method."""
    return {method: functools.partial(part, method, quick) for method in (("wanda",) if quick else ("sparsegpt",))}
