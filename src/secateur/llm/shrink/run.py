"""Shrink a language model in bounded memory: survey the dense blocks, choose, cut and refit, write a folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.digest import digest_of
from secateur.errors import ArgumentError
from secateur.graph.surgery import apply
from secateur.llm.shrink.asked import Asked, Shrinking
from secateur.llm.shrink.cut import MOMENTS, Cutter
from secateur.llm.shrink.dense_pass import probe_first, surveyed
from secateur.llm.shrink.depth import until_met
from secateur.llm.shrink.hollow import hollow, params
from secateur.llm.shrink.ladder import Ladder
from secateur.llm.shrink.options import Choice, Menu, Price, cost_of
from secateur.llm.shrink.prices import Anatomy, droppable
from secateur.llm.shrink.result import change_of
from secateur.llm.shrink.survey import ladder_of
from secateur.llm.shrink.width import Slim, strongest
from secateur.llm.source import Source
from secateur.llm.stream import Change, stream
from secateur.llm.walk import Progress, batches_of
from secateur.run.folder import check_free
from secateur.score.calibrate import moments
from secateur.types import Floats, Ints, Plan

HEALED = ("head", "neuron")
"""Kinds of groups whose consumers are refitted behind a cut, whether they may lose units or not."""


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
    """Cut KV groups, neurons, whole blocks and residual width out of a language model, without training.

    Two passes over the calibration text, a block in memory at a time. The first, dense, ranks the units of every block
    and measures what a cut in it costs the predictions: ``KL(dense || cut)`` of the next token, each block alone. What
    goes where is the least sum of these under all budgets. The second cuts: what stays is refitted by least squares
    against the dense block's outputs, on the inputs that it has in the model cut so far (ZipLM, arXiv:2302.04089;
    order of removal from dense inputs, target dense, inputs pruned, a ridge towards the solution on dense inputs).

    Args:
        model: a folder, a GGUF file, a module or a `Source`. tokens: int64 (samples, window) of the calibration text.
        budgets: such as ``[of_params(0.75), of_kv(0.5)]``; all hold. None where ``how`` has a width, and no more goes.
        out: a folder, new or of the same call unfinished: that goes on. The survey, and times that were taken for
            budgets, lie beside it until the end.
        how: scores, what is cut, how it is allocated and refitted.
        batch: samples at once. device, dtype: to compute in.
        memory: bytes that the process may take: hidden states that do not fit go to disk.
        progress: hears ``(done, of how many, words)``. force: replace what is in the folder.

    Raises:
        BudgetError: the budgets cannot be met; names the closest. DataError: bad tokens. TraceError: no blocks.
        ArgumentError: there are no budgets, the criterion lacks its statistics, or the folder is in use.

    Memory: one block and its moments, four times; the hidden states of the tokens, dense and cut; and those of
        ``probes`` tokens once for every cut that is measured. With a width, at the last block, what lies outside of
        the blocks three times, which ``memory`` does not count. Time: seven passes or so, and half a pass over the
        probes for each of these cuts.

    Example:
        >>> import tempfile, secateur as sc, transformers
        >>> from secateur.llm.shrink.asked import of_params
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
    anatomy = how.narrowed(Anatomy.of(source, sorted({*how.kinds, *HEALED}), width=how.width is not None))
    mine = how.cut(anatomy)
    offered = how.offered(mine)
    folder = place.with_name(f".{place.name}.survey")
    prices = [budget(anatomy, offered, folder / "times") for budget in budgets]
    batches, dense = batches_of(tokens, batch), folder / "dense"
    rows, effects = surveyed(anatomy, mine, how, batches, dense, device, dtype, memory, progress)
    menu, ladders = menu_of(anatomy, offered, rows, effects)
    if how.greedy:
        probe, notes = probe_first(batches, how.probes)[:1], folder / "greedy"
        choice = until_met(
            anatomy, menu, prices, probe, notes, device=device, dtype=dtype, memory=memory, progress=progress
        )
    else:
        choice = how.allocate(menu, prices) if prices else _whole(menu)
    if anatomy.channels is not None:
        scores = np.sum([row["channels"] for row in rows], axis=0)
        anatomy = anatomy.narrowed(strongest(scores, int(anatomy.channels.sum())))
    keep = {n: ladders[n].keep(count) for n, count in choice.kept.items()}
    plan = anatomy.cut(keep, choice.dropped, how.told())
    small = apply(plan, anatomy.skeleton)
    whole = {f.name: keep.get(f.name, np.ones(f.units, bool)) for f in anatomy.families}
    slim = Slim.of(anatomy)
    cutter = Cutter(anatomy.families, whole, plan, small, slim, how.damping, how.ridge, how.residual, how.heal)
    reached = _reached(menu, choice, prices, small)
    outcome = _told(choice, prices, reached, how.weighs) | _sizes(anatomy, small, how.width)
    told = {**outcome, "how": how.told()}
    units = digest_of((name, torch.from_numpy(mask)) for name, mask in sorted(plan.keep.items()))

    def change(rows: Sequence[Mapping[str, Any]]) -> Change:
        outside = ({}, ()) if slim is None else slim.outside(rows[-1].get("norms", {}))
        return change_of(small, plan, {**told, "blocks": list(rows)}, source.config, *outside)

    done = stream(
        source, tokens, cutter, Path(out).expanduser(), batch=batch, device=device, dtype=dtype, memory=memory,
        moments=MOMENTS, dense=True, channels=None if slim is None else slim.channels,
        signature={**told, "units": units}, rebuild=cutter.rebuild, change=change, progress=progress, force=force,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return Shrunk(done.folder, plan, choice, prices, reached, done.rows, outcome)


def _check(budgets: Sequence[Asked], how: Shrinking, out: Path, force: bool) -> None:
    """Refuse before the first pass what would fail behind it."""
    if not budgets and how.width is None:
        raise ArgumentError(
            "no budgets are given, so nothing would go: give --budget params=75%, of_params(0.75), or a width"
        )
    if not budgets and (how.kinds or how.layers):
        raise ArgumentError(
            "kinds of units are given but no budgets, so only the width would be cut: give --budget params=75%, "
            "of_params(0.75), or no kinds and no layers"
        )
    if how.greedy and (how.kinds or not how.layers or not budgets):
        raise ArgumentError(
            "greedy takes whole layers alone, until a budget holds: give --budget params=75%, of_params(0.75), and no "
            "kinds but layers"
        )
    if how.stats is None and how.criterion.stat not in (None, moments):
        raise ArgumentError(
            f"criterion {how.criterion.name} goes by statistics of the whole model, and stats is None: give "
            "Shrinking(criterion, sc.calibrate(model, batches, criterion))"
        )
    check_free(out, force)


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


def _whole(menu: Menu) -> Choice:
    """Nothing goes."""
    return Choice({f.name: f.units for f in menu.families}, (), 0.0)


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


def _sizes(anatomy: Anatomy, small: nn.Module, asked: float | None) -> dict[str, Any]:
    """Parameters, and the width of the residual stream where it was asked for."""
    found: dict[str, Any] = {"parameters": {"dense": int(params(anatomy.skeleton)), "left": int(params(small))}}
    if anatomy.channels is not None:
        found["width"] = {"dense": len(anatomy.channels), "asked": asked, "left": int(anatomy.channels.sum())}
    return found


def _told(choice: Choice, prices: Sequence[Price], reached: Mapping[str, float], weighed: bool) -> dict[str, Any]:
    budgets = {
        p.name: {"unit": p.unit, "dense": p.dense, "asked": p.limit, "achieved": reached[p.name]} for p in prices
    }
    kept, dropped = dict(choice.kept), list(choice.dropped)
    predicted = choice.error if weighed else None  # else errors are in no unit of predictions
    return {"budgets": budgets, "kept": kept, "dropped": dropped, "predicted_divergence": predicted}
