"""What each weight tensor can bear: one at a time is made sparse, and the model is evaluated."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.choose.density import check_sparsity
from secateur.choose.patterns import Pattern, unstructured
from secateur.digest import model_hash
from secateur.errors import DataError, FormatError, PlanError
from secateur.score.weights import saliency
from secateur.types import Criterion

FORMAT = "secateur.sensitivity"


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    weights: Mapping[str, Tensor],
    criterion: Criterion,
    sparsities: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    stats: Any = None,
    pattern: Pattern = unstructured,
    path: str | os.PathLike[str] | None = None,
) -> dict[str, dict[float, float]]:
    """Error curves by ablation: ``curve[sparsity] = evaluate(model with this one weight made so sparse)``.

    ``evaluate`` is called ``1 + weights x sparsities`` times; every weight is put back bit by bit, also if it raises,
    and with a path every value is on disk once it is known: a later call goes on from there.

    Args:
        model: changed only while ``evaluate`` runs. evaluate: the loss, lower is better, called without gradients; it
            should draw nothing at random and set the mode that it needs.
        weights: from `sc.prunable`. criterion: ranks them.
        sparsities: of each weight; the dense loss is measured too. stats: from `sc.calibrate_weights`, if the
            criterion needs them.
        pattern: what goes together; one that fixes the density has that single sparsity, whatever is asked.
        path: a JSON file, made if it is not there.

    Returns:
        weight -> sparsity, 0 included -> loss, in the unit of ``evaluate``: what `by_sensitivity` takes.

    Raises:
        ArgumentError: a sparsity is not in [0, 1).
        DataError: ``evaluate`` gave no finite number.
        FormatError: the file is not one of ours, or was made of another model, criterion or pattern.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
        >>> def evaluate(model):
        ...     return float((model(torch.ones(1, 2)) - 4).square().sum())
        >>> sensitivity(net, evaluate, {"weight": net.weight}, sc.magnitude, [0.5])
        {'weight': {0.0: 0.0, 0.5: 1.0}}
    """
    fixed = pattern.density
    asked = sorted({check_sparsity(s) for s in (sparsities if fixed is None else [1 - fixed])} - {0.0})
    file = None if path is None else Path(path)
    about = {"format": FORMAT, "model": model_hash(model), "criterion": criterion.name, "pattern": pattern.name}
    known = _read(file, about)
    missing = [(n, s) for n in weights for s in asked if s not in known.get(n, {})]
    scores = saliency(model, criterion, weights, stats) if missing else {}

    def measure(name: str, sparsity: float) -> None:
        with torch.no_grad():
            found = _finite(evaluate(model), name, sparsity)
        known.setdefault(name, {})[sparsity] = found
        _write(file, about, known)

    if not known.get(""):
        measure("", 0.0)  # the same of all
    for name, sparsity in missing:
        with _without(weights[name], _mask(name, scores[name], sparsity, pattern)):
            measure(name, sparsity)
    return {name: {0.0: known[""][0.0], **{s: known[name][s] for s in asked}} for name in weights}


class _without:
    """A weight is masked inside of the block, and what it was again behind it."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        self.weight, self.mask, self.held = weight, mask, weight.detach().clone()

    def __enter__(self) -> None:
        with torch.no_grad():
            self.weight.masked_fill_(~self.mask.to(self.weight.device), 0)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            self.weight.copy_(self.held)


def _mask(name: str, scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    wanted = scores.numel() - round(sparsity * scores.numel())
    try:
        return pattern.select(scores, pattern.count(tuple(scores.shape), wanted), None)
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from error


def _finite(found: Any, name: str, sparsity: float) -> float:
    try:
        number = float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"evaluate gave {type(found).__name__}; expected one number, the loss") from error
    if not math.isfinite(number):
        of = f"with {name} at sparsity {sparsity}" if name else "of the dense model"
        raise DataError(f"evaluate gave {number} {of}: leave this sparsity out, or bound the loss")
    return number


def _read(file: Path | None, about: Mapping[str, str]) -> dict[str, dict[float, float]]:
    if file is None or not file.exists():
        return {}
    try:
        held = json.loads(file.read_text())
        curves = {n: {float(s): float(v) for s, v in curve.items()} for n, curve in held["curves"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{file} holds no sensitivity curves ({error}); give another path") from error
    if differ := [k for k, v in about.items() if held.get(k) != v]:
        raise FormatError(
            f"{file} was made with another {', '.join(differ)}: "
            f"{', '.join(f'{held.get(k)!r}, not {about[k]!r}' for k in differ)}; give another path, or delete it"
        )
    return curves


def _write(file: Path | None, about: Mapping[str, str], curves: Mapping[str, Mapping[float, float]]) -> None:
    """The whole file or none of it."""
    if file is not None:
        told = {**about, "curves": {n: {repr(s): v for s, v in c.items()} for n, c in curves.items()}}
        write_bytes(file, json.dumps(told, indent=1).encode())
