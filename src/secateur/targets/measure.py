"""Timing that can be trusted: interleaved rounds, medians, and a comparison that refuses to sell noise."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from torch import nn

from secateur.errors import TargetError
from secateur.graph.shells import no_garbage_collection
from secateur.types import Artefact, Elsewhere, Example, Floats, Measurement, Target

NOISY = 0.10
"""Spread above which the machine counts as disturbed and more rounds are taken."""
EXTRA_BLOCKS = 4
"""A disturbed machine gets up to this many times the rounds asked for."""
MAX_BLOCKS = 40
"""Quick models get up to this many times the rounds, until ``min_seconds`` is spent on each."""
EXTRA_SECONDS = 60.0
"""No rounds beyond those asked for are begun after this time."""
FLOOR = 0.01
"""Smallest change that counts, however quiet the machine."""
FEWEST = 10
"""Rounds below which nothing is said about significance."""


def measure(
    artefacts: Sequence[Artefact],
    repeats: int = 50,
    warmup: int = 5,
    min_seconds: float = 0.2,
    peak: bool = False,
) -> list[Measurement]:
    """Time artefacts against each other in one run.

    Every round runs each artefact once, and the order rotates (A B C, B C A, ...), so that drift of the
    machine and what a predecessor left in the caches fall on all alike. The garbage collector is off
    meanwhile. It never stops before ``repeats`` rounds; it goes on, by whole multiples of them, while less
    than ``min_seconds`` were spent on an artefact, or while timings spread by more than 10 %. Where they
    still do at the end, `Measurement.note` says so.

    Args:
        artefacts: what to run; several targets may be mixed. Those of one remote device are timed there, by its
            clock; nothing else can take turns with them.
        repeats: rounds.
        warmup: runs before them, untimed.
        min_seconds: least time spent on each artefact.
        peak: also fill `Measurement.peak_bytes`, where the target can tell; a fresh process for each file.

    Raises:
        TargetError: nothing to measure, or ``repeats`` below 1 or ``warmup`` below 0, or artefacts of several machines.

    Example:
        >>> import torch
        >>> from secateur.targets.eager import build
        >>> net = build(torch.nn.Linear(3, 2), torch.ones(1, 3), 1)
        >>> [m.seconds.size >= 5 for m in measure([net, net], repeats=5, min_seconds=0)]
        [True, True]
    """
    if not artefacts or repeats < 1 or warmup < 0:
        given = f"{len(artefacts)} artefacts, repeats={repeats}, warmup={warmup}"
        raise TargetError(f"measure: give at least one artefact, repeats >= 1, warmup >= 0; got {given}")
    there = _elsewhere(artefacts)
    if there:
        taken = there[0].timings([e.job for e in there], repeats, warmup, min_seconds)
    else:
        taken = timings(artefacts, repeats, warmup, min_seconds)
    return [_measurement(a, np.array(t), peak) for a, t in zip(artefacts, taken, strict=True)]


def _elsewhere(artefacts: Sequence[Artefact]) -> list[Elsewhere]:
    """Where all of them run, none where that is here."""
    there = [a.elsewhere for a in artefacts if a.elsewhere is not None]
    if there and (len(there) < len(artefacts) or any(e.place != there[0].place for e in there)):
        names = ", ".join(dict.fromkeys(a.target for a in artefacts))
        raise TargetError(
            f"measure: {names} are on different machines, so they cannot take turns in one run: measure those of "
            "each machine in a call of their own"
        )
    return there


def timings(artefacts: Sequence[Artefact], repeats: int, warmup: int, min_seconds: float) -> list[list[float]]:
    """Seconds of each artefact, round by round, as `measure` takes them: here, by this machine's clock."""
    for a in artefacts:
        for _ in range(warmup):
            a.run()
    taken: list[list[float]] = [[] for _ in artefacts]
    begun = perf_counter()
    gc.collect()
    with no_garbage_collection():
        for block in range(1, MAX_BLOCKS + 1):
            _rounds(artefacts, taken, repeats)
            enough = min(map(sum, taken)) >= min_seconds
            calm = block >= EXTRA_BLOCKS or max(map(_spread, taken)) <= NOISY
            if (enough and calm) or perf_counter() - begun > EXTRA_SECONDS:
                break
    return taken


def _rounds(artefacts: Sequence[Artefact], taken: list[list[float]], repeats: int) -> None:
    count = len(artefacts)
    for _ in range(repeats):
        start = len(taken[0]) % count
        for i in range(count):
            at = (start + i) % count
            run = artefacts[at].run
            begun = perf_counter()
            run()
            taken[at].append(perf_counter() - begun)


def _spread(seconds: list[float]) -> float:
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / 2 / median) if median else 0.0


def _measurement(artefact: Artefact, seconds: Floats, peak: bool) -> Measurement:
    bytes_at_peak = artefact.peak() if peak and artefact.peak is not None else None
    return Measurement(
        artefact.target,
        seconds,
        artefact.threads,
        artefact.batch,
        artefact.nbytes,
        bytes_at_peak,
        _note(seconds),
        artefact.load_seconds,
    )


def _note(seconds: Floats) -> str:
    spread = _spread(seconds.tolist())
    return f"disturbed: timings spread by {spread:.0%} over {seconds.size} rounds" if spread > NOISY else ""


def measure_models(
    target: Target, models: Sequence[nn.Module], example: Example, repeats: int = 50, peak: bool = False
) -> list[Measurement]:
    """Build models on a target and time them against each other in one run.

    Raises:
        TargetError: as `measure` and the target's ``build``.
    """
    return measure([target.build(m, example, target.threads) for m in models], repeats, peak=peak)


@dataclass(frozen=True)
class Speedup:
    """How the time of a pruned model compares with the dense model's.

    Attributes:
        ratio: median time, pruned over dense.
        low: lower end of its 95 % interval.
        high: upper end of it.
        rounds: how many it rests on.
        noise: relative noise of one timing, the larger `Measurement.spread` of the two.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    noise: float = 0.0

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1 and the change exceeds the noise of one timing, and 1 %.

        More rounds narrow the interval but not the second bound: two builds of one model differ for as long
        as they live, from where their memory lies, and on a busy machine by more than the interval tells.
        """
        apart = self.high < 1 or self.low > 1
        change = max(self.ratio, 1 / self.ratio) - 1
        return self.rounds >= FEWEST and apart and change > max(FLOOR, self.noise)

    def words(self) -> str:
        """One clause for a report; a change within noise is never called a gain.

        Example:
            >>> Speedup(0.505, 0.493, 0.518, 50).words()
            '1.98x faster (1.93-2.03)'
            >>> Speedup(0.99, 0.95, 1.03, 50).words()
            'no gain measurable: 1.01x is within noise (0.97-1.05)'
            >>> Speedup(0.95, 0.93, 0.97, 50, noise=0.1).words()
            'no gain measurable: 1.05x (1.03-1.08) is less than the noise of one timing, 10%'
            >>> Speedup(1.2, 1.15, 1.26, 50).words()
            '1.20x slower (1.15-1.26)'
        """
        interval = f"{1 / self.high:.2f}-{1 / self.low:.2f}"
        if self.rounds < FEWEST:
            return f"no gain measurable: {self.rounds} rounds are too few to tell, take {FEWEST} or more"
        if self.low <= 1 <= self.high:
            return f"no gain measurable: {1 / self.ratio:.2f}x is within noise ({interval})"
        if not self.significant:
            least = max(FLOOR, self.noise)
            return (
                f"no gain measurable: {1 / self.ratio:.2f}x ({interval}) is less than the noise "
                f"of one timing, {least:.0%}"
            )
        if self.ratio < 1:
            return f"{1 / self.ratio:.2f}x faster ({interval})"
        return f"{self.ratio:.2f}x slower ({self.low:.2f}-{self.high:.2f})"


def compare(dense: Measurement, pruned: Measurement, seed: int = 0, resamples: int = 2000) -> Speedup:
    r"""Ratio of the medians with a 95 % interval, from rounds that ran both.

    $r = \mathrm{median}(t_{pruned}) / \mathrm{median}(t_{dense})$; the interval goes from the 2.5 to the 97.5
    percentile of $r$ over resampled rounds. Rounds keep their pairs, and are drawn in runs of about
    $n^{1/3}$, since neighbours are alike: the block bootstrap on a ring (Künsch, The jackknife and the
    bootstrap for general stationary observations, 1989; Politis and Romano, A circular block-resampling
    procedure for stationary data, 1992).

    Raises:
        TargetError: the two were not taken in one run, or differ in target, threads or batch.

    Example:
        >>> dense = Measurement("clock", np.linspace(1.0, 1.02, 30), 1, 1)
        >>> compare(dense, Measurement("clock", dense.seconds / 2, 1, 1)).ratio
        0.5
    """
    for what in ("target", "threads", "batch"):
        a, b = getattr(dense, what), getattr(pruned, what)
        if a != b:
            raise TargetError(f"compare: {what} of the dense model is {a!r}, of the pruned one {b!r}: measure alike")
    n = dense.seconds.size
    if n != pruned.seconds.size or n == 0:
        raise TargetError(f"compare: {n} rounds against {pruned.seconds.size}: time both in one call of measure")
    rng = np.random.default_rng(seed)
    block = math.ceil(n ** (1 / 3))
    ratios: list[Floats] = []
    chunk = max(1, 1_000_000 // n)
    for first in range(0, resamples, chunk):
        starts = rng.integers(0, n, (min(chunk, resamples - first), math.ceil(n / block)))
        rounds = ((starts[..., None] + np.arange(block)) % n).reshape(len(starts), -1)[:, :n]
        ratios.append(np.median(pruned.seconds[rounds], axis=1) / np.median(dense.seconds[rounds], axis=1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    ratio = pruned.median / dense.median
    noise = max(dense.spread, pruned.spread)
    return Speedup(ratio, min(float(low), ratio), max(float(high), ratio), n, noise)


def _demo() -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    from secateur.targets.eager import eager
    from secateur.targets.onnxruntime import onnxruntime

    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 256))

    table = Table("target", "model", "median", "p95", "spread", "threads", "peak", "against dense")
    for target in (eager, onnxruntime):
        dense, half = measure_models(target, [mlp(2048), mlp(1024)], torch.randn(8, 256), peak=True)
        for name, m in (("dense", dense), ("half", half)):
            peak = "" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:.1f} MB"
            times = [f"{m.median * 1e3:.3f} ms", f"{m.p95 * 1e3:.3f} ms", f"{m.spread:.1%}"]
            words = compare(dense, half).words() if m is half else ""
            table.add_row(m.target, name, *times, str(m.threads), peak, words)
    Console(width=120).print(table)


if __name__ == "__main__":
    _demo()
