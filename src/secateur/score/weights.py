"""Weights one by one: which of a model's may go, and how much each matters."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.errors import ArgumentError, DataError, PlanError
from secateur.types import Batches, Criterion, Weighing


def prunable(model: nn.Module, ignore: Sequence[str] = (), only: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Weights that can be made sparse, by name: matrices and kernels.

    Embeddings, norms, biases, and tokens and positions of one batch entry are none.

    Args:
        model: any module. ignore: globs over parameter names and module paths that stay dense.
        only: globs; nothing else is taken. They may name embeddings too.

    Raises:
        ArgumentError: a glob matches nothing, or nothing is left.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> list(prunable(net, ignore=["3"]))
        ['1.weight']
    """
    for what, given in (("ignore", ignore), ("only", only)):
        if isinstance(given, str):
            raise ArgumentError(f"{what} is a list of globs, got the text {given!r}: give [{given!r}]")
    dense = left_dense(model)
    found: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():  # shared ones once
        if p.dim() >= 2 and p.numel() and p.dtype.is_floating_point and (only or id(p) not in dense):
            found[name] = p
    for pattern in [*ignore, *only]:
        if not any(matches(n, pattern) for n in found):
            raise ArgumentError(f"{pattern!r} matches no weight; there are {list(found)[:20]}")
    if only:
        found = {n: p for n, p in found.items() if any(matches(n, o) for o in only)}
    found = {n: p for n, p in found.items() if not any(matches(n, i) for i in ignore)}
    if not found:
        raise ArgumentError(f"{type(model).__name__} has no weights that can be made sparse, or all are ignored")
    return found


def left_dense(model: nn.Module) -> set[int]:
    """Ids of parameters that are looked up, added or scaled by: embeddings, norms, tokens, positions (1, n, width)."""
    found = set()
    for m in model.modules():
        for p in m._parameters.values():
            if p is None:
                continue
            spread = p.dim() > 2 and (p.shape[0] == 1 or p.numel() == max(p.shape)) and not isinstance(m, _ConvNd)
            if spread or isinstance(m, (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)):
                found.add(id(p))
    return found


def turned(model: nn.Module) -> frozenset[str]:
    """Names of weights that lie (inputs, outputs): of transposed convolutions and of transformers' Conv1D.

    Example:
        >>> turned(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)))
        frozenset({'1.weight'})
    """
    hub = sys.modules.get("transformers.pytorch_utils")  # a model that has one has imported it
    kinds = (_ConvTransposeNd, *([] if hub is None else [hub.Conv1D]))
    mine = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
    return frozenset(n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in mine)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob names a parameter or the module that holds it."""
    module = name.rpartition(".")[0]
    return any(fnmatch.fnmatch(n, pattern) for n in (name, module))


def calibrate_weights(
    model: nn.Module, batches: Batches | None, criterion: Criterion, weights: Mapping[str, Tensor]
) -> Any:
    """What a criterion needs to score weights, from one pass over the data; None if it needs none.

    Raises:
        DataError: it needs data and got none.
    """
    how = _weighing(criterion)
    if how.stat is None:
        return None
    if batches is None:
        raise DataError(f"criterion {criterion.name} needs calibration data: give batches")
    return how.stat(model, batches, weights)


def saliency(
    model: nn.Module, criterion: Criterion, weights: Mapping[str, Tensor], stats: Any = None
) -> dict[str, Tensor]:
    """One number a weight, larger is kept.

    Returns:
        name -> tensor of the weight's shape, float32 or float64.

    Raises:
        DataError: the criterion needs statistics and got none.
        PlanError: a score is not finite.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(2, 1)
        >>> saliency(net, sc.magnitude, prunable(net))["weight"].shape
        torch.Size([1, 2])
    """
    how = _weighing(criterion)
    if how.stat is not None and stats is None:
        raise DataError(
            f"criterion {criterion.name} needs calibration data: stats = sc.calibrate_weights(model, batches, ...)"
        )
    with torch.no_grad():
        found = how.score(model, weights, stats)
    found = {n: s.full_tensor() if hasattr(s, "full_tensor") else s for n, s in found.items()}  # sharded over ranks
    for name, s in found.items():
        if s.shape != weights[name].shape or not bool(torch.isfinite(s).all()):
            bad = int((~torch.isfinite(s)).sum())
            raise PlanError(
                f"criterion {criterion.name} gave {bad} scores that are not finite for {name}, shape {tuple(s.shape)}: "
                "check the weights and the calibration data for NaN and inf"
            )
    return found


def _weighing(criterion: Criterion) -> Weighing:
    if not isinstance(criterion, Criterion) or criterion.weights is None:
        raise ArgumentError(
            f"{getattr(criterion, 'name', criterion)!r} does not score single weights: use one such as sc.magnitude"
        )
    return criterion.weights
