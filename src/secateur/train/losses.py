"""Distances between outputs of a student and of its teacher: functions of ``(student, teacher, batch)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.calling import tensors_of
from secateur.errors import DataError

Loss: TypeAlias = Callable[[Any, Any, Any], Tensor]
"""``(student output, teacher output, batch) -> scalar``; the batch comes with its targets if it has any."""


def kd_kl(student: Tensor, teacher: Tensor, temperature: float = 2.0, dim: int = -1) -> Tensor:
    """Divergence of softened class distributions, ``T^2 KL(p_T(teacher) || p_T(student))``.

    ``p_T(z) = softmax(z / T)`` along ``dim``; summed over classes and averaged over everything else; the
    factor ``T^2`` keeps the gradients' size independent of the temperature (Hinton et al., 2015,
    arXiv:1503.02531).

    Returns:
        A scalar, nats.

    Example:
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> kd_kl(z, z).item()
        0.0
    """
    s = F.log_softmax(student / temperature, dim)
    t = F.log_softmax(teacher / temperature, dim)
    return (t.exp() * (t - s)).sum(dim).mean() * temperature**2


def kl_logits(
    temperature: float = 2.0, dim: int = -1, mask: Callable[[Any], Tensor] | None = None
) -> Callable[[Any, Any, Any], Tensor]:
    """The loss for classifiers: ``kd_kl`` on the logits.

    The logits are the output itself, its ``logits`` entry, or the first floating-point tensor in it.

    Args:
        temperature: T, positive; 2 to 4 is usual.
        dim: axis of the classes: -1, or 1 for maps of shape (batch, classes, height, width).
        mask: ``mask(batch)``: bool over the positions that count (True), of the logits' shape without
            ``dim``.

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> loss = kl_logits(temperature=4.0)
        >>> loss(torch.zeros(1, 2), torch.zeros(1, 2), None).item()
        0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; 2 to 4 is usual")
    return partial(_kl_logits, temperature=temperature, dim=dim, mask=mask)


def _kl_logits(
    student: Any,
    teacher: Any,
    batch: Any,
    *,
    temperature: float,
    dim: int,
    mask: Callable[[Any], Tensor] | None,
) -> Tensor:
    s, t = _same(_main(student), _main(teacher))
    if mask is not None:
        keep = mask(batch).to(device=s.device, dtype=torch.bool)
        s, t, dim = s.movedim(dim, -1)[keep], t.movedim(dim, -1)[keep], -1
    return kd_kl(s, t, temperature, dim)


def relative_mse(student: Any, teacher: Any, batch: Any = None) -> Tensor:
    """Squared error relative to the teacher's power, ``||s - t||^2 / ||t||^2``.

    The mean over the output's floating-point tensors. Fits embeddings, regression and, being free of scale,
    any other output, logits too: 0 is equal, 1 is as far as an output of all zeros.

    Raises:
        DataError: the outputs have no floating-point tensor, or tensors of other shapes.

    Example:
        >>> relative_mse(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])).item()
        0.2...
    """
    ours, theirs = _floats(student), _floats(teacher)
    if len(ours) != len(theirs):
        raise DataError(f"student and teacher return {len(ours)} and {len(theirs)} tensors: pass a loss")
    pairs = [_same(s, t) for s, t in zip(ours, theirs, strict=True)]
    return torch.stack([_power(s - t) / _power(t).clamp_min(1e-12) for s, t in pairs]).mean()


def cosine_loss(student: Any, teacher: Any, batch: Any = None) -> Tensor:
    """One minus the cosine along the last axis, mean over the rest; for embeddings.

    Example:
        >>> cosine_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
        1.0
    """
    s, t = _same(_main(student), _main(teacher))
    return (1 - F.cosine_similarity(s, t, dim=-1)).mean()


def pair_similarity_loss(student: Any, teacher: Any, batch: Any = None) -> Tensor:
    """Mean squared difference of the cosines between a batch's embeddings, over pairs of different rows.

    ``sum_{i != j} (cos(s_i, s_j) - cos(t_i, t_j))^2 / (n (n - 1))`` for embeddings (n, width); the two widths
    may differ. Keeps which inputs are close to which (Tung and Mori, 2019, arXiv:1907.09682, with cosines).
    A batch of one gives 0.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> b = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> pair_similarity_loss(a, b).item()
        1.0
    """
    s, t = _main(student), _main(teacher)
    if s.ndim != 2 or t.ndim != 2 or len(s) != len(t):
        raise DataError(
            f"pair_similarity_loss compares embeddings of shape (n, width), got {tuple(s.shape)} and "
            f"{tuple(t.shape)}: pool the outputs first"
        )
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    off = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    return ((s @ s.T - t @ t.T).square() * off).sum() / max(1, len(s) * (len(s) - 1))


def square_head(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised error of hidden states, ``MSE(student, teacher) / MSE(teacher, 0)``.

    ``mask`` is bool over the leading axes (such as batch and token); positions that are False do not count.
    Kurtic et al., 2023, arXiv:2310.06927.

    Example:
        >>> s, t = torch.tensor([[1.0], [9.0]]), torch.tensor([[2.0], [3.0]])
        >>> square_head(s, t, torch.tensor([True, False])).item()
        0.25
    """
    s, t = _same(student, teacher)
    if mask is not None:
        if mask.shape != s.shape[: mask.ndim]:
            raise DataError(f"hidden mask has shape {tuple(mask.shape)}, hidden states {tuple(s.shape)}")
        drop = ~mask.to(device=s.device, dtype=torch.bool).reshape(mask.shape + (1,) * (s.ndim - mask.ndim))
        s, t = s.masked_fill(drop, 0.0), t.masked_fill(drop, 0.0)
    return _power(s - t) / _power(t).clamp_min(1e-12)


def _power(x: Tensor) -> Tensor:
    return x.square().sum()


def _floats(output: Any) -> list[Tensor]:
    found = [t for t in tensors_of(output) if t.is_floating_point() and t.numel()]
    if not found:
        raise DataError(
            f"the model's output ({type(output).__name__}) holds no floating-point tensor to compare: "
            "pass loss=(student, teacher, batch) -> scalar"
        )
    return found


def _main(output: Any) -> Tensor:
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        logits: Tensor = output["logits"]
        return logits
    return _floats(output)[0]


def _same(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise DataError(
            f"student and teacher differ in shape, {tuple(student.shape)} and {tuple(teacher.shape)}: pass "
            "a loss that compares them, or choose modules in which they agree"
        )
    return student, teacher
