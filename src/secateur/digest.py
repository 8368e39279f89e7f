"""Digests of tensors and models: what was pruned, resumed or built is told by its content."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes. Linear in the bytes; one tensor at a time is copied to the host.

    Example:
        >>> digest_of([("a", torch.zeros(2))])[:8]
        '...'
    """
    sha = hashlib.sha256()
    for name, t in tensors:
        sha.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        if t.numel():
            sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors and arrays in nested data, named by where they are, for `digest_of`; what is neither goes by its text.

    Example:
        >>> [(name, tuple(t.shape)) for name, t in tensors_in({"a": np.zeros(2), "n": 3})]
        [('.a', (2,)), ('.n=3', (0,))]
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, f"{name}.{key}")
    elif isinstance(value, (Tensor, np.ndarray)):
        yield name, torch.as_tensor(value)
    else:
        yield f"{name}={value!r}", torch.zeros(0)


def model_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> before = model_hash(net)
        >>> _ = net(torch.randn(3, 2))  # in training, it writes its running statistics
        >>> model_hash(net) == before
        False
    """
    return digest_of(itertools.chain(model.named_parameters(), model.named_buffers()))
