"""Whole commands, from the start of the process to the folder on disk, in turns with llm-compressor's; one thread.

Experiment ``time``; cases ``LIBRARY/METHOD/PATTERN`` with the metrics ``seconds`` (median over the turns) and, for
secateur, ``ratio_to_llmcompressor`` (median of ours over theirs in the same turn). Case ``secateur/wanda/scoring``:
``seconds`` to score and cut every linear layer of the model once, and ``bandwidth_fraction``, the bytes which that
cannot do without (each weight read, each pruned one written) over these seconds, as a share of what copying the same
weights moves a second. Nothing else should run beside it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import _subject
import torch
from safetensors.torch import load_file
from torch import Tensor

from _rows import Figure
from secateur.choose.patterns import unstructured
from secateur.solve.gram import Gram
from secateur.solve.scores import wanda_mask

EXPERIMENT = "time"
CASES = (("sparsegpt", "50%"), ("wanda", "50%"), ("sparsegpt", "2:4"))


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("timing", "_subject", "_data", "_ours", "_peer")


def commands(method: str, pattern: str, turns: int, peer: bool) -> list[Figure]:
    """One command of ours and one of theirs, again and again."""
    given = (_subject.dense(), _subject.calibration_file(), method, pattern)
    makers = {"secateur": _subject.ours, **({"llmcompressor": _subject.peers} if peer else {})}
    seconds: dict[str, list[float]] = {library: [] for library in makers}
    for turn in range(turns):
        for library in list(makers)[:: 1 if turn % 2 else -1]:
            out = _subject.fresh(f"time-{library}")
            seconds[library].append(_subject.run(makers[library](*given, out)).seconds)
            print(f"{library} {method} {pattern}: {seconds[library][-1]:.1f} s", flush=True)
            _subject.fresh(f"time-{library}")
    figures = [Figure(f"{n}/{method}/{pattern}", "seconds", statistics.median(s), "s") for n, s in seconds.items()]
    if peer:
        ratios = [a / b for a, b in zip(seconds["secateur"], seconds["llmcompressor"], strict=True)]
        figures.append(Figure(f"secateur/{method}/{pattern}", "ratio_to_llmcompressor", statistics.median(ratios)))
    return figures


def scoring(turns: int) -> list[Figure]:
    """Wanda alone: scores and cuts of all linear layers of the blocks, at 50 %, beside copies of them."""
    weights = _weights()
    size = sum(w.numel() * w.element_size() for w in weights)
    grams = {d: Gram(torch.eye(d), torch.zeros(d), 1) for d in {w.shape[1] for w in weights}}
    copies, cuts = [], []
    torch.set_num_threads(1)
    for _ in range(turns + 1):  # the first warms up
        copies.append(_seconds(lambda w: w.clone(), weights))
        cuts.append(_seconds(lambda w: wanda_mask(w, grams[w.shape[1]], unstructured, w.numel() // 2).weight, weights))
    moved = 2 * size / statistics.median(copies[1:])
    taken = statistics.median(cuts[1:])
    case = "secateur/wanda/scoring"
    return [Figure(case, "seconds", taken, "s"), Figure(case, "bandwidth_fraction", 2 * size / taken / moved)]


def _weights() -> list[Tensor]:
    files = sorted(_subject.dense().glob("*.safetensors"))
    found = {k: v for file in files for k, v in load_file(file).items()}
    return [v.float() for k, v in found.items() if k.endswith("_proj.weight")]


def _seconds(work: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for w in weights:
        work(w)
    return time.perf_counter() - start


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a method and pattern, and scoring."""
    turns, cases = (1, CASES[:1]) if quick else (2, CASES)  # even: each goes first as often
    out = {f"{m}/{p}": functools.partial(commands, m, p, turns, not quick) for m, p in cases}
    return {**out, "scoring": functools.partial(scoring, turns if quick else 9)}
