"""What the experiments share: the dense folder, the calibration windows, commands in processes of their own, a judge.

The model is SmolLM2-135M-Instruct, dequantised from 4 bits to float32 and saved as a folder in ``.cache``; a smoke run
takes a random Llama of two blocks and random tokens.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _data
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import _models
from _rows import CACHE, ROOT, quick
from secateur.atomic import write_bytes

HERE = Path(__file__).resolve().parent
PEER = (ROOT / ".venv-peer-llm" / "bin" / "python").absolute()
"""The interpreter of the peer's environment, which ``make bench-llm`` makes."""
FOLDER = CACHE / "llm"


@functools.cache
def dense() -> Path:
    """The folder of the dense model, made once."""
    folder = FOLDER / ("tiny" if quick() else "smollm2")
    if not folder.is_dir():
        fresh = folder.with_name(f"{folder.name}-{os.getpid()}")
        _save_tiny(fresh) if quick() else _save_smollm2(fresh)
        fresh.rename(folder)
    return folder


def _save_smollm2(folder: Path) -> None:
    """Transformers does not save what it read from a quantised file: the weights go into a model that was not."""
    from transformers import LlamaForCausalLM

    read: Any = _models.smollm2()[0]
    config = copy.deepcopy(read.config)
    config.use_cache = True
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder, max_shard_size="200MB")
    _data.tokenizer().save_pretrained(folder)


def _save_tiny(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def calibration() -> Tensor:
    """Windows of token ids, shape (windows, length)."""
    return load_file(calibration_file())["tokens"]


@functools.cache
def calibration_file() -> Path:
    """The same in a file, as every command gets them."""
    return _tokens("calibration", (8, 16) if quick() else (_data.CALIBRATION, _data.WINDOW))


@functools.cache
def evaluation_file() -> Path:
    """Windows that nothing is calibrated on."""
    return _tokens("evaluation", (4, 16) if quick() else (_data.EVALUATION, _data.WINDOW))


def _tokens(part: str, shape: tuple[int, int]) -> Path:
    path = FOLDER / f"{part}{'-tiny' if quick() else ''}-{shape[0]}x{shape[1]}.safetensors"
    if not path.is_file():
        if quick():
            ids = torch.randint(0, 128, shape, generator=torch.Generator().manual_seed(len(part)))
        else:
            ids = getattr(_data, part)(*shape, folder=dense()).contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"tokens": ids}))
    return path


@dataclass(frozen=True)
class Ran:
    """A command that has ended: its seconds by the clock, and its largest resident set in bytes where it tells that."""

    seconds: float
    peak: int | None


def environment() -> dict[str, str]:
    """One thread, no network, this source tree."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])),
    }


def run(arguments: Sequence[str | Path]) -> Ran:
    """Run a command in a process of its own, on one thread; under `_limited`, it tells its largest resident set.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        log, peak = Path(folder) / "log", Path(folder) / "peak"
        with log.open("wb") as out:
            start = time.perf_counter()
            given = environment() | {"SECATEUR_BENCH_PEAK": str(peak)}
            code = subprocess.call([str(a) for a in arguments], env=given, stdout=out, stderr=out)
            seconds = time.perf_counter() - start
        if code:
            words = " ".join(str(a) for a in arguments)
            raise RuntimeError(f"{words} ended with {code}:\n{log.read_text(errors='replace')[-3000:]}")
        return Ran(seconds, int(peak.read_text(encoding="utf-8")) * 1024 if peak.is_file() else None)


def ours(model: Path, tokens: Path, method: str, pattern: str, out: Path, *more: str) -> list[str | Path]:
    """The command that prunes with secateur."""
    return [sys.executable, HERE / "_ours.py", model, tokens, method, pattern, out, *more]


def peers(model: Path, tokens: Path, method: str, pattern: str, out: Path) -> list[str | Path]:
    """The command that prunes with llm-compressor.

    Raises:
        FileNotFoundError: its environment was not made.
    """
    if not PEER.is_file():
        raise FileNotFoundError(f"{PEER}: llm-compressor has an environment of its own, which `make bench-llm` makes")
    return [PEER, HERE / "_peer.py", model, tokens, method, pattern, out]


def plain(model: Path, tokens: Path, method: str, pattern: str, out: Path) -> list[str | Path]:
    """The command that prunes with the plain loops."""
    return [sys.executable, HERE / "_plain.py", model, tokens, method, pattern, out]


def perplexity_of(folder: Path) -> dict[str, float]:
    """``perplexity`` and ``sparsity`` (of the linear layers of the blocks) of a saved folder, in a clean process."""
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as place:
        report = Path(place) / "judged.json"
        run([sys.executable, HERE / "_judge.py", folder, evaluation_file(), report])
        found: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return found


def parameters(folder: Path) -> int:
    """How many weights are saved: shared ones stand there once."""
    count = 0
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def fresh(name: str) -> Path:
    """A path for a result, where nothing is: nor what an unfinished run left beside it, by other code perhaps."""
    path = FOLDER / ("out-tiny" if quick() else "out") / name.replace("/", "-").replace(":", "-").replace("%", "")
    for left in (path, path.with_name(f".{path.name}.survey"), path.with_name(f".{path.name}.training")):
        shutil.rmtree(left, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
