"""What would pay on a device, and what would not: predicted, then spot-measured while there is time."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from torch import nn

from secateur.errors import ArgumentError, CoupleError, PlanError, SecateurError, TargetError, brief
from secateur.evidence.advice import PAYS, Advice, Advised, Staircase, ranked
from secateur.evidence.gather import environment
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.run import candidates as tries
from secateur.run.candidates import MASKS, Candidate, Spot, following
from secateur.run.stairs import staircase
from secateur.targets.latency import latency
from secateur.targets.measure import Speedup, compare, measure
from secateur.types import Artefact, Cost, Example, Measurement, Target

MOST_ROUNDS, LEAST_ROUNDS = 40, 12
SPOT = 2.0
"""Seconds of the dense model's runs in a spot measurement, as long as that makes enough rounds."""
PROBING, STAIRS = 0.4, 0.15
"""Parts of the time that predictions, and the staircase, may take."""
REFUSALS = (TargetError, PlanError, CoupleError)
"""What a candidate may raise, which is told of it; the rest goes on."""
PROBES = 4
"""Whole models that a prediction rests on, at least."""
FAR, SMALL = 2.0, 0.05
"""A change is far beyond the noise of one timing if it is more than twice that, and than twice 5 %."""


def advise(
    model: nn.Module,
    example: Example,
    target: Target,
    seconds: float = 150,
    tell: Callable[[str], None] = lambda words: None,
    *,
    lower: Sequence[Target] = (),
    subject: str = "MODEL",
) -> Advice:
    """Say in minutes, without training and without data, what would make a model faster on a target.

    Candidates are uniform widths in multiples of 8, 16 and 32, unaligned widths, one kind of units alone, whole
    layers, 2:4, blocks and unstructured masks, and a lower precision alone and with each. Widths are predicted by
    `sc.latency`, depth by its multiply-accumulates, masks as no gain: dense kernels compute zeros too. Then one of
    each kind and the fastest by prediction are exported and timed against the dense model in interleaved rounds, while
    the time lasts; an export that is under way is not broken off. The model alone decides which candidates there are.

    Args:
        model: the dense model; left as it was.
        example: what it is timed on, batch size included.
        target: the runtime. One with a true attribute ``sparse_kernels`` is not predicted to gain nothing by masks.
        seconds: to spend in all.
        tell: hears what is being done.
        lower: the same runtime at lower precision, such as dynamic int8.
        subject: what stands for the model and its example in the commands that are told.

    Raises:
        ArgumentError: ``seconds`` is not positive.
        TargetError: the runtime is missing, or refuses the dense model.
        TraceError: the model does not run on the example.

    Example:
        >>> import torch, secateur as sc
        >>> net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
        >>> found = advise(net, torch.zeros(1, 64), sc.eager, seconds=1)
        >>> found.rows[0].verdict != "", len(found.rows) > 8
        (True, True)
    """
    if not (isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0):
        raise ArgumentError(f"advise: seconds is the time to spend, a positive number; got {seconds!r}")
    work = _Work.begin(model, example, target, float(seconds), tell)
    groups = work.recorded()
    found = work.listed(groups, lower, subject)
    work.warm_up(found, groups)
    tell("predicting")
    predicted, basis = work.predicted(found, groups, work.cost(groups))
    steps = work.stairs(groups)
    while (some := following(found, work.spots, predicted)) and work.in_time(len(some)):
        work.spot(*some)
    return work.advice(found, predicted, basis, steps)


def _refused(error: SecateurError) -> Spot:
    return Spot(None, refused=" ".join(str(error).split()))


def _change(speedup: Speedup) -> float:
    return max(speedup.ratio, 1 / speedup.ratio) - 1


@dataclass(eq=False)
class _Work:
    """One advice in the making."""

    model: nn.Module
    example: Example
    target: Target
    seconds: float
    tell: Callable[[str], None]
    begun: float
    dense: Artefact
    timed: Measurement
    rounds: int
    costs: list[float]
    spots: dict[str, Spot] = field(default_factory=dict)
    spreads: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls, model: nn.Module, example: Example, target: Target, seconds: float, tell: Callable[[str], None]
    ) -> _Work:
        """Export the dense model and time it: what all else is planned by."""
        begun = monotonic()
        tell("exporting the dense model")
        dense = target.build(model, example, target.threads)
        dense.run()
        start = monotonic()
        dense.run()
        rounds = int(min(max(SPOT / max(monotonic() - start, 1e-6), LEAST_ROUNDS), MOST_ROUNDS))
        (timed,) = measure([dense], rounds)
        costs = [monotonic() - begun + rounds * timed.median]  # a spot measurement times two models
        return cls(model, example, target, seconds, tell, begun, dense, timed, rounds, costs, spreads=[timed.spread])

    @property
    def spent(self) -> float:
        return monotonic() - self.begun

    @property
    def longest(self) -> float:
        """What one more candidate may take: the longest so far, but for the first export, which warms up."""
        return max(self.costs[1:] or self.costs)

    def in_time(self, count: int = 1) -> bool:
        """Whether so many more candidates can be exported and timed."""
        return self.spent + count * self.longest <= self.seconds

    def warm_up(self, found: Sequence[Candidate], groups: Groups | None) -> None:
        """Measure what has least work: it would be measured in any case, and tells what an export takes."""
        some = following(found, self.spots, self.predicted(found, groups, None)[0])
        if some and self.in_time(len(some)):
            self.spot(*some)

    def recorded(self) -> Groups | None:
        self.tell("recording")
        try:
            return couple(trace(self.model, self.example))
        except CoupleError as error:
            self.notes.append(f"Widths are left out: {error}")
            return None

    def listed(self, groups: Groups | None, lower: Sequence[Target], subject: str) -> list[Candidate]:
        """All candidates, each by a name of its own."""
        out: list[Candidate] = []
        if groups is not None:
            out += tries.widths(self.model, groups, subject)
            out += tries.unaligned(self.model, groups, subject, out)
            out += tries.one_kind(self.model, groups, subject)
        try:
            out += tries.depth(self.model, self.example, subject)
        except SecateurError as error:
            self.notes.append(f"Depth is left out: {brief(error)}")
        out += tries.masks(self.model, subject)
        out += tries.lower(self.model, lower, subject, out)
        return list({c.row.what: c for c in reversed(out)}.values())[::-1]

    def predicted(
        self, found: Sequence[Candidate], groups: Groups | None, cost: Cost | None
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        """Ratios by prediction, and what each rests on; those of lower precision wait for a measurement."""
        ratios: dict[str, float | None] = {}
        basis: dict[str, str] = {}
        sparse = bool(getattr(self.target, "sparse_kernels", False))
        for c in found:
            what = c.row.what
            if c.lower is not None:
                ratios[what], basis[what] = None, "not predicted: no lower precision was measured"
            elif c.keep is not None and groups is not None:
                if cost is not None:
                    ratios[what] = cost.of(groups, c.keep) / cost.dense
                    basis[what] = "predicted from timings of parts of the model on this target"
                else:
                    ratios[what] = groups.macs(c.keep) / max(groups.macs(groups.all_kept()), 1)
                    basis[what] = "predicted by multiply-accumulates alone"
            elif c.row.kind in MASKS:
                ratios[what] = None if sparse else c.share
                why = "not predicted: this target has sparse kernels"
                basis[what] = why if sparse else "dense kernels compute zeros like any number"
            else:
                ratios[what], basis[what] = c.share, "predicted by multiply-accumulates alone"
        return ratios, basis

    def cost(self, groups: Groups | None) -> Cost | None:
        """The latency, where the probes of its prediction take a part of the time only."""
        if groups is None:
            return None
        until = min(self.spent + PROBING * self.seconds, self.seconds)
        short = f"Widths are predicted by multiply-accumulates: timing parts of the model takes more than {PROBING:.0%}"
        short += f" of the {self.seconds:g} s"
        if self.spent + PROBES * self.longest > until:
            self.notes.append(short)
            return None

        def build(model: nn.Module, example: Example, threads: int) -> Artefact:
            if model is self.model:
                return self.dense
            if self.spent + self.longest / 2 > until:
                raise TargetError(short)
            return self.target.build(model, example, threads)

        try:
            cost = latency(self.model, self.example, dataclasses.replace(self.target, build=build), repeats=self.rounds)
            cost.of(groups, groups.all_kept())
        except SecateurError as error:
            told = str(error).removeprefix("Widths are predicted by multiply-accumulates: ")
            self.notes.append(f"Widths are predicted by multiply-accumulates: {told}")
            return None
        return cost

    def stairs(self, groups: Groups | None) -> Staircase | None:
        if groups is None or not self.in_time():
            return None
        self.tell("timing one layer at several widths")
        until = self.spent + STAIRS * self.seconds
        found = staircase(self.model, groups, self.example, self.target, lambda: self.spent < until)
        if found is None:
            self.notes.append("No staircase is drawn: no layer could be timed alone at several widths in time")
        return found

    def spot(self, one: Candidate, beside: Candidate | None = None) -> None:
        """Export a candidate and time it against the dense model, and against what it is compared with."""
        begun = monotonic()
        self.tell(f"measuring: {one.row.what}")
        some = [one] if beside is None else [one, beside]
        built: list[tuple[Candidate, Artefact]] = []
        for c in some:  # each may be refused; the other is measured all the same
            try:
                built.append((c, self.build(c)))
            except REFUSALS as error:
                self.spots[c.row.what] = _refused(error)
        try:
            found, aside = self.compared([artefact for _, artefact in built]) if built else ([], "")
        except REFUSALS as error:
            self.spots |= {c.row.what: _refused(error) for c, _ in built}
        else:
            for (c, artefact), speedup in zip(built, found, strict=True):
                self.spreads.append(speedup.noise)
                self.spots[c.row.what] = Spot(speedup, artefact.nbytes, aside=aside if c is one else "")
        self.costs.append((monotonic() - begun) / len(some))

    def compared(self, artefacts: Sequence[Artefact]) -> tuple[list[Speedup], str]:
        """Each against the dense model, and the first against the second.

        Many candidates are looked at, so some seem to differ by luck: a change that is not far beyond the noise is
        timed again, and the timing nearer to none counts.
        """
        whole, *cut = measure([self.dense, *artefacts], self.rounds)
        found = [compare(whole, timed) for timed in cut]
        if any(s.significant and _change(s) <= FAR * max(s.noise, SMALL) for s in found):
            whole, *again = measure([self.dense, *artefacts], self.rounds)
            second = [compare(whole, timed) for timed in again]
            found = [min(pair, key=lambda s: (s.significant, _change(s))) for pair in zip(found, second, strict=True)]
        return found, compare(cut[1], cut[0]).words() if len(cut) > 1 else ""

    def build(self, one: Candidate) -> Artefact:
        target = one.lower or self.target
        artefact = target.build(one.make(), self.example, self.target.threads)
        return dataclasses.replace(artefact, target=self.dense.target)  # what is compared must be alike in name

    def advice(
        self,
        found: Sequence[Candidate],
        predicted: Mapping[str, float | None],
        basis: Mapping[str, str],
        steps: Staircase | None,
    ) -> Advice:
        rows = [self._row(c, predicted[c.row.what], basis[c.row.what]) for c in found]
        rows = self._lowered(found, {r.what: r for r in rows})
        params, nbytes = tries.params_of(self.model), tries.nbytes_of(self.model)
        where = environment()
        made = {
            "machine": where["machine"]["processor"],
            "versions": ", ".join(f"{k} {v}" for k, v in where["versions"].items()),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        builders: dict[str, Callable[[], Artefact]] = {c.row.what: self._builder(c) for c in found}
        builders["dense"] = lambda: self.target.build(self.model, self.example, self.target.threads)
        return Advice(
            self.target.name,
            self.target.threads,
            self.dense.batch,
            type(self.model).__name__,
            ranked(rows),
            steps,
            self.timed.median,
            max(self.spreads),
            params,
            nbytes,
            self.dense.nbytes,
            self.spent,
            self.seconds,
            tuple(self.notes),
            made,
            builders,
        )

    def _builder(self, one: Candidate) -> Callable[[], Artefact]:
        return lambda: self.build(one)

    def _row(self, c: Candidate, predicted: float | None, basis: str) -> Advised:
        spot = self.spots.get(c.row.what, Spot(None))
        return dataclasses.replace(
            c.row,
            predicted=predicted,
            basis=basis,
            measured=spot.measured,
            file_bytes=spot.file_bytes,
            refused=spot.refused,
            aside=spot.aside,
        )

    def _lowered(self, found: Sequence[Candidate], rows: Mapping[str, Advised]) -> list[Advised]:
        """A lower precision with another change: the product of both alone, once the precision was measured."""
        out = []
        for c in found:
            row = rows[c.row.what]
            if c.lower is not None and c.base and row.measured is None:
                alone, base = rows[c.lower.name], rows[c.base]
                if alone.measured is not None and base.ratio is not None:
                    why = f"predicted as the product of both alone, of which {c.lower.name} was measured"
                    row = dataclasses.replace(row, predicted=alone.rank * min(base.rank, base.ratio), basis=why)
            out.append(row)
        return out


@dataclass(frozen=True)
class Confirmed:
    """A recommendation measured in full: what was said, what was found, and whether it still pays."""

    what: str
    said: float | None
    found: Speedup
    holds: bool


def confirm(advice: Advice, top: int = 3, rounds: int = 50) -> tuple[Confirmed, ...]:
    """Export the first recommendations anew and time them against a new export of the dense model, all in one run.

    A recommendation is what was found or predicted to be faster. It holds if the gain is significant again.

    Raises:
        ArgumentError: the advice was read from a file, or ``top`` is not positive.
        TargetError: an export fails.
    """
    if top < 1 or "dense" not in advice.builders:
        raise ArgumentError(f"confirm: needs what advise returned and top >= 1; got top={top!r}")
    rows = [r for r in advice.rows if not r.refused and r.rank < 1 and (r.verdict == PAYS or r.measured is None)][:top]
    if not rows:
        return ()
    artefacts = [advice.builders[name]() for name in ("dense", *(r.what for r in rows))]
    dense, *others = measure(artefacts, rounds)
    out = []
    for row, timed in zip(rows, others, strict=True):
        found = compare(dense, timed)
        out.append(Confirmed(row.what, row.ratio, found, found.significant and found.ratio < 1))
    return tuple(out)
