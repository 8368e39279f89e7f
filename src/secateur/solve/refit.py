"""Refit what is left: least squares on calibration data, layer after layer, against the dense model's outputs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.graph.dropping import original
from secateur.products import fast_for
from secateur.score.calibrate import ROWS, checked, forward, quiet_eval, real, used_otherwise
from secateur.score.capture import Contraction, Enough, Watch, every_nth, from_matrix, matrix, version
from secateur.solve.replay import Replay
from secateur.solve.sums import ASIDE, DAMPINGS, Sums, checked_dampings, chosen, fit
from secateur.types import Batches, Example, Plan

log = logging.getLogger("secateur")


def refit_(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    batches: Batches,
    damping: float | Sequence[float] = DAMPINGS,
    memory: float = 2e9,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Refit every weight that lost inputs, in the order of execution; returns (error before, after) by weight.

    For each such weight: ``min_W || Y - W [x; 1] ||² + damping ||W - W_cut||²`` where ``x`` is its input in the *small*
    model as refitted so far and ``Y`` its output in the *dense* one; where the output is added to a residual stream,
    ``Y`` also makes up for what that stream has lost so far. Errors are relative to the energy of ``Y``.
    Masked least squares (arXiv:2302.04089 and 2407.06483), with the asymmetric inputs of GPTQ-like propagation.

    A weight that is used more than once (as an embedding that is the head too), or whose inputs are not seen (grouped
    and transposed convolutions), stays.

    Args:
        small: changed in place.
        dense: what it was cut from; left as it was.
        plan: the cut.
        batches: examples; labels are ignored.
        damping: relative to the mean of the inputs' second moment; more where a weight has fewer rows of data than
            twice its inputs, which would be fitted by chance (`secateur.score.obs.firm`). Of several, every weight
            takes what loses least on batches that are kept aside, one in four, for this choice: then it is fitted on
            all. Where none loses less there than the cut weight, that stays. A single batch goes by the first.
        memory: bytes that the dense model's outputs may take; above, both models run again for every weight.
        progress: hears ``(weights done, weights)``.

    Raises:
        DataError: no batches, NaN or inf in one, or one that a model refuses. ArgumentError: no damping, or one that is
            negative or not finite.

    Time: two forward passes over the data and, for each weight, a solve a damping, inputs cubed. A model whose modules
    hand on something besides their outputs, or with more outputs than ``memory``: part of a pass a weight.
    Memory: inputs squared, ``memory``, and about as much again of the small model's outputs.
    """
    dampings = checked_dampings(damping)
    data = [example for _, example, _ in checked(small, batches)]
    report: dict[str, tuple[float, float]] = {}
    with quiet_eval(small, dense), torch.no_grad(), fast_for(small):
        order = _consumers(small, plan, data[0])
        targets = _Targets.of(dense, data, [original(c.weight, plan.layers) for c in order], memory)
        weights = [c.weight for c in order]
        replay = Replay(small) if targets.kept is not None and same_inputs(small, weights, data[:2]) else None
        for i, c in enumerate(order):
            before, after = _refit_one_(small, targets, plan, c, dampings, replay)
            report[c.weight] = (before, after)
            log.info("refit %s: relative error %.4f -> %.4f", c.weight, before, after)
            if progress is not None:
                progress(i + 1, len(order))
    return report


def _consumers(small: nn.Module, plan: Plan, example: Example) -> list[Contraction]:
    """Weights that lost inputs and are used once, in order of use."""
    uses: dict[str, list[Contraction]] = {}

    def seen(c: Contraction) -> None:
        if (original(c.weight, plan.layers), c.in_dim) in plan.axes:
            uses.setdefault(c.weight, []).append(c)

    with Watch(small, seen):
        forward(small, example, 0)
    elsewhere = used_otherwise(small, example)
    return [cs[0] for name, cs in uses.items() if len(cs) == 1 and name not in elsewhere]


def same_inputs(model: nn.Module, weights: Sequence[str], examples: Sequence[Example]) -> bool:
    """Whether a `Replay` of a model shows weights, in the order of their use, what passes of their own do.

    Two examples in turns: what a module leaves behind for others would be that of the other one.
    """
    replay = Replay(model)
    plain = [observe(model, example, weights, i) if weights else {} for i, example in enumerate(examples)]
    try:
        return all(
            _alike(plain[i][w], observe(model, example, [w], i, replay)[w])
            for w in weights
            for i, example in enumerate(examples)
        )
    except DataError:  # it misses what a module leaves behind
        return False


def _alike(one: tuple[Contraction, Tensor | None], other: tuple[Contraction, Tensor | None]) -> bool:
    (a, left), (b, right) = one, other
    both = left is not None and right is not None and torch.equal(left, right)
    return torch.equal(a.x, b.x) and (both or left is right is None)


def observe(
    model: nn.Module, example: Example, weights: Collection[str], number: int = 0, replay: Replay | None = None
) -> dict[str, tuple[Contraction, Tensor | None]]:
    """Inputs and outputs of weights on an example, and what each output is added to, if that comes next.

    They are copies: what follows may write over them. The forward pass ends as soon as all are seen. With ``replay`` of
    the model, in which one weight after the other is changed after it was seen, what came before is not run again.

    Raises:
        DataError: a weight is not used on this example, or the model refuses it.
    """
    found: dict[str, tuple[Contraction, Tensor | None]] = {}
    last: list[tuple[Contraction, int]] = []

    def seen(c: Contraction) -> None:
        last.clear()
        if len(found) == len(weights):
            raise Enough
        if c.weight in weights and c.weight not in found:
            if replay is not None:
                replay.changes()
            found[c.weight] = (replace(c, x=c.x.clone(), y=c.y.clone()), None)
            last.append((c, version(c.y)))

    def added(left: Tensor, right: Tensor) -> None:
        if not last:
            return
        c, written = last[0]
        for mine, theirs in ((left, right), (right, left)):
            if mine.shape == c.y.shape == theirs.shape and _same_values(mine, c.y, written):
                found[c.weight] = (found[c.weight][0], theirs.clone())
                last.clear()
                if len(found) == len(weights):
                    raise Enough
                return

    again = replay.on(number) if replay else contextlib.nullcontext()
    with contextlib.suppress(Enough), again, Watch(model, seen, added):
        forward(model, example, number)
    missing = [w for w in weights if w not in found]
    if missing and replay is not None:  # this batch may come to the weights in another order
        replay.memory[number].clear()
        return observe(model, example, weights, number)
    if missing:
        raise DataError(
            f"{missing[0]} is not used on calibration batch {number}: give examples that take the same path"
        )
    return found


def _same_values(mine: Tensor, y: Tensor, written: int) -> bool:
    """Whether this is the output itself (or a view, as dropout returns it), not written to since."""
    return mine.data_ptr() == y.data_ptr() and mine.stride() == y.stride() and version(y) == written


@dataclass(frozen=True, eq=False)
class _Targets:
    """The dense model's outputs (plus what they are added to): kept where they fit in memory, else found again."""

    dense: nn.Module
    data: Sequence[Example]
    kept: Sequence[Mapping[str, tuple[Tensor, bool]]] | None

    @classmethod
    def of(cls, dense: nn.Module, data: Sequence[Example], weights: Sequence[str], memory: float) -> _Targets:
        """One pass over the data, if the outputs of all weights fit into ``memory`` bytes."""
        first = observe(dense, data[0], weights) if weights else {}
        each = sum(c.y.numel() * c.y.element_size() for c, _ in first.values())
        if each * len(data) > memory:
            return cls(dense, data, None)
        seen = (observe(dense, example, weights, number) for number, example in enumerate(data))
        return cls(dense, data, [{w: _sum(*pair) for w, pair in found.items()} for found in seen])

    def __call__(self, number: int, weight: str) -> tuple[Tensor, bool]:
        """Output rows for a batch, and whether they include the residual stream."""
        if self.kept is not None:
            return self.kept[number][weight]
        return _sum(*observe(self.dense, self.data[number], [weight], number)[weight])


def _sum(c: Contraction, residual: Tensor | None) -> tuple[Tensor, bool]:
    rows = real(c.outputs())
    return (rows, False) if residual is None else (rows + real(c.outputs(residual)), True)


def _refit_one_(
    small: nn.Module,
    targets: _Targets,
    plan: Plan,
    use: Contraction,
    dampings: Sequence[float],
    replay: Replay | None,
) -> tuple[float, float]:
    named = dict(small.named_parameters(remove_duplicate=False))
    weight = named[use.weight]
    bias = named[use.bias] if use.bias else None
    old = matrix(weight.detach(), use.in_dim).double()
    inner = old.shape[1]
    if bias is not None:
        old = torch.cat([old, bias.detach().double()[:, None]], 1)
    theirs = original(use.weight, plan.layers)
    rows = plan.axes.get((theirs, 1 - use.in_dim))
    keep = None if rows is None else torch.from_numpy(rows).to(weight.device)
    every = ASIDE if len(dampings) > 1 else 0
    sums, aside = _gather(small, targets, (use.weight, theirs), keep, Sums.zeros(old, inner), every, replay)
    taken: Sequence[float | None] = dampings[:1]
    if aside is not None:
        taken = chosen(sums, aside, old, dampings)
        sums += aside
    new, told = fit(sums, old, taken)
    weight.copy_(from_matrix(new[:, :inner], weight, use.in_dim).to(weight.dtype))
    if bias is not None:
        bias.copy_(new[:, -1].to(bias.dtype))
    return told[0]


def _gather(
    small: nn.Module,
    targets: _Targets,
    names: tuple[str, str],
    keep: Tensor | None,
    sums: Sums,
    every: int,
    replay: Replay | None,
) -> tuple[Sums, Sums | None]:
    """Sums over the batches, and over those of them that are kept aside: the last of ``every`` of them, or of fewer."""
    weight, theirs = names  # in the small model and in the dense one
    every = min(every, len(targets.data))
    aside = Sums.zeros(sums.cross, sums.inner) if every > 1 else None
    for number, example in enumerate(targets.data):
        mine, residual = observe(small, example, [weight], number, replay)[weight]
        rows, summed = targets(number, theirs)
        target = _kept(rows, keep)
        if summed and residual is not None:
            target = target - real(mine.outputs(residual))
        elif summed:
            raise DataError(f"{weight} feeds a residual stream in the dense model but not in the cut one")
        these = aside if aside is not None and number % every == every - 1 else sums
        these.add_(real(mine.rows(most=ROWS)), target[:: every_nth(len(target), ROWS)])
    return sums, aside


def _kept(rows: Tensor, keep: Tensor | None) -> Tensor:
    return rows if keep is None else rows[:, keep]
