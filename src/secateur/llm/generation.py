"""How fast a language model reads a prompt and writes tokens, and the memory that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, SecateurError, TargetError, brief
from secateur.export.prepare import snapshot
from secateur.llm.perplexity import logits_of, vocabulary
from secateur.targets.eager import build as build_eager
from secateur.targets.eager import ready
from secateur.targets.measure import compare, measure
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Measurement, Target

PROMPT, STEPS, REPEATS = 128, 16, 10
NO_CACHE = "decode is not timed: an exported file takes tokens and no cache, so each token would cost a whole prefill"


@dataclass(frozen=True, eq=False)
class Speed:
    """One model generating on one target.

    Attributes:
        target, threads, batch: where, and how many sequences at once.
        prompt: tokens of a prompt. steps: tokens written after it in each round.
        prefill: of a prompt, without a cache on targets that export. decode: of ``steps`` tokens, each one pass with
            the cache; None where it cannot be timed. note: why not.
        cache_bytes: of keys and values after the prompt, or None where the model keeps no such cache.
    """

    target: str
    threads: int
    batch: int
    prompt: int
    steps: int
    prefill: Measurement
    decode: Measurement | None = None
    note: str = ""
    cache_bytes: int | None = None

    @property
    def prefill_tokens(self) -> float:
        """Tokens read a second, at the median."""
        return self.batch * self.prompt / self.prefill.median

    @property
    def decode_tokens(self) -> float | None:
        """Tokens written a second, at the median."""
        return None if self.decode is None else self.batch * self.steps / self.decode.median


def speed(
    models: Sequence[nn.Module],
    target: Target,
    *,
    prompt: int = PROMPT,
    steps: int = STEPS,
    batch: int = 1,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[Speed]:
    """Time models against each other: reading a prompt, then writing tokens greedily with the key-value cache.

    Every round runs each model once (`secateur.targets.measure.measure`). Decoding is timed eagerly, on the model's
    device: one forward pass a token, the token with the largest logit goes on, and the cache is cut back to the prompt
    after each round. On targets that run an exported file only the prefill is timed, `Speed.note` says why.

    Args:
        models: dense and pruned; of one vocabulary.
        target: where. prompt, steps, batch: tokens read, tokens written, sequences. repeats: rounds.
        seed: of the random prompt.

    Raises:
        ArgumentError: a length is below 1. TargetError: the target refuses a model.

    Memory: on targets that export, twice the weights while a file is written.

    Example:
        >>> from secateur.targets.eager import eager
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> net = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1))
        >>> (found,) = speed([net], eager, prompt=4, steps=2, repeats=1)
        >>> found.cache_bytes == 1 * 2 * 4 * 4 * 4  # layers, keys and values, tokens, head size, bytes
        True
    """
    if not models:
        raise ArgumentError("speed: give at least one model; got 0 models")
    check_lengths(prompt=prompt, steps=steps, batch=batch, repeats=repeats)
    sizes = [n for n in map(vocabulary, models) if n is not None]
    high = min(sizes) if sizes else 2
    ids = torch.randint(high, (batch, prompt), generator=torch.Generator().manual_seed(seed))
    read = measure([_prefill(m, ids, target) for m in models], repeats, warmup=1)
    decoders, note = _decoders(models, ids, steps, target)
    written: list[Measurement | None] = [None] * len(models)
    if decoders:
        written = list(measure([d.artefact for d in decoders], repeats, warmup=1))
    held: list[int | None] = [d.cache_bytes for d in decoders] if decoders else [None] * len(models)
    made = zip(read, written, held, strict=True)
    return [Speed(target.name, target.threads, batch, prompt, steps, p, d, note, b) for p, d, b in made]


def check_lengths(**lengths: int) -> None:
    """Whether generation can be timed so.

    Raises:
        ArgumentError: a length is below 1.
    """
    if min(lengths.values()) < 1:
        given = ", ".join(f"{name}={value}" for name, value in lengths.items())
        raise ArgumentError(f"speed: lengths are at least 1; got {given}")


def speed_rows(dense: Speed | None, pruned: Speed) -> list[dict[str, Any]]:
    """Prefill and decode as plain data: tokens a second, and how the two compare.

    Example:
        >>> import numpy as np
        >>> slow, fast = (Speed("clock", 1, 1, 8, 2, Measurement("clock", np.full(12, s), 1, 1)) for s in (2.0, 1.0))
        >>> speed_rows(slow, fast)[0]["words"]
        '2.00x faster (2.00-2.00)'
    """
    rows = []
    for what, tokens in (("prefill", pruned.prompt), ("decode", pruned.steps)):
        ours: Measurement | None = getattr(pruned, what)
        theirs: Measurement | None = None if dense is None else getattr(dense, what)
        if ours is None:
            continue
        rate = pruned.batch * tokens
        versus = compare(theirs, ours) if theirs is not None else None
        rows.append(
            {
                "what": what,
                "target": pruned.target,
                "threads": pruned.threads,
                "batch": pruned.batch,
                "prompt": pruned.prompt,
                "tokens": tokens,
                "rounds": int(ours.seconds.size),
                "dense_tokens_per_s": None if theirs is None else rate / theirs.median,
                "pruned_tokens_per_s": rate / ours.median,
                "pruned_spread": ours.spread,
                "speedup": None if versus is None else 1 / versus.ratio,
                "low": None if versus is None else 1 / versus.high,
                "high": None if versus is None else 1 / versus.low,
                "words": "" if versus is None else versus.words(),
                "note": "; ".join(filter(None, (ours.note, pruned.note))),
            }
        )
    return rows


class Logits(nn.Module):
    """A causal language model as a function of token ids alone: no cache goes in or out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (batch, tokens) to logits."""
        return logits_of(self.model, input_ids)


def _prefill(model: nn.Module, ids: Tensor, target: Target) -> Artefact:
    """A prompt read at once; eagerly with the cache being filled, elsewhere without one."""
    if target.build is not build_eager:
        return target.build(Logits(model), {"input_ids": ids}, target.threads)
    twin = snapshot(model)
    keep = {"use_cache": True} if hasattr(model, "config") else {}

    def read(input_ids: Tensor) -> Tensor:
        out = twin(input_ids=input_ids, **keep)
        last: Tensor = getattr(out, "logits", out)[:, -1]
        return last

    return ready(read, twin, {"input_ids": ids}, target.threads, target.name)


@dataclass(frozen=True, eq=False)
class _Decoder:
    artefact: Artefact
    cache_bytes: int


def _decoders(models: Sequence[nn.Module], ids: Tensor, steps: int, target: Target) -> tuple[list[_Decoder], str]:
    """What writes tokens with each model, or none of them and why."""
    if target.build is not build_eager:
        return [], NO_CACHE
    try:
        return [_decoder(m, ids, steps, target) for m in models], ""
    except SecateurError as error:
        return [], str(error)


def _decoder(model: nn.Module, ids: Tensor, steps: int, target: Target) -> _Decoder:
    """``steps`` greedy tokens after the prompt, one pass each; then the cache is as long as before."""
    twin = snapshot(model)
    device = next(p.device for p in twin.parameters())
    with torch.inference_mode():
        first = twin(input_ids=ids.to(device), use_cache=True)
    cache = getattr(first, "past_key_values", None)
    if cache is None or not hasattr(cache, "crop"):
        raise TargetError(
            f"decode is not timed: {type(model).__name__} returns no key-value cache that can be cut back"
        )
    nbytes = _cache_bytes(cache)
    start = first.logits[:, -1].argmax(-1, keepdim=True)

    def write(input_ids: Tensor) -> Tensor:
        token = input_ids
        for _ in range(steps):
            token = twin(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        cache.crop(-steps)
        return token

    try:
        made = ready(write, twin, {"input_ids": start}, target.threads, target.name)
    except Exception as error:
        raise TargetError(f"decode is not timed: {brief(error)}") from error
    return _Decoder(dataclasses.replace(made, batch=len(ids)), nbytes)


def _cache_bytes(cache: Any) -> int:
    """Keys and values of all layers."""
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", [])]
    return sum(t.numel() * t.element_size() for pair in layers for t in pair if isinstance(t, Tensor))


def greedy(model: nn.Module, ids: Tensor, steps: int) -> Tensor:
    """Prompts (batch, tokens) and the ``steps`` tokens that are likeliest one by one, written with the cache.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> net = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)).eval()
        >>> greedy(net, torch.tensor([[1, 2, 3]]), 4).shape
        torch.Size([1, 7])
    """
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=True)
        found = [ids]
        for _ in range(steps):
            found.append(out.logits[:, -1].argmax(-1, keepdim=True))
            out = model(input_ids=found[-1], past_key_values=out.past_key_values, use_cache=True)
    return torch.cat(found, dim=1)


_CHILD = """
import torch
import transformers
from secateur.llm.evaluate import open_model
from secateur.llm.generation import greedy

try:  # transformers imports the model's class when it is asked for: that is none of the model's memory
    config = transformers.AutoConfig.from_pretrained(sys.argv[1], local_files_only=True)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", *(config.architectures or ())):
        getattr(transformers, name, None)
except (OSError, ValueError):
    pass

def load(path, threads):
    torch.set_num_threads(threads)
    model, _ = open_model(path)
    return lambda arrays: greedy(model, torch.from_numpy(arrays["ids"]), int(arrays["steps"]))
"""


def peak_memory(
    folder: Path | str, prompt: int = PROMPT, steps: int = STEPS, batch: int = 1, threads: int = 1, high: int = 2
) -> int:
    """Peak resident memory of loading a folder and generating once, bytes beyond the imported libraries.

    A fresh process does it, so that nothing else counts; token ids of the prompt are drawn below ``high``.

    Raises:
        TargetError: the process failed.
    """
    ids = torch.randint(high, (batch, prompt), generator=torch.Generator().manual_seed(0)).numpy()
    return peak_rss(Path(folder), {"ids": ids, "steps": np.array(steps)}, threads, runs=1, child=_CHILD)
