"""Matrix products of float32 on processors where the library that torch calls for them is slow.

torch multiplies float32 matrices by Intel's MKL, which keeps its fast kernels for Intel's processors; oneDNN, which
comes with the same torch and runs its convolutions, has them for all. On an AMD EPYC with AVX-512 it is more than twice
as fast (``benchmarks/results/llm.csv``, experiment ``products``).
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

WORK = 1 << 20
"""Multiplications from which on a product is worth the way."""

LARGE = 1 << 15
"""Entries of such a matrix."""


def fast(device: torch.device | str = "cpu") -> AbstractContextManager[Any]:
    """Within it, products of two float32 matrices on a CPU are oneDNN's where torch's own are slow; else nothing.

    They differ from torch's own as sums in another order do. Gradients go through them. Everything that torch does
    within it takes a few microseconds more: it is for passes through models, not for loops over small tensors.

    Args:
        device: that the work is done on; on another than the CPU nothing changes.

    Example:
        >>> x, w = torch.randn(64, 256), torch.randn(128, 256)
        >>> with fast():
        ...     y = x @ w.T
        >>> torch.allclose(y, x @ w.T, atol=1e-4)
        True
    """
    return OneDnn() if torch.device(device).type == "cpu" and slow_here() else contextlib.nullcontext()


def fast_for(model: nn.Module) -> AbstractContextManager[Any]:
    """`fast`, for a model with a matrix that is large enough to gain by it; else nothing.

    Example:
        >>> type(fast_for(nn.Linear(4, 4))).__name__
        'nullcontext'
    """
    large = next((p for p in model.parameters() if p.dim() == 2 and p.numel() >= LARGE), None)
    return contextlib.nullcontext() if large is None else fast(large.device)


@functools.cache
def slow_here() -> bool:
    """Whether torch calls MKL on a processor of another maker, and oneDNN is there."""
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return there and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _maker() not in ("GenuineIntel", "")


def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


class OneDnn(TorchDispatchMode):
    """Sends products to oneDNN, below autograd: modes and hooks on torch's functions see what they always see."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Multiply, or pass the call on."""
        if not kwargs:
            if func is torch.ops.aten.mm.default and worth_it(*args):
                return product(args[0], args[1])
            if func is torch.ops.aten.addmm.default and worth_it(*args[1:]) and args[0].shape == args[2].shape[1:]:
                return product(args[1], args[2], args[0])
            if func is torch.ops.aten.addmm_.default and worth_it(args[1], args[2]):
                return args[0].add_(product(args[1], args[2]))
            if func is torch.ops.aten.linear.default and worth_it(args[0], args[1].t()):  # where nothing takes it apart
                x, bias = args[0], args[2] if len(args) > 2 else None
                if bias is None or bias.shape == args[1].shape[:1]:
                    return product(x.reshape(-1, x.shape[-1]), args[1].t(), bias).view(*x.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def worth_it(left: Tensor, right: Tensor) -> bool:
    """Whether a product is one of plain float32 matrices on the CPU, of more than a few rows, and large."""
    for t in (left, right):
        plain = type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided and not t.is_neg()
        if not plain or t.dtype != torch.float32 or t.device.type != "cpu":
            return False
    if right.dim() != 2:  # a vector in a linear layer's place
        return False
    return left.numel() >= 8 * right.shape[0] and left.numel() * right.shape[1] >= WORK


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ right + bias`` by oneDNN; float32, (n, d) and (d, m), and (m,)."""
    added = None if bias is None else bias.contiguous()  # its strides are not looked at
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(left), _dense(right).t(), added, "none", [], "")
    return out


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps: oneDNN takes a part of a wider matrix by a kernel that is a hundred times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
