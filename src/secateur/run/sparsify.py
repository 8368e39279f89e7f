"""The straight line for single weights: score, choose, zero, report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.choose.density import Densities, check_sparsity, even, select
from secateur.choose.patterns import Pattern, unstructured
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError
from secateur.evidence.gather import made_section, quality_rows
from secateur.evidence.quality import Figure
from secateur.evidence.sparse import sparse_report
from secateur.run.pipeline import Quality, figures
from secateur.score.calibrate import quiet_eval
from secateur.score.criteria import magnitude
from secateur.score.weights import calibrate_weights, prunable, saliency, turned
from secateur.types import Batches, Criterion, Report


@dataclass(frozen=True, eq=False)
class SparseResult:
    """What `sparsify` returns.

    Attributes:
        model: a copy with exact zeros. masks: parameter name -> bool, True keeps. report: the evidence.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    report: Report


def sparsify(
    model: nn.Module,
    batches: Batches | None = None,
    criterion: Criterion = magnitude,
    pattern: Pattern = unstructured,
    sparsity: float | None = None,
    density: Densities = even,
    *,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    rounds: int = 1,
    quality: Quality | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda words: None,
) -> SparseResult:
    """Zero the least salient weights of a copy of a model; the given one is left as it was, bit for bit.

    With ``rounds`` of n the fraction kept falls as ``density^(k/n)``, k = 1..n, and what is left is scored anew each
    round (arXiv:2006.05467, 2006.09081): an untrained model is pruned at initialisation so.

    Args:
        model: trained or not.
        batches: calibration data, where the criterion needs it.
        criterion: how much each weight matters; one that scores single weights.
        pattern: which weights go together, such as ``sc.unstructured`` or ``sc.nm(2, 4)``.
        sparsity: the fraction removed of all chosen weights together, in [0, 1); the pattern's own, or else 0.5.
        density: how much goes where: ``sc.even``, ``sc.ranked``, ...
        ignore: globs over parameter names and module paths that stay dense.
        only: globs; nothing else is made sparse.
        rounds: how often to score and remove.
        quality: judged before and after.
        seed: of everything that is drawn.
        tell: hears what is being done.

    Raises:
        ArgumentError: an argument is out of its range, or a glob matches nothing.
        DataError: the criterion needs data and got none.
        PlanError: a score is not finite.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = sparsify(net, sparsity=0.75)
        >>> int((result.model[0].weight == 0).sum()), int((net[0].weight == 0).sum())
        (24, 0)
    """
    asked = _check(sparsity, pattern, density, rounds, seed)
    torch.manual_seed(seed)
    np.random.seed(seed)
    before = model_hash(model)
    judged = _judge(model, quality)
    if model_hash(model) != before:
        raise DataError("the quality function wrote to the model that it judged")
    data = list(batches) if rounds > 1 and isinstance(batches, Iterable) and iter(batches) is batches else batches
    work = copy.deepcopy(model)
    weights = prunable(work, ignore, only)
    masks, first = _choose(work, data, criterion, weights, pattern, density, asked, rounds, tell)
    _check_kept(model, work, masks)
    tell("reporting")
    rows = quality_rows(judged, _judge(work, quality))
    made = {
        **made_section(seed, before, model_hash(work)),
        "criterion": criterion.name,
        "pattern": pattern.name,
        "density": getattr(density, "__name__", str(density)),
        "rounds": rounds,
    }
    report = sparse_report(work, masks, first, asked, pattern, ignore, only, rows, made)
    return SparseResult(work, masks, report)


def _choose(
    work: nn.Module,
    data: Batches | None,
    criterion: Criterion,
    weights: Mapping[str, nn.Parameter],
    pattern: Pattern,
    density: Densities,
    sparsity: float,
    rounds: int,
    tell: Callable[[str], None],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Score and zero, round by round; the masks, and the saliency of the first round."""
    masks: dict[str, Tensor] | None = None
    first: dict[str, Tensor] = {}
    for k in range(1, rounds + 1):
        tell("scoring" if rounds == 1 else f"round {k} of {rounds}")
        scores = saliency(work, criterion, weights, calibrate_weights(work, data, criterion, weights))
        first = first or scores
        part = 1 - (1 - sparsity) ** (k / rounds) if k < rounds else sparsity
        masks = select(scores, part, pattern, density, masks, turned(work))
        with torch.no_grad():
            for name, w in weights.items():
                w.masked_fill_(~masks[name], 0)  # a product would leave -0.0 and NaN
                w.grad = None
    assert masks is not None
    return masks, first


def _check(sparsity: float | None, pattern: Pattern, density: Densities, rounds: int, seed: int) -> float:
    if not isinstance(pattern, Pattern):
        raise ArgumentError(f"pattern is {pattern!r}; expected a Pattern such as sc.unstructured or sc.nm(2, 4)")
    if not callable(density):
        raise ArgumentError(f"density is {density!r}; expected a function such as sc.even, sc.erk or sc.owl()")
    if pattern.density is not None and density is not even:
        raise ArgumentError(f"pattern {pattern.name} keeps {pattern.density:g} of every weight: leave density out")
    own = None if pattern.density is None else 1 - pattern.density
    if sparsity is None:
        sparsity = 0.5 if own is None else own
    check_sparsity(sparsity)
    if own is not None and abs(sparsity - own) > 1e-9:
        raise ArgumentError(
            f"pattern {pattern.name} removes {own:g} of the weights by itself, and sparsity={sparsity:g} was asked: "
            "leave sparsity out, or take another pattern"
        )
    if not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError(f"rounds is how often to score and remove, 1 or more; got {rounds!r}")
    if rounds > 1 and own is not None:
        raise ArgumentError(f"pattern {pattern.name} is reached in one round: it has no smaller sparsities on the way")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ArgumentError(f"seed must be a whole number in [0, 2**32), got {seed!r}")
    return float(sparsity)


def _judge(model: nn.Module, quality: Quality | None) -> dict[str, Figure]:
    with quiet_eval(model):
        return {} if quality is None else figures(quality(model))


def _check_kept(dense: nn.Module, sparse: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """What was not removed is what it was: a criterion only looks."""
    after: dict[str, Any] = {**dict(sparse.named_parameters()), **dict(sparse.named_buffers())}
    for name, old in [*dense.named_parameters(), *dense.named_buffers()]:
        new, mask = after[name], masks.get(name)
        expected = old.detach() if mask is None else old.detach().masked_fill(~mask.to(old.device), 0)
        if not torch.equal(_bytes(expected), _bytes(new.detach())):
            raise DataError(f"the criterion wrote to {name} while it scored: it must leave the model as it was")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def with_command(report: Report, command: str) -> Report:
    """The same report, made by this command."""
    return replace(report, sections={**report.sections, "made": {**report.sections["made"], "command": command}})
