"""How long it takes to choose a tenth of a hundred million weights of twenty tensors, and how much memory beside them.

Each case runs in a process of its own, so that the peak memory is its own. ``kept_over_asked`` is 1 where just as many
were chosen as asked for; half of the scores come from a coarse grid, as ties do in practice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Row = tuple[str, str, float, str, int | str | None]

TENSORS, EACH, SPARSITY = 20, 5_000_000, 0.9
THREADS = 2


def ours(scores: dict[str, Tensor], keep: int) -> list[Tensor]:
    """Masks of the best of all, by this library."""
    from secateur.choose.density import ranked, select

    return list(select(scores, SPARSITY, density=ranked).values())


def kthvalue(scores: dict[str, Tensor], keep: int) -> list[Tensor]:
    """A threshold from ``torch.kthvalue`` over all in one, and what reaches it."""
    whole = torch.cat([s.reshape(-1) for s in scores.values()])
    edge = whole.kthvalue(whole.numel() - keep + 1).values
    del whole
    return [s >= edge for s in scores.values()]


def partition(scores: dict[str, Tensor], keep: int) -> list[Tensor]:
    """A threshold from ``numpy.partition`` over all in one, and what reaches it."""
    whole = np.concatenate([s.numpy().reshape(-1) for s in scores.values()])
    whole.partition(whole.size - keep)
    edge = float(whole[whole.size - keep])
    del whole
    return [s >= edge for s in scores.values()]


def stable_sort(scores: dict[str, Tensor], keep: int) -> list[Tensor]:
    """The definition: a stable sort of all in one."""
    whole = torch.cat([s.reshape(-1) for s in scores.values()])
    mask = torch.zeros(whole.numel(), dtype=torch.bool)
    mask[whole.sort(descending=True, stable=True).indices[:keep]] = True
    return [
        m.reshape(s.shape)
        for m, s in zip(mask.split([s.numel() for s in scores.values()]), scores.values(), strict=True)
    ]


CASES: dict[str, Callable[[dict[str, Tensor], int], list[Tensor]]] = {
    "secateur": ours,
    "torch.kthvalue threshold": kthvalue,
    "numpy.partition threshold": partition,
    "stable sort": stable_sort,
}


def rows(quick: bool) -> list[Row]:
    """(case, metric, value, unit, seed): seconds, extra peak memory over the scores' bytes, count kept over asked."""
    each = 5_000 if quick else EACH
    out: list[Row] = []
    for case in CASES:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        command = [sys.executable, str(Path(__file__).resolve()), case, str(each)]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found = json.loads(told.splitlines()[-1])
        out += [(case, metric, found[metric], unit, 0) for metric, unit in UNITS.items()]
    return out


UNITS = {"seconds": "s", "peak_ratio": "", "kept_over_asked": ""}


class Peak:
    """The most memory that the process held while the block ran, in bytes beyond what it held before."""

    def __enter__(self) -> Peak:
        self.before = self.most = _resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, _resident())

    def __exit__(self, *_: object) -> None:
        self.most = max(self.most, _resident())
        self.done.set()
        self.thread.join()

    @property
    def extra(self) -> int:
        """Bytes."""
        return self.most - self.before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(case: str, each: int) -> dict[str, float]:
    """One case, timed twice: the quicker of two runs."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for i in range(TENSORS):
        s = torch.randn(each, generator=generator).abs_()
        scores[str(i)] = s if i % 2 else s.mul_(64).round_().div_(64)
    total = TENSORS * each
    keep = total - round(SPARSITY * total)
    CASES[case]({"warm": torch.rand(1000)}, 100)
    seconds = []
    with Peak() as peak:
        for _ in range(2):
            start = time.perf_counter()
            masks = CASES[case](scores, keep)
            seconds.append(time.perf_counter() - start)
            kept = sum(int(m.sum()) for m in masks)
            del masks
    return {"seconds": min(seconds), "peak_ratio": peak.extra / (4 * total), "kept_over_asked": kept / keep}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
