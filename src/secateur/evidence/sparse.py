"""The evidence of a sparse model: asked beside exact, by weight and in total, what stayed dense, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.choose.patterns import Pattern
from secateur.evidence import words
from secateur.score.weights import left_dense, matches
from secateur.types import Report, Row

SLACK = 0.005
"""A sparsity that a pattern or rounding brings this near to what was asked counts as reached."""


def sparse_report(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    sparsity: float,
    pattern: Pattern,
    ignore: Sequence[str],
    only: Sequence[str],
    quality: Sequence[Row],
    made: Mapping[str, Any],
) -> Report:
    """The evidence as a report; its sections ``sparsity`` and ``stayed_dense`` have a line a weight.

    Args:
        model: the sparse one. masks: True keeps. scores: saliency by weight, before anything was removed.
        sparsity: asked of all masked weights together. pattern: what rounded it.
        ignore, only: the globs that were given. quality: rows of judged figures. made: what made it.
    """
    layers = [_layer(name, mask, scores[name]) for name, mask in masks.items()]
    total, kept = sum(x["size"] for x in layers), sum(x["kept"] for x in layers)
    wanted = total - round(sparsity * total)
    exact = 1 - kept / total
    reached = abs(kept - wanted) <= len(layers) or abs(exact - sparsity) <= SLACK
    note = "" if kept == wanted else f"{kept - wanted:+d} weights kept, by rounding ({pattern.name})"
    params = sum(p.numel() for p in model.parameters())
    nonzero = sum(int((p != 0).sum()) for p in model.parameters())
    share = _share(list(scores.values()), list(masks.values()))
    rows = [
        Row("sparsity", "", None, exact, sparsity, reached, note=note),
        Row("parameters (not zero)", "", float(params), float(nonzero)),
        *([] if share is None else [Row("saliency kept", "", 1.0, share)]),
        *quality,
    ]
    said = f"{words.percent(exact)} of {words.count(total)} weights are zero, {pattern.name}"
    said += f" (asked {words.percent(sparsity)})" if words.percent(sparsity) != words.percent(exact) else ""
    sections = {
        "title": "Sparsity report",
        "verdict": {"ok": reached, "words": said},
        "sparsity": layers,
        "stayed_dense": stayed_dense(model, masks, ignore, only),
        "made": dict(made),
    }
    return Report(reached, 0.0, tuple(rows), sections)


def _layer(name: str, mask: Tensor, score: Tensor) -> dict[str, Any]:
    size, kept = mask.numel(), int(mask.sum())
    share = _share([score], [mask])
    return {"weight": name, "size": size, "kept": kept, "sparsity": 1 - kept / size, "saliency_kept": share}


def _share(scores: Sequence[Tensor], masks: Sequence[Tensor]) -> float | None:
    """Kept over all; None where scores can be negative, or all are zero."""
    if any(bool((s < 0).any()) for s in scores):
        return None
    total = sum(float(s.double().sum()) for s in scores)
    kept = sum(float(s[m.to(s.device)].double().sum()) for s, m in zip(scores, masks, strict=True))
    return min(kept / total, 1.0) if total > 0 else None


def stayed_dense(
    model: nn.Module, masks: Mapping[str, Tensor], ignore: Sequence[str] = (), only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Parameters without a mask, and parameters whose mask keeps all, each with its reason.

    Example:
        >>> stayed_dense(nn.Linear(2, 2), {"weight": torch.eye(2, dtype=torch.bool)})
        [{'name': 'bias', 'size': 2, 'reason': 'a bias, a norm or another vector'}]
    """
    dense = left_dense(model)
    found = []
    for name, p in model.named_parameters():
        mask = masks.get(name)
        if mask is not None and not bool(mask.all()):
            continue
        reason = "all of it was chosen to stay" if mask is not None else _reason(name, p, dense, ignore, only)
        found.append({"name": name, "size": p.numel(), "reason": reason})
    return found


def _reason(name: str, p: nn.Parameter, dense: set[int], ignore: Sequence[str], only: Sequence[str]) -> str:
    if p.dim() < 2:
        return "a bias, a norm or another vector"
    if not p.dtype.is_floating_point or p.dtype == torch.bool:
        return f"{p.dtype}, not a floating-point weight"
    for glob in ignore:
        if matches(name, glob):
            return f"ignored: {glob}"
    if only and not any(matches(name, glob) for glob in only):
        return "not named by only"
    return "an embedding, a norm or a position" if id(p) in dense else "left out by default"
