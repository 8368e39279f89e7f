"""How a model is called: examples, what a batch holds, and the tensors that come out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import DataError
from secateur.types import Example


def as_call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example.

    Example:
        >>> import torch
        >>> as_call(torch.ones(1))
        ((tensor([1.]),), {})
        >>> as_call({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        f"example must be a tensor, a tuple of arguments or a dict of keyword arguments, got {type(example)}"
    )


def run(model: nn.Module, example: Example) -> Any:
    """Call the model on an example."""
    args, kwargs = as_call(example)
    return model(*args, **kwargs)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a model's output, in order, whatever container it uses.

    Example:
        >>> import torch
        >>> len(tensors_of({"a": torch.ones(1), "b": (torch.ones(2), None)}))
        2
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for v in output.values() for t in tensors_of(v)]
    if isinstance(output, (tuple, list)):
        return [t for v in output for t in tensors_of(v)]
    return []


def example_of(model: nn.Module) -> Callable[[Any], tuple[Example, Any]]:
    """A function that splits a batch into its example and its targets (None where there are none).

    A pair ``(example, targets)`` is told from two positional arguments by its first entry (a tuple or dict is an
    example) and else by the number of arguments that ``model.forward`` requires: two or more make it an example.

    Example:
        >>> import torch
        >>> example_of(nn.Linear(1, 1))((torch.zeros(1), torch.ones(1)))
        (tensor([0.]), tensor([1.]))
    """
    required = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]

    def split(batch: Any) -> tuple[Example, Any]:
        if isinstance(batch, Tensor):
            return batch, None
        if isinstance(batch, Mapping):
            return dict(batch), None
        if not isinstance(batch, (tuple, list)):
            raise DataError(
                f"a batch must be a tensor, a tuple, a dict or a pair (example, targets), got {type(batch).__name__}"
            )
        if len(batch) == 2 and isinstance(batch[0], (tuple, list, Mapping)):
            return (dict(batch[0]) if isinstance(batch[0], Mapping) else tuple(batch[0])), batch[1]
        if len(batch) == 2 and len(required) < 2:
            if not isinstance(batch[0], Tensor):
                raise DataError(f"a pair (example, targets) must begin with a tensor, got {type(batch[0]).__name__}")
            return batch[0], batch[1]
        return tuple(batch), None

    return split


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module by every path, as ``named_modules(remove_duplicate=False)`` has them, several times as fast."""
    found: list[tuple[str, nn.Module]] = []
    todo: list[tuple[str, nn.Module]] = [("", model)]
    while todo:
        path, module = todo.pop()
        found.append((path, module))
        if module._modules:
            lead = f"{path}." if path else ""
            todo += [(lead + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, by its first path."""
    seen: set[int] = set()
    return {path: m for path, m in walk(model) if id(m) not in seen and not seen.add(id(m))}  # type: ignore[func-returns-value]


def named_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every parameter and every buffer, by every name it has."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for prefix, module in walk(model):
        for holder, out in ((module._parameters, parameters), (module._buffers, buffers)):
            for name, tensor in holder.items():
                if tensor is not None:
                    out[f"{prefix}.{name}" if prefix else name] = tensor
    return parameters, buffers
