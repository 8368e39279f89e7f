"""The dense pass: the order of a block's units, the error of every count, and what cuts cost the predictions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from secateur.graph.couple import Groups
from secateur.llm.live import Live
from secateur.llm.shrink.effect import Effects
from secateur.llm.shrink.ladder import Ladder, ladder
from secateur.llm.shrink.refit import Kept, make_up_
from secateur.llm.shrink.units import Family, kept_columns, within
from secateur.llm.shrink.width import channel_scores
from secateur.score.calibrate import Moment, moments
from secateur.types import Bools, Criterion, Group


@dataclass(frozen=True, eq=False)
class Surveyor:
    """What is done in every block of the dense pass; as a work of the stream it returns a row.

    Attributes:
        families: of all blocks. criterion: ranks units. stats: what it needs beside the inputs' moments, or None.
        damping: of least squares. refit: whether what stays makes up for what goes.
        effects: measures what cuts cost, on batches that least squares are not fitted on where there are more; or None.
        levels: parts of each family that are cut to measure.
        drops: whether to measure each block's absence. stream: the channels of the residual stream, to be scored too.
    """

    families: Sequence[Family]
    criterion: Criterion
    stats: Any = None
    damping: float = 1e-2
    refit: bool = True
    effects: Effects | None = None
    levels: Sequence[float] = (0.25, 0.6)
    drops: bool = True
    stream: Group | None = None

    def __call__(self, live: Live) -> dict[str, Any]:
        """Ladders of the block's families by name: ``order``, ``errors``, ``scores``; and scores of ``channels``."""
        mine = [f for f in self.families if f.block == live.index]
        stream = None if self.stream is None else within(self.stream, live.path)
        seen = moments_of(live, mine, [] if stream is None else [stream], self._fitted(len(live)))
        found = {
            f.name: ladder(live.module, f, seen, self.criterion, self.stats, self.damping, self.refit) for f in mine
        }
        if self.effects is not None:
            self.effects.step(live, self._changed(live, found, seen))
        ladders = {
            n: {"order": x.order.tolist(), "errors": x.errors.tolist(), "scores": x.scores.tolist()}
            for n, x in found.items()
        }
        scored = {} if stream is None else {"channels": channel_scores(live.module, stream, seen).tolist()}
        return {"ladders": ladders, **scored}

    def _fitted(self, batches: int) -> range:
        """Which batches least squares are fitted on: there, a cut seems to cost less than it does."""
        held = 0 if self.effects is None else self.effects.batches
        return range(held if held < batches else 0, batches)

    def _changed(
        self, live: Live, found: Mapping[str, Ladder], seen: Mapping[str, Moment]
    ) -> Iterator[tuple[str, nn.Module | None]]:
        """What is tried out in the block's place, one copy of it at a time."""
        if self.drops:
            yield f"{live.index}/drop", None
        for f in self.families:
            for kept in probes(f.units, self.levels) if f.name in found else ():
                chosen = [(f, found[f.name].keep(kept))]
                small = masked(live.module, chosen, seen, self.damping if self.refit else None)
                yield f"{live.index}/{f.name}@{kept}", small


def probes(units: int, levels: Sequence[float]) -> list[int]:
    """How many units are kept where a family's effect is measured, descending; a family of one is not cut.

    Example:
        >>> probes(3, (0.25, 0.6)), probes(1536, (0.25, 0.6)), probes(1, (0.25,))
        ([2, 1], [1152, 614], [])
    """
    return sorted({units - max(1, round(level * units)) for level in levels} - {0}, reverse=True)


def ladder_of(row: Mapping[str, Any]) -> Ladder:
    """A ladder from its row."""
    return Ladder(np.array(row["order"], np.int64), np.array(row["errors"], float), np.array(row["scores"], float))


def moments_of(
    live: Live, families: Sequence[Family], more: Sequence[Group] = (), numbers: Iterable[int] | None = None
) -> dict[str, Moment]:
    """Second moments of what the families' consumers are fed, by their names in the block; and those of more groups.

    ``numbers``: of the batches that they are taken over, all by default.
    """
    if not families and not more:
        return {}
    batches = (live.calls[i].named(live.module, live.hidden[i]) for i in numbers or range(len(live)))
    groups: Groups = [*more, *(f.local for f in families)]  # type: ignore[assignment]  # their slices are looked at
    return moments(live.module, batches, groups, warn=live.index == 0)  # blocks are alike


def kept_of(chosen: Sequence[tuple[Family, Bools]], block: nn.Module, every: bool = False) -> dict[str, Kept]:
    """Consumers in a block that lose inputs, or every one."""
    named, found = dict(block.named_parameters()), dict[str, Kept]()
    for family, keep in chosen:
        for name, (dim, _) in family.consumers().items() if every or not keep.all() else ():
            columns = kept_columns(family, keep, name, named[name].shape[dim])
            if name in found:
                columns = columns & found[name].columns
            found[name] = Kept(dim, columns)
    return found


def masked(
    block: nn.Module, chosen: Sequence[tuple[Family, Bools]], seen: Mapping[str, Moment], damping: float | None
) -> nn.Module:
    """A copy of a block without some units; the rest made to make up for them, by their means alone if None."""
    small = copy.deepcopy(block)
    make_up_(small, kept_of(chosen, block), seen, damping)
    return small
