"""Products of float32 matrices by torch's own library and by `secateur.products`, in turns, on one thread.

Experiment ``products``; cases ``ROWSxINPUTSxOUTPUTS``, layers of SmolLM2-135M on 4096 tokens, and ``second_moment`` of
1536 inputs; metrics ``own_gflops`` and ``gflops`` (multiplications and additions, as if all were done, over the median
seconds), and ``ratio`` of seconds to torch's own. Where torch's own are used anyway the ratio is 1.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from _rows import Figure
from secateur.products import fast
from secateur.solve.gram import GramSum

SHAPES = ((4096, 576, 576), (4096, 576, 1536), (4096, 1536, 576))


def recipe(part: str) -> tuple[str, ...]:
    """Files that state how a part is made."""
    return ("products",)


def figures_of(case: str, work: Callable[[], object], operations: float, turns: int) -> list[Figure]:
    """Seconds of both, in turns."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"own": [], "fast": []}
    for _ in range(turns + 1):  # the first warms up
        for way, within in (("own", nullcontext), ("fast", fast)):
            with torch.no_grad(), within():
                start = time.perf_counter()
                work()
                seconds[way].append(time.perf_counter() - start)
    own, ours = (statistics.median(seconds[way][1:]) for way in ("own", "fast"))
    return [
        Figure(case, "own_gflops", operations / own / 1e9, "GFLOP/s"),
        Figure(case, "gflops", operations / ours / 1e9, "GFLOP/s"),
        Figure(case, "ratio", ours / own),
    ]


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a shape."""
    turns, found = (3 if quick else 25), {}
    for n, d, m in SHAPES:
        case, x, w = f"{n}x{d}x{m}", torch.randn(n, d), torch.randn(m, d)
        found[case] = functools.partial(figures_of, case, functools.partial(F.linear, x, w), 2.0 * n * d * m, turns)
    sums, rows = GramSum.zeros(1536), torch.randn(4096, 1536)
    add = functools.partial(sums.add_, rows)
    return {**found, "second_moment": functools.partial(figures_of, "second_moment", add, 2.0 * 4096 * 1536**2, turns)}
