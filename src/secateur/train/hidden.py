"""Hidden states of student and teacher: which modules, their outputs, and projections where widths differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.errors import DataError


def matched_modules(hidden: Sequence[str] | Mapping[str, str], small: nn.Module, dense: nn.Module) -> dict[str, str]:
    """Student path -> teacher path of the modules whose outputs are compared.

    A pattern is matched part by part: ``encoder.layer.*`` is every layer, not what is inside the layers.

    Raises:
        ValueError: a path or pattern names no module of either model.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
        >>> matched_modules(("*",), net, net)
        {'0': '0', '1': '1'}
    """
    pairs: dict[str, str] = {}
    if isinstance(hidden, str):
        hidden = (hidden,)
    for pattern in hidden:
        teacher = hidden[pattern] if isinstance(hidden, Mapping) else None
        found = [n for n, _ in small.named_modules() if n and _matches(n, pattern)]
        if not found:
            raise ValueError(f"hidden: {_unknown(pattern, small, 'small')}")
        if teacher is not None and len(found) > 1:
            raise ValueError(f"hidden: a mapping pairs single modules; {pattern!r} matches {len(found)}")
        pairs.update({n: teacher or n for n in found})
    known = {n for n, _ in dense.named_modules()}
    for path in pairs.values():
        if path not in known:
            raise ValueError(f"hidden: {_unknown(path, dense, 'dense')}")
    return pairs


def _matches(name: str, pattern: str) -> bool:
    a, b = name.split("."), pattern.split(".")
    return len(a) == len(b) and all(fnmatchcase(x, y) for x, y in zip(a, b, strict=True))


def _unknown(path: str, model: nn.Module, which: str) -> str:
    names = [n for n, _ in model.named_modules() if n]
    near = difflib.get_close_matches(path, names, 3, 0.4) or names[:3]
    return f"no module of the {which} model matches {path!r}; near: {', '.join(near)}"


@contextmanager
def captured(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The first floating-point tensor that each module returns, a list a path, in the order of the calls.

    The caller empties the lists before each forward.
    """
    seen: dict[str, list[Tensor]] = {p: [] for p in paths}

    def hook(path: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            first = next((t for t in tensors_of(output) if t.is_floating_point()), None)
            if first is None:
                raise DataError(f"hidden: module {path!r} returns {type(output).__name__}, no floating-point tensor")
            seen[path].append(first)

        return keep

    handles = [model.get_submodule(p).register_forward_hook(hook(p)) for p in seen]
    try:
        yield seen
    finally:
        for h in handles:
            h.remove()


def paired(
    pairs: Mapping[str, str], student: Mapping[str, list[Tensor]], teacher: Mapping[str, list[Tensor]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """``(student path, student state, teacher state)`` for every call of every pair."""
    for path, other in pairs.items():
        if not student[path] or len(student[path]) != len(teacher[other]):
            raise DataError(
                f"hidden: {path!r} was called {len(student[path])} times in the small model and {other!r} "
                f"{len(teacher[other])} times in the dense one: choose modules that both forward passes call"
            )
        for s, t in zip(student[path], teacher[other], strict=True):
            yield path, s, t


def fit_projection(path: str, student: Tensor, teacher: Tensor, ridge: float = 1e-3) -> Tensor | None:
    """Matrix (teacher width, student width) from student to teacher states, or None where the shapes agree.

    Ridge least squares over all positions, ``Y X' (X X' + ridge * mean(diag) I)^-1``: a trained start, so
    that the first steps do not drag the student towards a random subspace.

    Raises:
        DataError: the shapes differ in more than one axis.

    Example:
        >>> x = torch.eye(2)
        >>> fit_projection("fc", x, x @ torch.tensor([[1.0, 0, 1], [0, 1, 1]]), 0.0)
        tensor([[1., 0.],
                [0., 1.],
                [1., 1.]])
    """
    if student.shape == teacher.shape:
        return None
    axes = [d for d in range(student.ndim) if student.ndim == teacher.ndim and student.shape[d] != teacher.shape[d]]
    if len(axes) != 1:
        raise DataError(
            f"hidden: {path!r} gives {tuple(student.shape)} in the small model and {tuple(teacher.shape)} in "
            "the dense one; a projection bridges one axis only"
        )
    x = student.detach().movedim(axes[0], -1).flatten(0, -2).double()
    y = teacher.detach().movedim(axes[0], -1).flatten(0, -2).double()
    gram = x.T @ x
    damp = (ridge * gram.diagonal().mean()).clamp_min(1e-12) if ridge else 0.0
    gram = gram + damp * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight: Tensor = torch.linalg.solve(gram, x.T @ y).T.to(student.dtype)
    return weight.contiguous()


def project(student: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """The student's states in the teacher's width; the axis is the one in which the shapes differ."""
    if weight is None or student.shape == teacher.shape:
        return student
    axis = next(d for d in range(student.ndim) if student.shape[d] != teacher.shape[d])
    return F.linear(student.movedim(axis, -1), weight).movedim(-1, axis)
