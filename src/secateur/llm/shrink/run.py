"""Shrink a language model in bounded memory: survey the dense blocks, choose, cut and refit, write a folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.digest import digest_of, tensors_in
from secateur.errors import ArgumentError
from secateur.graph.surgery import apply
from secateur.llm.prune import settings
from secateur.llm.shrink.cut import Cutter
from secateur.llm.shrink.effect import Effects
from secateur.llm.shrink.hollow import hollow, kv_cache, macs, params
from secateur.llm.shrink.ladder import Ladder, counts
from secateur.llm.shrink.options import Choice, Menu, Price, cost_of, mixed, ranked, uniform
from secateur.llm.shrink.prices import Anatomy, Timed, droppable, priced
from secateur.llm.shrink.result import change_of, configuration
from secateur.llm.shrink.survey import Surveyor, ladder_of, probes
from secateur.llm.shrink.tail import Tail
from secateur.llm.shrink.units import Family
from secateur.llm.source import Source
from secateur.llm.stream import Change, stream
from secateur.llm.walk import Progress, Walk, batches_of
from secateur.run.folder import WORK
from secateur.score.calibrate import moments
from secateur.score.criteria import obs
from secateur.types import Criterion, Floats, Ints, Plan, Target

log = logging.getLogger("secateur")

HEALED = ("head", "neuron")
"""Kinds of groups whose consumers are refitted behind a cut, whether they may lose units or not."""
MOMENTS = 4
"""Second moments that are held at once of an input, in float32: dense and cut ones in float64."""

Asked: TypeAlias = Callable[[Anatomy, Mapping[str, Ints]], Price]
"""``(anatomy, counts offered by family) -> the price and its limit``."""
Allocate: TypeAlias = Callable[[Menu, Sequence[Price]], Choice]
"""``(menu, budgets) -> what is kept``: `mixed`, `uniform` or `ranked`."""


def of_params(fraction: float) -> Asked:
    """At most this part of the parameters, shared ones counted once."""
    return lambda a, offered: priced(a, offered, "params", "", params, lambda dense: fraction * dense)


def of_macs(fraction: float, tokens: int = 512) -> Asked:
    """At most this part of the multiply-accumulates of a prompt of so many tokens."""
    return lambda a, offered: priced(a, offered, "macs", "MAC", macs(tokens), lambda dense: fraction * dense)


def of_kv(fraction: float, tokens: int = 1024) -> Asked:
    """At most this part of the bytes of keys and values kept of so many tokens, in float32."""
    return lambda a, offered: priced(a, offered, "kv", "B", kv_cache(tokens), lambda dense: fraction * dense)


def of_prefill(fraction: float, target: Target, tokens: int = 512) -> Asked:
    """At most this part of the time that a prompt of so many tokens takes on a target."""
    return Timed("prefill", fraction, tokens, target)


def of_decode(fraction: float, target: Target) -> Asked:
    """At most this part of the time that one more token takes on a target."""
    return Timed("decode", fraction, 1, target)


@dataclass(frozen=True)
class Shrunk:
    """What was done.

    Attributes:
        folder: the result. plan: what was cut. choice: as it was made. prices: what was asked, with the dense values.
        reached: by the price's name: as counted on the cut model, or predicted where it is a time.
        rows: by block. told: budgets, what is kept and dropped, and the divergence that was predicted, as JSON.
    """

    folder: Path
    plan: Plan
    choice: Choice
    prices: Sequence[Price]
    reached: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Shrinking:
    """How a language model is shrunk.

    Attributes:
        criterion: ranks units within their family: ``sc.obs``, `fluctuation` (FLAP), ``sc.magnitude``, ``sc.taylor``.
        stats: what a criterion of the whole model needs: ``sc.calibrate(model, batches, sc.taylor)``; else None.
        kinds: of groups that are cut. layers: whether blocks may go whole.
        allocate: `mixed`; `uniform`, where plain ``from_pretrained`` is to load the result; `ranked` (FLAP), by
            which no block goes whole.
        plain: only what a configuration can say is cut, for ``from_pretrained``; other kinds stay. Goes with `uniform`.
        multiples: kind -> kept counts are multiples of it; 8 for neurons by default.
        damping: of the least squares on dense inputs; None: what stays makes up for means alone (FLAP).
        ridge: of the refit in the cut model, towards the former; None leaves it out.
        residual: how much of what the residual stream has lost so far the refit makes up for, 0 to 1.
        heal: whether blocks that lose nothing are refitted too, behind those that do.
        levels: parts of a family that are cut to measure their effects. probes: tokens that these are measured on;
            of fewer than 16 times as many calibration tokens fewer are taken, but 512 where there are.
    """

    criterion: Criterion = obs
    stats: Any = None
    kinds: Sequence[str] = ("head", "neuron")
    layers: bool = True
    allocate: Allocate = mixed
    plain: bool = False
    multiples: Mapping[str, int] = field(default_factory=dict)
    damping: float | None = 1e-2
    ridge: float | None = 1e-2
    residual: float = 1.0
    heal: bool = True
    levels: Sequence[float] = (0.25, 0.6)
    probes: int = 1024

    @property
    def weighs(self) -> bool:
        """Whether what goes depends on what cuts cost the predictions, which is dear to measure."""
        by_count = self.allocate is uniform and len(self.kinds) == 1 and not self.layers
        return not (by_count or self.allocate is ranked)

    def survey(self) -> dict[str, Any]:
        """What the dense pass depends on."""
        kinds = [*self.kinds, *(["plain"] if self.plain else []), *(["layer"] if self.layers else [])]
        return {
            "criterion": self.criterion.name, "kinds": kinds, "damping": self.damping, "levels": list(self.levels),
            "probes": self.probes, "weighs": self.weighs,
        }  # fmt: skip

    def told(self) -> dict[str, Any]:
        """As it stands in files."""
        how = {"allocation": self.allocate.__name__, "multiples": dict(self.multiples)}
        return {**self.survey(), **how, "ridge": self.ridge, "residual": self.residual, "heal": self.heal}

    def cut(self, anatomy: Anatomy) -> list[Family]:
        """The families that may lose units."""
        kinds = [k for k in self.kinds if not self.plain or sayable(anatomy, k, self.multiples.get(k, 1))]
        if left := sorted({*self.kinds} - {*kinds}):
            log.warning("no configuration of %s says fewer units of %s: all stay", anatomy.name, ", ".join(left))
        return [f for f in anatomy.families if f.kind in kinds]

    def offered(self, families: Sequence[Family]) -> dict[str, Ints]:
        """Kept counts to choose from, by family."""
        found = {}
        for f in families:
            step = {"neuron": 8, **self.multiples}.get(f.kind, 1)
            step = int(np.lcm(step if f.units > step else 1, f.group.multiple))
            found[f.name] = counts(f.units, step, max(f.group.least, 1))
        return found


def llm_shrink(
    model: str | Path | nn.Module | Source,
    tokens: Tensor | Sequence[Tensor],
    budgets: Sequence[Asked],
    out: str | Path,
    how: Shrinking | None = None,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: float | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Shrunk:
    """Cut KV groups, neurons and whole blocks out of a language model until it meets its budgets, without training.

    Two passes over the calibration text, a block in memory at a time. The first, dense, ranks the units of every block
    and measures what a cut in it costs the predictions: ``KL(dense || cut)`` of the next token, each block alone. What
    goes where is the least sum of these under all budgets. The second cuts: what stays is refitted by least squares
    against the dense block's outputs, on the inputs that it has in the model cut so far (ZipLM, arXiv:2302.04089;
    order of removal from dense inputs, target dense, inputs pruned, a ridge towards the solution on dense inputs).

    Args:
        model: a folder, a GGUF file, a module or a `Source`. tokens: int64 (samples, window) of the calibration text.
        budgets: such as ``[of_params(0.75), of_kv(0.5)]``; all hold.
        out: a folder, new or of the same call unfinished: that goes on. The survey, and times that were taken for
            budgets, lie beside it until the end.
        how: scores, what is cut, how it is allocated and refitted.
        batch: samples at once. device, dtype: to compute in.
        memory: bytes that the process may take: hidden states that do not fit go to disk.
        progress: hears ``(done, of how many, words)``. force: replace what is in the folder.

    Raises:
        BudgetError: the budgets cannot be met; names the closest. DataError: bad tokens. TraceError: no blocks.
        ArgumentError: there are no budgets, the criterion lacks its statistics, or the folder is in use.

    Memory: one block and its moments, twice; the hidden states of the tokens, dense and cut; and those of ``probes``
        tokens once for every cut that is measured. Time: seven passes or so, and half a pass over the probes for
        each of these cuts.

    Example:
        >>> import tempfile, secateur as sc, transformers
        >>> shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(**shape, vocab_size=32)
        >>> net = transformers.AutoModelForCausalLM.from_config(config)
        >>> tokens = torch.randint(0, 32, (4, 16))
        >>> done = llm_shrink(net, tokens, [of_params(0.9)], tempfile.mkdtemp() + "/small", Shrinking(layers=False))
        >>> done.reached["params"] <= 0.9 * sc.params(net).dense
        True
    """
    how, place = how or Shrinking(), Path(out).expanduser().resolve()
    _check(budgets, how, place, force)
    source = model if isinstance(model, Source) else Source.open(model)
    anatomy = Anatomy.of(source, sorted({*how.kinds, *HEALED}))
    mine = how.cut(anatomy)
    offered = how.offered(mine)
    folder = place.with_name(f".{place.name}.survey")
    prices = [b(anatomy, offered, folder / "times") if isinstance(b, Timed) else b(anatomy, offered) for b in budgets]
    batches, dense = batches_of(tokens, batch), folder / "dense"
    rows, effects = surveyed(anatomy, mine, how, batches, dense, device, dtype, memory, progress)
    menu, ladders = menu_of(anatomy, offered, rows, effects)
    choice = how.allocate(menu, prices)
    keep = {n: ladders[n].keep(count) for n, count in choice.kept.items()}
    plan = anatomy.cut(keep, choice.dropped, how.told())
    small = apply(plan, anatomy.skeleton)
    whole = {f.name: keep.get(f.name, np.ones(f.units, bool)) for f in anatomy.families}
    cutter = Cutter(anatomy.families, whole, plan, small, how.damping, how.ridge, how.residual, how.heal)
    reached = _reached(menu, choice, prices, small)
    outcome = _told(choice, prices, reached, how.weighs)
    told = {**outcome, "how": how.told()}
    units = digest_of((name, torch.from_numpy(mask)) for name, mask in sorted(keep.items()))

    def change(rows: Sequence[Mapping[str, Any]]) -> Change:
        return change_of(small, plan, {**told, "blocks": list(rows)}, source.config)

    done = stream(
        source, tokens, cutter, Path(out).expanduser(), batch=batch, device=device, dtype=dtype, memory=memory,
        moments=MOMENTS, dense=True, signature={**told, "units": units}, rebuild=cutter.rebuild, change=change,
        progress=progress, force=force,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return Shrunk(done.folder, plan, choice, prices, reached, done.rows, outcome)


def _check(budgets: Sequence[Asked], how: Shrinking, out: Path, force: bool) -> None:
    """Refuse before the first pass what would fail behind it."""
    if not budgets:
        raise ArgumentError("no budgets are given, so nothing would go: give one or more, such as [of_params(0.75)]")
    if how.stats is None and how.criterion.stat not in (None, moments):
        raise ArgumentError(
            f"criterion {how.criterion.name} goes by statistics of the whole model, and stats is None: give "
            "Shrinking(criterion, sc.calibrate(model, batches, criterion))"
        )
    used = any(out.iterdir()) if out.is_dir() else out.exists()
    if used and not force and not (out / WORK).is_dir():
        raise ArgumentError(f"output {out} is not empty: give another --out, or --force to replace a result in it")


def surveyed(
    anatomy: Anatomy,
    mine: Sequence[Family],
    how: Shrinking,
    batches: Sequence[Tensor],
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: float | None = None,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The dense pass: a row a block, and the divergence by ``block/family`` and ``block/drop``.

    What is done lies in ``folder``. Where a limit on memory sends the streams of the effects there too, a killed run
    goes on from it; else its survey begins again.
    """
    batches = _probe_first(batches, how.probes)
    count = 1 + sum(len(probes(f.units, how.levels)) for f in mine) + how.layers * len(anatomy.paths)
    width = getattr(getattr(anatomy.skeleton, "config", None), "hidden_size", None) or 4096
    large = memory is not None and count * batches[0].numel() * width * dtype.itemsize > memory / 4
    key = {
        "model": anatomy.source.identity(), "tokens": digest_of((str(i), b) for i, b in enumerate(batches)),
        "score": settings(how.criterion.score), "stats": digest_of(tensors_in(how.stats)), **how.survey(),
        "dtype": str(dtype), "on_disk": large,
    }  # fmt: skip
    _claim(folder, key)
    effects = Effects(1, folder / "effects" if large else None) if how.weighs else None
    found = folder / "effects.json"
    if found.exists():
        return [_row(folder, i) for i in range(len(anatomy.paths))], json.loads(found.read_text(encoding="utf-8"))
    if not large:  # streams in memory are gone with the run that was killed
        shutil.rmtree(folder, ignore_errors=True)
        _claim(folder, key)
    surveyor = Surveyor(
        mine, how.criterion, how.stats, how.damping or 0.0, how.damping is not None, effects, how.levels,
        how.layers,
    )  # fmt: skip
    walk = Walk.begin(
        anatomy.source, batches, device=device, dtype=dtype, memory=memory, moments=MOMENTS, folder=folder / "states"
    )
    rows = []
    for index in range(len(walk)):
        file = folder / f"{index:05}.json"
        if progress is not None:
            progress(index, len(walk), f"survey of {walk.paths[index]}")
        if index >= walk.hidden.block:
            live = walk.live(index)
            if not file.exists():
                write_bytes(file, json.dumps(surveyor(live)).encode())
            if index < len(walk) - 1:
                walk.pass_on(live, live.module.state_dict().items())
        rows.append(_row(folder, index))
    measured = {} if effects is None else _divergences(anatomy, effects, batches[0], dtype, device)
    write_bytes(found, json.dumps(measured).encode())
    for name in ("states", "effects"):  # large, and of no use any more
        shutil.rmtree(folder / name, ignore_errors=True)
    return rows, measured


def _divergences(
    anatomy: Anatomy, effects: Effects, probe: Tensor, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    tail = Tail(anatomy.source, anatomy.paths, dtype, device)
    return effects.divergences(
        len(anatomy.paths), lambda i, hidden: tail(probe[:, : hidden.shape[1]].to(device), hidden)
    )


def _row(folder: Path, block: int) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / f"{block:05}.json").read_text(encoding="utf-8"))
    return row


def _probe_first(batches: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """The batches, the first no larger than the probe, but of one window at least."""
    tokens = min(tokens, max(512, sum(b.numel() for b in batches) // 16))
    rows = max(1, tokens // batches[0].shape[1])
    return [b for b in (batches[0][:rows], batches[0][rows:], *batches[1:]) if len(b)]


def sayable(anatomy: Anatomy, kind: str, step: int = 1) -> bool:
    """Whether a configuration of transformers can say that every block has fewer units of a kind."""
    families = [f for f in anatomy.families if f.kind == kind and f.units > step]
    plan = anatomy.cut({f.name: np.arange(f.units) < f.units - int(np.lcm(step, f.group.multiple)) for f in families})
    return configuration(apply(plan, anatomy.skeleton), plan) is not None


def _claim(folder: Path, key: Mapping[str, Any]) -> None:
    """An empty folder, or what the same survey left in it."""
    header, told = folder / "survey.json", json.dumps(key, sort_keys=True)
    if not header.is_file() or header.read_text(encoding="utf-8") != told:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_bytes(header, told.encode())


def menu_of(
    anatomy: Anatomy, offered: Mapping[str, Ints], rows: Sequence[Mapping[str, Any]], effects: Mapping[str, float]
) -> tuple[Menu, dict[str, Ladder]]:
    """What may be chosen, each error in nats: a family's ladder, through what was measured at some of its counts."""
    ladders = {name: ladder_of(row) for r in rows for name, row in r["ladders"].items()}
    mine = [f for f in anatomy.families if f.name in offered]
    errors = {}
    for f in mine:
        head = f"{f.block}/{f.name}@"
        seen = {int(key.removeprefix(head)): value for key, value in effects.items() if key.startswith(head)}
        errors[f.name] = scaled(ladders[f.name].errors, seen)[offered[f.name]]
    can = droppable(anatomy)
    drop = [effects.get(f"{b}/drop", np.inf) if can[b] else np.inf for b in range(len(anatomy.paths))]
    scores = {n: x.scores for n, x in ladders.items()}
    return Menu(len(anatomy.paths), mine, offered, errors, np.array(drop), scores), ladders


def scaled(errors: Floats, seen: Mapping[int, float]) -> Floats:
    """Errors of every count in the unit of those that were measured: in proportion between these, and beyond.

    Example:
        >>> scaled(np.array([4.0, 2.0, 1.0, 0.0]), {2: 10.0, 1: 30.0}).tolist()
        [60.0, 30.0, 10.0, 0.0]
    """
    errors = np.maximum.accumulate(errors[::-1])[::-1]  # fewer units are never better, whatever rounding says
    if not seen:
        return errors
    counts_ = sorted(seen, reverse=True)
    at = np.array([0.0, *(errors[n] for n in counts_)])
    worth = np.maximum.accumulate(np.array([0.0, *(seen[n] for n in counts_)]))
    found: Floats = np.interp(errors, at, worth)
    beyond = errors > at[-1]
    found[beyond] = worth[-1] * (errors[beyond] / at[-1] if at[-1] > 0 else 1.0)
    return found


def _reached(menu: Menu, choice: Choice, prices: Sequence[Price], small: nn.Module) -> dict[str, float]:
    """Counted on the cut model; a time as predicted."""
    empty = hollow(small)
    return {p.name: cost_of(choice, menu, p) if p.meter is None else p.meter(empty) for p in prices}


def _told(choice: Choice, prices: Sequence[Price], reached: Mapping[str, float], weighed: bool) -> dict[str, Any]:
    budgets = {
        p.name: {"unit": p.unit, "dense": p.dense, "asked": p.limit, "achieved": reached[p.name]} for p in prices
    }
    kept, dropped = dict(choice.kept), list(choice.dropped)
    predicted = choice.error if weighed else None  # else errors are in no unit of predictions
    return {"budgets": budgets, "kept": kept, "dropped": dropped, "predicted_divergence": predicted}
