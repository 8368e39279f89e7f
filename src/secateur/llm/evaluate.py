"""Everything that is asked of a language model, from one folder as it was saved: one record, one file."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.errors import ArgumentError, FormatError
from secateur.evidence.gather import environment
from secateur.evidence.report import finite
from secateur.llm.agreement import Beside, beside, block_errors
from secateur.llm.generation import PROMPT, REPEATS, STEPS, check_lengths, peak_memory, speed, speed_rows
from secateur.llm.harness import check_tasks, harness
from secateur.llm.perplexity import WINDOW, Perplexity, Tell, perplexity, texts_of, tokenize, vocabulary
from secateur.llm.saved import bytes_of_weights, densities, loads_plainly, open_model, own_tokenizer, told
from secateur.llm.texts import JOINT
from secateur.types import Row, Target

JSON_NAME, VERSION = "evaluation.json", 1


@dataclass(frozen=True)
class Asked:
    """What is to be found out.

    Attributes:
        texts: files to score. window, stride, batch: as in `perplexity`. tokens: of the text, at most.
        dtype: to compute in; None: as stored. device: to compute on. targets: where generation is timed.
        prompt, steps, repeats: as in `speed`.
        tasks: a folder of lm-eval tasks, or None. limit: items of each task, at most.
    """

    texts: tuple[Path, ...]
    window: int = WINDOW
    stride: int | None = None
    batch: int = 1
    tokens: int | None = None
    dtype: torch.dtype | None = None
    targets: tuple[Target, ...] = ()
    prompt: int = PROMPT
    steps: int = STEPS
    repeats: int = REPEATS
    tasks: Path | None = None
    limit: int | None = None
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found out: ``data`` is what evaluation.json holds, `docs/llm-eval.md` says what each field means."""

    data: Mapping[str, Any]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The table: dense beside pruned."""
        return tuple(Row(**row) for row in self.data["rows"])

    def save(self, folder: Path | str) -> Path:
        """Write evaluation.json, whole or not at all, and return its path."""
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(dict(self.data)), indent=1, allow_nan=False) + "\n"
        write_bytes(where / JSON_NAME, text.encode())
        return where / JSON_NAME


def read_evaluation(path: Path | str) -> Evaluation:
    """The evaluation of a folder, or of an evaluation.json itself.

    Raises:
        FormatError: there is none, or it is not one of this version.

    Example:
        >>> read_evaluation("nowhere")
        Traceback (most recent call last):
        secateur.errors.FormatError: nowhere: no such file; expected an evaluation.json, ...
    """
    file = Path(path)
    file = file / JSON_NAME if file.is_dir() else file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{file}: no such file; expected an {JSON_NAME}, which secateur llm eval writes") from error
    except ValueError as error:
        raise FormatError(f"{file} is not JSON ({error}); it may be cut off: evaluate again") from error
    if not isinstance(data, dict) or data.get("kind") != "llm" or data.get("schema") != VERSION:
        raise FormatError(f"{file} is no evaluation of version {VERSION}: evaluate again with this secateur")
    return Evaluation(_numbers(data))


def _numbers(value: Any) -> Any:
    """What `finite` wrote, read again."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def evaluate(folder: Path | str, asked: Asked, dense: Path | str | None = None, tell: Tell | None = None) -> Evaluation:
    """Judge a language model as it was saved: its folder is loaded anew, nothing of another process is trusted.

    Args:
        folder: that secateur wrote, dense or sparse, or a plain transformers folder.
        asked: what is to be found out.
        dense: the folder of the model that it was made of: agreement, and every figure beside the dense one's.
        tell: ``(done, of, words)``: progress.

    Raises:
        ArgumentError, DataError, FormatError, TargetError: as `open_model`, `perplexity`, `speed` and `harness`.

    Memory: the model, and the dense one where it is given.
    """
    paths = [Path(folder), *([Path(dense)] if dense is not None else [])]
    texts = texts_of(asked.texts)
    if asked.targets:
        check_lengths(prompt=asked.prompt, steps=asked.steps, repeats=asked.repeats)
    if asked.tasks is not None:
        check_tasks(asked.tasks)
    model, tokenizer = open_model(paths[0], asked.dtype, asked.device)
    full = open_model(paths[1], asked.dtype, asked.device)[0] if dense is not None else None
    if tokenizer is None and dense is not None:
        tokenizer = own_tokenizer(paths[1])
    if tokenizer is None:
        raise ArgumentError(f"{folder} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    ids = tokenize(tokenizer, texts)[: asked.tokens]
    judged = _judged(model, full, ids, asked, tell)
    rows, measured = _measured(model, full, paths, asked)
    errors = [] if full is None else block_errors(model, full, ids, asked.window)
    protocol = _protocol(model, judged[0], asked, texts, tokenizer)
    made_by = told(folder)
    data = {
        "schema": VERSION,
        "kind": "llm",
        "model": paths[0].resolve().name,
        "dense": paths[1].resolve().name if dense is not None else None,
        "class": type(model).__name__,
        "protocol": protocol,
        "rows": [asdict(r) for r in (*_quality(*judged), *_sizes(model, full, paths), *rows)],
        "perplexity": asdict(judged[0]),
        "speed": measured,
        "tasks": _tasks(model, full, tokenizer, asked),
        "blocks": _blocks(model, errors, made_by["blocks"]),
        "loads_with": "transformers" if loads_plainly(paths[0]) else "secateur",
        "made_by": {k: v for k, v in made_by.items() if k != "blocks"},
        "made": {**environment(), "date": datetime.date.today().isoformat()},
    }
    return Evaluation(data)


Judged = tuple[Perplexity, Beside | None]


def _judged(model: nn.Module, full: nn.Module | None, ids: Tensor, asked: Asked, tell: Tell | None) -> Judged:
    if full is None:
        return perplexity(model, ids, asked.window, asked.stride, asked.batch, tell), None
    both = beside(model, full, ids, asked.window, asked.stride, asked.batch, tell)
    return both.pruned, both


def _protocol(
    model: nn.Module, found: Perplexity, asked: Asked, texts: Sequence[str], tokenizer: Any
) -> dict[str, Any]:
    """What a perplexity means nothing without."""
    weight = next(model.parameters())
    return {
        "words": found.protocol(),
        "window": found.window,
        "stride": found.stride,
        "windows": found.windows,
        "tokens": found.tokens,
        "joined_by": JOINT,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "tokenizer": type(tokenizer).__name__,
        "texts": [
            {"name": p.name, "characters": len(t), "sha256": hashlib.sha256(t.encode()).hexdigest()}
            for p, t in zip(asked.texts, texts, strict=True)
        ],
    }


def _quality(found: Perplexity, both: Beside | None) -> list[Row]:
    rows = [
        Row(
            "perplexity",
            "",
            None if both is None else both.dense.value,
            found.value,
            low=found.low,
            high=found.high,
            note=found.protocol(),
        )
    ]
    if both is None:
        return rows
    names = {
        "top1": ("top-1 agreement with dense", ""),
        "top5": ("top-5 overlap with dense", ""),
        "kl": ("KL of pruned from dense", "nats"),
    }
    for key, (what, unit) in names.items():
        figure = getattr(both.agreement, key)
        rows.append(Row(what, unit, None, figure.value, low=figure.low, high=figure.high, note="a token"))
    return rows


def _sizes(model: nn.Module, full: nn.Module | None, paths: Sequence[Path]) -> list[Row]:
    """Parameters, those that are not zero, and bytes of the files."""
    models = [m for m in (model, full) if m is not None]
    params = [sum(p.numel() for p in m.parameters()) for m in models]
    filled = [sum(int(torch.count_nonzero(p)) for p in m.parameters()) for m in models]
    stored = [bytes_of_weights(path) for path in paths]
    named = (
        ("parameters", "", params),
        ("parameters that are not zero", "", filled),
        ("size of the files", "B", stored),
    )
    return [Row(what, unit, v[1] if len(v) > 1 else None, v[0]) for what, unit, v in named]


def _measured(
    model: nn.Module, full: nn.Module | None, paths: Sequence[Path], asked: Asked
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows of time and memory, and the timings as data; nothing where no target was asked for."""
    rows: list[Row] = []
    timings: list[dict[str, Any]] = []
    models = [m for m in (full, model) if m is not None]
    held: int | None = None
    for target in asked.targets:
        found = speed(models, target, prompt=asked.prompt, steps=asked.steps, repeats=asked.repeats)
        dense, pruned = (found[0] if full is not None else None), found[-1]
        timings += speed_rows(dense, pruned)
        if pruned.cache_bytes is not None and held is None:
            held = pruned.cache_bytes
            before = None if dense is None else dense.cache_bytes
            rows.append(Row("size of the key-value cache", "B", before, held, note=f"after {asked.prompt} tokens"))
    for t in timings:
        what = f"{t['what']} on {t['target']}"
        note = "; ".join(filter(None, (t["words"], t["note"])))
        rows.append(Row(what, "tokens/s", t["dense_tokens_per_s"], t["pruned_tokens_per_s"], note=note))
    if asked.targets:
        high = vocabulary(model) or 2
        peaks = [peak_memory(p, asked.prompt, asked.steps, high=high) for p in paths]
        note = "loading and generating on the CPU in a process of its own, as stored"
        rows.append(Row("peak memory", "B", peaks[1] if len(peaks) > 1 else None, peaks[0], note=note))
    return rows, timings


def _tasks(model: nn.Module, full: nn.Module | None, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Figures of lm-eval's tasks, dense beside pruned."""
    if asked.tasks is None:
        return []
    ours = harness(model, tokenizer, asked.tasks, limit=asked.limit, batch=asked.batch)
    theirs = {} if full is None else harness(full, tokenizer, asked.tasks, limit=asked.limit, batch=asked.batch)
    rows = []
    for task, figures in ours.items():
        for metric, (value, error) in figures.items():
            dense = theirs.get(task, {}).get(metric, (None, None))[0]
            rows.append({"task": task, "metric": metric, "dense": dense, "pruned": value, "standard_error": error})
    return rows


def _blocks(model: nn.Module, errors: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each block its density, its error where the dense model was given, and what pruning told of its matrices."""
    found = [d for d in densities(model) if d.block]
    known: list[float | None] = list(errors) if len(errors) == len(found) else [None] * len(found)
    solved = {str(r.get("path")): r.get("matrices") or [] for r in rows}
    return [
        {
            "block": d.block,
            "size": d.size,
            "kept": d.kept,
            "density": d.density,
            "error": error,
            "solved": _mean([m["error"] for m in solved.get(d.block, []) if "error" in m]),
        }
        for d, error in zip(found, known, strict=True)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
