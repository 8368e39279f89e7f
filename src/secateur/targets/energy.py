"""Energy as a cost: joules of one run of an artefact, dense and cut in turns, measured or estimated."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import nn

from secateur.errors import BudgetError, TargetError
from secateur.graph.couple import Groups
from secateur.graph.shells import no_garbage_collection
from secateur.targets.latency import latency
from secateur.targets.measure import NOISY
from secateur.targets.memory import latency_key, recall, remember
from secateur.targets.meters import Meter, Reading, find_counter, find_meter
from secateur.types import Artefact, Cost, Example, Floats, Keep, Target

BLOCKS = 9
"""Blocks of runs of each artefact."""
EXTRA_SETS = 3
"""A disturbed machine gets up to this many times the blocks asked for."""


@dataclass(frozen=True, eq=False)
class Energy:
    """Joules of one run of an artefact, gross: idle power and whatever else ran are in it.

    Attributes:
        target: name of the runtime. joules: float64 (blocks,): of one run, block by block in the order taken.
        seconds: float64 (blocks,): of one run likewise. runs: how many a block has.
        meter: where the joules come from. threads, batch: as in `Measurement`.
        apart: other parts that the meter told, such as ``DRAM``, like ``joules`` and not in them.
    """

    target: str
    joules: Floats
    seconds: Floats
    runs: int
    meter: Meter
    threads: int = 1
    batch: int = 1
    apart: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median over blocks, joules a run."""
        return float(np.median(self.joules))

    @property
    def watts(self) -> float:
        """Median power over blocks."""
        return float(np.median(self.joules / self.seconds))

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median: the relative noise of one block."""
        low, high = np.percentile(self.joules, [25, 75])
        return float((high - low) / 2 / self.median)

    @property
    def note(self) -> str:
        """What disturbed it, or ``""``."""
        n = self.joules.size
        return f"disturbed: joules spread by {self.spread:.0%} over {n} blocks" if self.spread > NOISY else ""


def measure_energy(
    artefacts: Sequence[Artefact],
    meter: Meter,
    blocks: int = BLOCKS,
    window: float | None = None,
    clock: Callable[[], float] = perf_counter,
) -> list[Energy]:
    r"""Joules of one run of each artefact, against each other in one session.

    A block runs one artefact so often that it lasts a window, and counts $E = \Delta J / runs$. Blocks take turns, and
    the order rotates, so that drift of the machine falls on all alike. Where blocks spread by more than 10 %, up to
    three times as many are taken; where they still do at the end, `Energy.note` says so.

    Args:
        artefacts: what to run.
        meter: where joules come from.
        blocks: of each artefact.
        window: seconds that a block lasts at least; the meter's own unless given.
        clock: seconds.

    Raises:
        TargetError: nothing to measure, no blocks, or a counter that does not move.

    Example:
        >>> import torch
        >>> from secateur.targets.eager import build
        >>> from secateur.targets.meters import watts
        >>> (found,) = measure_energy([build(nn.Linear(3, 2), torch.ones(1, 3), 1)], watts(15), blocks=3)
        >>> found.joules.size >= 3, found.watts > 14.9
        (True, True)
    """
    if not artefacts or blocks < 1:
        raise TargetError(f"energy: give at least one artefact and one block, got {len(artefacts)} and {blocks}")
    window = meter.window if window is None else window
    runs = [_runs(a, window, clock) for a in artefacts]
    taken: list[list[tuple[float, Reading]]] = [[] for _ in artefacts]
    gc.collect()
    with no_garbage_collection(), meter.open() as read:
        for _ in range(EXTRA_SETS):
            for block in range(blocks):
                for i in range(len(artefacts)):
                    at = (block + i) % len(artefacts)
                    taken[at].append(_block(artefacts[at], runs[at], read, clock))
            found = [_energy(a, n, t, meter) for a, n, t in zip(artefacts, runs, taken, strict=True)]
            if max(e.spread for e in found) <= NOISY:
                break
    return found


def _runs(artefact: Artefact, window: float, clock: Callable[[], float]) -> int:
    """How many runs last a window, from as many as last a tenth of it; they warm up too."""
    artefact.run()
    count = 1
    while True:
        begun = clock()
        for _ in range(count):
            artefact.run()
        seconds = clock() - begun
        if seconds >= window / 10 or count >= 2**20:
            return max(1, math.ceil(window * count / seconds)) if seconds > 0 else count
        count *= 2


def _block(
    artefact: Artefact, runs: int, read: Callable[[], Reading], clock: Callable[[], float]
) -> tuple[float, Reading]:
    before, begun = read(), clock()
    for _ in range(runs):
        artefact.run()
    seconds, after = clock() - begun, read()
    return seconds, {part: after[part] - before[part] for part in before}


def _energy(artefact: Artefact, runs: int, taken: Sequence[tuple[float, Reading]], meter: Meter) -> Energy:
    first, *others = taken[0][1]
    parts = {part: np.array([joules[part] for _, joules in taken]) / runs for part in (first, *others)}
    if parts[first].min() <= 0:
        raise TargetError(
            f"energy: {meter.source} did not move over a block of {runs} runs of {artefact.target}: give a longer "
            "window, or another meter such as secateur.targets.meters.watts(15)"
        )
    seconds = np.array([s for s, _ in taken]) / runs
    apart = {part: parts[part] for part in others}
    return Energy(artefact.target, parts[first], seconds, runs, meter, artefact.threads, artefact.batch, apart)


def counter_for(model: nn.Module) -> Meter:
    """What measures joules where a model lies.

    Raises:
        BudgetError: nothing does, so that no energy can be a budget; says what was looked for, and what to do.
    """
    try:
        return find_counter(device_of(model))
    except TargetError as e:
        raise BudgetError(
            f"energy can be a budget only where a counter measures it: {e}. Or set a budget on latency"
        ) from e


def device_of(model: nn.Module) -> torch.device:
    """Where a model lies, by its first tensor."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def energy(
    model: nn.Module, example: Example, target: Target, meter: Meter | None = None, *, blocks: int = BLOCKS
) -> Cost:
    r"""Median joules of one run of the exported model on the target.

    ``dense`` is measured (see `measure_energy`). ``of`` predicts in proportion to the predicted latency:
    $E = E_{dense}\, t / t_{dense}$. ``measured`` exports a cut model and runs it in turns with the dense one: the
    median over blocks of the ratio of the two, times the dense figure. Measured figures are remembered as those of
    `latency` are. Where the meter only estimates, ``measured`` is None, and `Budget` refuses the cost.

    Args:
        model: the dense model.
        example: what it runs on, batch size included.
        target: the runtime.
        meter: where joules come from; `find_meter` of the model's device unless given.
        blocks: of each model a measurement.

    Raises:
        TargetError: the runtime is missing or refuses the model, or there is no source of joules.

    Example:
        >>> import torch, secateur as sc
        >>> from secateur.targets.meters import watts
        >>> cost = energy(nn.Linear(4, 2), torch.zeros(1, 4), sc.eager, watts(15))
        >>> cost.name, cost.unit, cost.dense > 0, cost.meter.label
        ('energy', 'J', True, 'estimated: 15 W as stated, times seconds')
    """
    found = find_meter(device_of(model)) if meter is None else meter
    timed = latency(model, example, target)
    assert timed.build is not None
    metered = _Metered(model, example, target, blocks, timed.build, found)
    dense = metered.dense()

    def of(groups: Groups, keep: Keep) -> float:
        return dense * timed.of(groups, keep) / timed.dense

    return Cost(
        "energy", "J", dense, of, timed.build, metered.joules if found.measured else None, target, example, found
    )


@dataclass(frozen=True, eq=False)
class _Metered:
    """Meters cut models against the dense one."""

    model: nn.Module
    example: Example
    target: Target
    blocks: int
    built: Callable[[nn.Module], Artefact]
    meter: Meter

    def dense(self) -> float:
        key = self._key(self.model)
        known = recall(key)
        if known is None:
            known = measure_energy([self.built(self.model)], self.meter, self.blocks)[0].median
            remember(key, known)
        return known

    def joules(self, small: nn.Module, again: bool = False) -> float:
        key = f"{'second ' if again else ''}paired ratio of {self._key(small)} to {self._key(self.model)}"
        known = recall(key)
        if known is None:
            pair = [self.built(self.model), self.built(small)]
            whole, cut = measure_energy(pair, self.meter, self.blocks)
            known = float(np.median(cut.joules / whole.joules))
            remember(key, known)
        return self.dense() * known

    def _key(self, model: nn.Module) -> str:
        return f"joules by {self.meter.source} of {latency_key(model, self.example, self.target)}"


if __name__ == "__main__":
    from secateur.targets.eager import eager

    wide = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
    from secateur.targets.meters import watts

    (run,) = measure_energy([eager.build(wide, torch.randn(8, 256), 1)], watts(15))
    print(f"{run.median * 1e3:.3f} mJ a run, {run.meter.label}, spread {run.spread:.1%} over {run.joules.size} blocks")
