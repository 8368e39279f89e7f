"""What every runtime needs before it can take a model: a frozen copy, and its example as named arrays."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calling import as_call, tensors_of
from secateur.errors import TargetError
from secateur.graph.copying import duplicate
from secateur.types import Example

Array = npt.NDArray[Any]


def snapshot(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the weights' memory, without gradients; the model is not touched.

    Key-value caches of Hugging Face models are off in it: they are no tensors, and no part of a forward.

    Example:
        >>> net = nn.Dropout().train()
        >>> snapshot(net).training, net.training
        (False, True)
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                shared[id(value)] = value.detach()
    shared.update({id(b): b.detach() for b in model.buffers()})
    shared.update({id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()})
    twin = duplicate(model, shared).eval()
    for module in twin.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False
    return twin


def named_tensors(example: Example) -> dict[str, Tensor]:
    """The tensors of an example in the order of the call, by keyword or position; nested ones as ``a_0``.

    Example:
        >>> list(named_tensors({"x": torch.ones(1), "pair": (torch.ones(1), None, torch.ones(1))}))
        ['x', 'pair_0', 'pair_2']
    """
    args, kwargs = as_call(example)
    leaves, _ = pytree.tree_flatten_with_path(kwargs if kwargs else args)
    return {"_".join(_key(k) for k in path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def batch_of(example: Example) -> int:
    """The leading size that most tensors have, the first such on a tie; 1 where none has any.

    Example:
        >>> batch_of({"scale": torch.ones(5), "x": torch.ones(3, 2), "mask": torch.ones(3, 2)})
        3
    """
    sizes = [int(t.shape[0]) for t in named_tensors(example).values() if t.ndim]
    return max(sizes, key=sizes.count, default=1)


def rebatched(example: Example, size: int) -> Example:
    """The example with ``size`` rows, repeating its own, in every tensor that shares its batch size.

    Example:
        >>> rebatched(torch.tensor([1, 2]), 3)
        tensor([1, 2, 1])
    """
    batch = batch_of(example)

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf
        return leaf[torch.arange(size, device=leaf.device) % batch]

    changed: Example = pytree.tree_map(repeat, example)
    return changed


def moved(example: Example, device: torch.device | str) -> Example:
    """The example on another device."""
    there: Example = pytree.tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, example)
    return there


def array(tensor: Tensor) -> Array:
    """A tensor as numpy; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output in the order in which exporters flatten it."""
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return found or tensors_of(output)


def matched(inputs: Sequence[str], example: Example, runtime: str) -> dict[str, Array]:
    """The arrays that a file takes: matched by keyword where the example has its names, else by position.

    Raises:
        TargetError: names or counts do not fit.

    Example:
        >>> matched(["x"], torch.ones(1), "onnx")
        {'x': array([1.], dtype=float32)}
    """
    given = named_tensors(example)
    if set(inputs) <= set(given):
        chosen = {name: given[name] for name in inputs}
    elif len(inputs) == len(given) and (len(inputs) == 1 or not isinstance(example, dict)):
        chosen = dict(zip(inputs, given.values(), strict=True))
    else:
        raise TargetError(
            f"{runtime}: the example has tensors {list(given)}, the file takes {list(inputs)}: name them alike"
        )
    return {name: array(t) for name, t in chosen.items()}


def first_line(error: BaseException) -> str:
    r"""The first line of what an error goes back to, without colours.

    Example:
        >>> first_line(ValueError("no\nstack"))
        'ValueError: no'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = text.splitlines()[0].strip() if text else ""
    return f"{type(error).__name__}: {line}"[:300].rstrip(": ")


def need(extra: str, *packages: str) -> list[Any]:
    """Import optional packages.

    Raises:
        TargetError: one is missing; names the pip extra that brings it.

    Example:
        >>> need("onnx", "json")[0].__name__
        'json'
    """
    found = []
    for package in packages:
        try:
            found.append(importlib.import_module(package))
        except ImportError as e:
            raise TargetError(
                f"{package} is needed and cannot be imported ({first_line(e)}): pip install 'secateur[{extra}]'"
            ) from e
    return found
