"""What units and blocks weigh, compute, cache and take: told by cutting one of each sort off a hollow model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.atomic import write_bytes
from secateur.choose.depth import drop_layers
from secateur.choose.plan import make_plan
from secateur.digest import digest_of
from secateur.errors import CoupleError, PlanError
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.rules import RESIDUAL_RULES, RULES
from secateur.graph.surgery import apply
from secateur.llm.blocks import blocks_of
from secateur.llm.recording import Recorder
from secateur.llm.shrink.hollow import Meter, hollow, prompt, tokens_of
from secateur.llm.shrink.options import Price
from secateur.llm.shrink.tail import Tail
from secateur.llm.shrink.units import Family, families, stream_of
from secateur.llm.source import Source
from secateur.targets.measure import measure
from secateur.types import Bools, Floats, Group, Ints, Plan, Target


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A language model taken apart on paper.

    Attributes:
        source: its weights. skeleton: the module without them. empty: a hollow copy that runs.
        paths: of its blocks. groups: what goes together. families: those inside of one block, of the kinds asked for.
        stream: the channels of the residual stream, where they were asked for. channels: which of them every plan
            keeps, bool (units,); None: all.
    """

    source: Source
    skeleton: nn.Module
    empty: nn.Module
    paths: tuple[str, ...]
    groups: Groups
    families: Sequence[Family]
    stream: Group | None = None
    channels: Bools | None = None

    @classmethod
    def of(cls, source: Source, kinds: Sequence[str], window: int = 16, width: bool = False) -> Anatomy:
        """Record and couple a model without its weights.

        Args:
            width: whether the residual stream may become narrower.

        Raises:
            TraceError: it has no blocks, or does not run on tokens. CoupleError: no stream that could be narrower.
        """
        skeleton = source.skeleton()
        empty, paths = hollow(skeleton), blocks_of(skeleton)
        groups = couple(trace(empty, tokens_of(window)), RESIDUAL_RULES if width else RULES)
        stream = stream_of(groups, paths) if width else None
        return cls(source, skeleton, empty, paths, groups, families(groups, paths, kinds), stream)

    def narrowed(self, channels: Bools) -> Anatomy:
        """The same, of which every plan keeps these channels of the residual stream, bool (units,)."""
        return replace(self, channels=channels)

    @property
    def name(self) -> str:
        """Of the class."""
        return type(self.skeleton).__name__

    def cut(
        self, keep: Mapping[str, Bools], dropped: Sequence[int] = (), made: Mapping[str, Any] | None = None
    ) -> Plan:
        """The plan of a choice of units and blocks.

        Raises:
            PlanError: blocks cannot be dropped, or not together with these units.
        """
        if self.stream is not None and self.channels is not None:
            keep = {**keep, self.stream.name: self.channels}
        plan = make_plan(self.groups, keep, made)
        if not dropped:
            return plan
        return drop_layers(self.empty, tokens_of(8), [self.paths[b] for b in dropped], plan)

    def signature(self, block: int) -> str:
        """What blocks that are alike have in common: names and shapes."""
        module = self.skeleton.get_submodule(self.paths[block])
        return " ".join(f"{n}{tuple(t.shape)}" for n, t in module.state_dict().items())

    def kind_of(self, family: Family) -> str:
        """What families that are alike have in common: their block's signature and what they take."""
        mine = [(s.name, s.dim, s.index.shape) for s in family.local.slices]
        return f"{self.signature(family.block)} {mine}"


def droppable(anatomy: Anatomy) -> Bools:
    """Which blocks can go, tried one of each sort, bool (blocks,)."""
    known: dict[str, bool] = {}
    for b in range(len(anatomy.paths)):
        if (sort := anatomy.signature(b)) not in known:
            known[sort] = _dropped(anatomy, b) is not None
    return np.array([known[anatomy.signature(b)] for b in range(len(anatomy.paths))])


def priced(
    anatomy: Anatomy, counts: Mapping[str, Ints], name: str, unit: str, meter: Meter, limit: Callable[[float], float]
) -> Price:
    """A price that is a sum over units: what one unit of each sort saves, and one block of each sort.

    Args:
        counts: offered, by family. meter: measures hollow models. limit: ``dense -> what is asked``.

    Time: one cut, and one measurement, a sort.
    """
    dense = whole = meter(anatomy.empty)
    if anatomy.channels is not None:
        whole = meter(hollow(apply(anatomy.cut({}), anatomy.skeleton)))
    units: dict[str, float] = {}
    saved: dict[str, Floats] = {}
    for f in (f for f in anatomy.families if f.name in counts):
        if (sort := anatomy.kind_of(f)) not in units:
            step = f.group.multiple
            keep = np.arange(f.units) < f.units - step
            small = apply(anatomy.cut({f.name: keep}), anatomy.skeleton) if keep.any() else None
            units[sort] = 0.0 if small is None else (whole - meter(hollow(small))) / step
        saved[f.name] = units[sort] * (f.units - counts[f.name]).astype(float)
    blocks: dict[str, float] = {}
    for b in range(len(anatomy.paths)):
        if (sort := anatomy.signature(b)) not in blocks:
            plan = _dropped(anatomy, b)
            blocks[sort] = 0.0 if plan is None else whole - meter(hollow(apply(plan, anatomy.skeleton)))
    dropped = np.array([blocks[anatomy.signature(b)] for b in range(len(anatomy.paths))])
    return Price(name, unit, dense, saved, dropped, limit(dense), meter, dense - whole)


def _dropped(anatomy: Anatomy, block: int) -> Plan | None:
    try:
        return anatomy.cut({}, [block])
    except (PlanError, CoupleError):
        return None


@dataclass(frozen=True)
class Timed:
    """A budget of time, which is another whenever it is taken.

    Attributes:
        name: ``prefill`` or ``decode``. part: of the dense time that is asked for. tokens: of a pass. target: of it.
    """

    name: str
    part: float
    tokens: int
    target: Target

    def __call__(self, anatomy: Anatomy, offered: Mapping[str, Ints], notes: Path) -> Price:
        """The price, as it stands in a folder of notes, where it was taken before; else it is taken, and noted."""
        about = f"{anatomy.source.identity()} {self.name} {self.target.name}"
        counts = [(name, torch.from_numpy(n)) for name, n in offered.items()]
        if anatomy.channels is not None:
            counts.append(("channels", torch.tensor(int(anatomy.channels.sum()))))
        file = notes / f"{digest_of([(about, torch.tensor(self.tokens)), *counts])}.json"
        if not file.is_file():
            price = self._taken(anatomy, offered)
            saved = {name: line.tolist() for name, line in price.saved.items()}
            notes.mkdir(parents=True, exist_ok=True)
            noted = {"dense": price.dense, "saved": saved, "dropped": price.dropped.tolist()}
            noted["narrower"] = price.narrower
            write_bytes(file, json.dumps(noted).encode())
        held = json.loads(file.read_text(encoding="utf-8"))
        saved = {name: np.array(line, float) for name, line in held["saved"].items()}
        dense, dropped = held["dense"], np.array(held["dropped"], float)
        return Price(self.name, "s", dense, saved, dropped, self.part * dense, narrower=held.get("narrower", 0.0))

    def _taken(self, anatomy: Anatomy, offered: Mapping[str, Ints]) -> Price:
        return timed(anatomy, offered, self.name, self.tokens, self.target, lambda dense: self.part * dense)


def timed(
    anatomy: Anatomy,
    counts: Mapping[str, Ints],
    name: str,
    tokens: int,
    target: Target,
    limit: Callable[[float], float],
    points: int = 4,
    repeats: int = 20,
) -> Price:
    """Seconds of a pass over so many tokens on a target: blocks with random weights are cut and timed one by one.

    At ``points`` counts of each sort of family, the others whole, in one run in turns; between them a straight line.
    ``tokens=1`` stands for a step of decoding, whose time is that of reading the weights; what it reads of the cache
    is not in it. Blocks are timed by themselves, so what a target would fuse across them is not either. What lies
    outside of the blocks is timed in eager PyTorch: no choice changes it.

    Memory: as many blocks as there are points.
    """
    calls, hidden = _calls(anatomy, tokens)
    tail, wide = Tail(anatomy.source, anatomy.paths), None
    if anatomy.channels is not None:
        wide = timed(replace(anatomy, channels=None), {}, name, tokens, target, limit, points, repeats).dense
        hidden = hidden[..., torch.from_numpy(anatomy.channels)].contiguous()
        tail.model = apply(anatomy.cut({}), tail.model)
    last = _median(lambda: tail(prompt(tokens), hidden), repeats)
    sorts: dict[str, int] = {anatomy.signature(b): b for b in reversed(range(len(anatomy.paths)))}
    whole: dict[str, float] = {}
    lines: dict[str, tuple[Ints, Floats]] = {}
    for sort, b in sorts.items():
        mine = {anatomy.kind_of(f): f for f in anatomy.families if f.block == b and f.name in counts}
        tried = {kind: _some(counts[f.name], points) for kind, f in mine.items()}
        blocks = [_random(anatomy, b, {})]
        blocks += [
            _random(anatomy, b, {f.name: np.arange(f.units) < n}) for k, f in mine.items() for n in tried[k][:-1]
        ]
        built = [target.build(block, calls[b].named(block, hidden), 1) for block in blocks]
        seconds = [float(np.median(m.seconds)) for m in measure(built, repeats=repeats)]
        whole[sort], at = seconds[0], 1
        for kind, chosen in tried.items():
            ends = [*seconds[at : at + len(chosen) - 1], seconds[0]]
            lines[kind], at = (chosen, np.array(ends)), at + len(chosen) - 1
    saved: dict[str, Floats] = {}
    for f in (f for f in anatomy.families if f.name in counts):
        at_counts, line = lines[anatomy.kind_of(f)]
        saved[f.name] = line[-1] - np.interp(counts[f.name], at_counts, line)
    dropped = np.array([whole[anatomy.signature(b)] for b in range(len(anatomy.paths))])
    total = last + float(dropped.sum())
    dense = total if wide is None else wide
    return Price(name, "s", dense, saved, dropped, limit(dense), narrower=dense - total)


def _calls(anatomy: Anatomy, tokens: int) -> Any:
    recorder = Recorder(anatomy.source, anatomy.source.skeleton(), anatomy.paths, torch.float32, torch.device("cpu"))
    hidden, calls = recorder.batch(prompt(tokens))
    return calls, hidden


def _median(run: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def _some(counts: Ints, points: int) -> Ints:
    at = np.unique(np.linspace(0, len(counts) - 1, points).round().astype(int))
    found: Ints = counts[at]
    return found[found > 0]


def _random(anatomy: Anatomy, block: int, keep: Mapping[str, Bools]) -> nn.Module:
    """A block, cut, with random weights."""
    small = apply(anatomy.cut(keep), anatomy.skeleton).get_submodule(anatomy.paths[block])
    generator = torch.Generator().manual_seed(0)
    for module in small.modules():
        for name, p in module._parameters.items():
            if p is not None:
                made = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02
                module._parameters[name] = nn.Parameter(made, requires_grad=False)
    return small.eval()
