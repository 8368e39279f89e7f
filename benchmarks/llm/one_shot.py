"""One-shot pruning of SmolLM2-135M: perplexity of what was saved, loaded anew in a clean process.

Experiment ``one_shot``; cases ``LIBRARY/METHOD/PATTERN`` and ``dense``; metrics ``perplexity`` (60 windows of 512
tokens of BBC news, each on its own, that no method has seen) and ``sparsity``, the share of zeros in the linear layers
of the decoder blocks, in percent. All methods get the same 64 windows of 512 other tokens. ``plain`` are the papers'
loops written out in `_plain`, ``llmcompressor`` is the peer. Only those linear layers are pruned. That ADMM stands
behind ``admm+dense_targets``, and its damping, were chosen with eight of the 60 windows in view: it is no blind test.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import _subject

from _rows import Figure

BEST = "admm+dense_targets"
PATTERNS = ("50%", "2:4", "70%", "60%")
OURS = {
    "50%": ("sparsegpt", "wanda", "magnitude", BEST, "admm", "alps", "ria", "wanda+dsnot", "sparsegpt+owl"),
    "2:4": ("sparsegpt", "wanda", "magnitude", BEST, "admm", "ria"),
    "70%": ("sparsegpt", BEST, "admm", "alps", "sparsegpt+owl", "wanda"),
    "60%": ("sparsegpt", "wanda", "magnitude", BEST),
}
COMMANDS = {"secateur": _subject.ours, "plain": _subject.plain, "llmcompressor": _subject.peers}
SCRIPTS = {"secateur": ("_ours",), "plain": ("_plain",), "llmcompressor": ("_peer",)}


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("_subject", "_data", "_judge", *SCRIPTS.get(part.partition("/")[0], ()))


def figures_of(case: str, command: Callable[..., list[object]] | None, method: str, pattern: str) -> list[Figure]:
    """Prune with a command (None: leave it dense), judge."""
    folder = _subject.dense()
    if command is not None:
        folder = _subject.fresh(case)
        _subject.run(command(_subject.dense(), _subject.calibration_file(), method, pattern, folder))
    found = _subject.perplexity_of(folder)
    if command is not None:
        _subject.fresh(case)  # half a gigabyte each
    sparsity = Figure(case, "sparsity", 100 * found["sparsity"], "%")
    return [Figure(case, "perplexity", found["perplexity"]), sparsity]


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a method and pattern."""
    wanted = [("secateur", method, pattern) for pattern in PATTERNS for method in OURS[pattern]]
    wanted += [("plain", m, p) for p in ("50%", "2:4") for m in ("magnitude", "wanda", "sparsegpt")]
    wanted += [("plain", "sparsegpt", "70%")]
    wanted += [("llmcompressor", m, p) for p in ("50%", "2:4") for m in ("wanda", "sparsegpt")]
    if quick:
        wanted = [("secateur", "wanda", "2:4"), ("plain", "sparsegpt", "50%")]
    out = {"dense": functools.partial(figures_of, "dense", None, "", "")}
    for library, method, pattern in wanted:
        case = f"{library}/{method}/{pattern}"
        out[case] = functools.partial(figures_of, case, COMMANDS[library], method, pattern)
    return out
