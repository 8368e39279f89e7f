"""PyTorch on CUDA with 2:4 linears: tensor cores that skip the zeros, in half precision.

``torch.sparse.to_sparse_semi_structured`` (Mishra et al., Accelerating sparse deep neural networks, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calling import as_call
from secateur.errors import TargetError
from secateur.export.prepare import Array, array, batch_of, first_line, moved, output_tensors, snapshot
from secateur.targets.device import cuda_device
from secateur.types import Artefact, Example, Target

LEAST_CAPABILITY = (8, 0)
"""The first devices with sparse tensor cores."""
MULTIPLES = {torch.float16: (32, 64), torch.bfloat16: (32, 64)}
"""Rows and columns of a weight must be multiples of these: what torch's CUTLASS kernels, the stricter ones, take."""


def why_dense(model: nn.Module, dtype: torch.dtype = torch.float16) -> Mapping[str, str]:
    """Path of every `torch.nn.Linear` -> why its weight stays dense; "" where it is taken as 2:4.

    Taken is what has at most 2 non-zeros in every 4 neighbours of a row, and sizes that the kernels take.

    Args:
        model: with its zeros.
        dtype: what the target computes in, ``torch.float16`` or ``torch.bfloat16``.

    Raises:
        TargetError: the kernels have no such type.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
        >>> _ = net[0].weight.data.view(-1, 4)[:, :2].zero_()
        >>> why_dense(net)
        {'0': '', '1': '2 rows are no multiple of 32'}
    """
    if dtype not in MULTIPLES:
        raise TargetError(f"cuda_24: {dtype} has no 2:4 kernels here: take {' or '.join(str(d) for d in MULTIPLES)}")
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {path: _why_dense(m.weight, MULTIPLES[dtype], uses.get(id(m.weight), 0)) for path, m in linears.items()}


def _why_dense(weight: Tensor, multiples: tuple[int, int], uses: int) -> str:
    for size, multiple, axis in zip(weight.shape, multiples, ("rows", "columns"), strict=True):
        if size % multiple:
            return f"{size} {axis} are no multiple of {multiple}"
    if uses != 1:
        return "its weight is shared with another module, or computed"
    full = int(((weight.detach().reshape(-1, 4) != 0).sum(1) > 2).sum())
    return f"{full} of {weight.numel() // 4} groups of 4 have more than 2 non-zeros" if full else ""


def build(model: nn.Module, example: Example, threads: int, dtype: torch.dtype = torch.float16) -> Artefact:
    """Make a copy in half precision on the CUDA device, with every linear that is 2:4 stored and multiplied as such.

    Raises:
        TargetError: no CUDA device that can, no linear that is 2:4, or the model does not run on the example.
    """
    device = cuda_device("cuda_24", LEAST_CAPABILITY)
    reasons = why_dense(model, dtype)
    taken = [path for path, why in reasons.items() if not why]
    if not taken:
        few = "; ".join(f"{path}: {why}" for path, why in list(reasons.items())[:3])
        raise TargetError(f"cuda_24: no linear of {type(model).__qualname__} is 2:4 ({few}): sparsify with sc.nm(2, 4)")
    before = torch.cuda.memory_allocated(device)
    twin = snapshot(model).to(device, dtype)
    for path in taken:
        linear: Any = twin.get_submodule(path)
        packed = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        linear.weight = nn.Parameter(packed, requires_grad=False)
    weights = torch.cuda.memory_allocated(device) - before
    args, kwargs = as_call(_halved(example, device, dtype))

    def run() -> list[Tensor]:
        with torch.inference_mode():
            outputs = output_tensors(twin(*args, **kwargs))
        torch.cuda.synchronize(device)
        return outputs

    def call(other: Example) -> list[Array]:
        positional, keyword = as_call(_halved(other, device, dtype))
        try:
            with torch.inference_mode():
                return [array(t) for t in output_tensors(twin(*positional, **keyword))]
        except Exception as e:
            raise TargetError(
                f"cuda_24: {type(model).__qualname__} does not run on the example given: {first_line(e)}"
            ) from e

    def peak() -> int:
        now = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(weights + torch.cuda.max_memory_allocated(device) - now)

    call(example)
    return Artefact(run, call, target="cuda_24", threads=threads, batch=batch_of(example), peak=peak)


cuda_24 = Target("cuda_24", build)


def _halved(example: Example, device: torch.device, dtype: torch.dtype) -> Example:
    def half(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    changed: Example = pytree.tree_map(half, moved(example, device))
    return changed


if __name__ == "__main__":
    first = nn.Linear(128, 256)
    first.weight.data.view(-1, 4)[:, :2].zero_()
    print(why_dense(nn.Sequential(first, nn.ReLU(), nn.Linear(256, 128))))
