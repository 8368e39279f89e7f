"""What a linear layer is fed, by its norms alone: for solvers that look at no pair of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError


@dataclass(frozen=True, eq=False)
class Norms:
    """Norms of the inputs ``x`` of a linear layer: as `Gram`, for a hundredth of its memory and time.

    Attributes:
        square: ``E x_j²``, (d,). mean: ``E x``, (d,). rows: how many inputs they are the mean of.
        sample: some of the inputs, (n, d), to tell the error by. name: of the layer, for messages.

    Raises:
        DataError: no rows, or norms that are not finite.

    Example:
        >>> NormSum.zeros(2).add_(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).gram().square
        tensor([5., 0.])
    """

    square: Tensor
    mean: Tensor
    rows: int
    sample: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        of = f" of {self.name}" if self.name else ""
        if self.rows < 1:
            raise DataError(f"no calibration token reached the inputs{of}: give more text, or leave it dense")
        bad = ~(self.square.isfinite() & self.mean.isfinite())
        if bool(bad.any()):
            raise DataError(
                f"{int(bad.sum())} of the {len(bad)} inputs{of} are NaN or inf on the calibration data (the first is "
                f"{int(bad.int().argmax())}): look for NaN in the weights before it, or run the model in float32"
            )


@dataclass(eq=False)
class NormSum:
    """Running sums for `Norms`: add batches, reduce over processes.

    Attributes:
        square, total: sums of ``x²`` and ``x``, (d,). rows: int64, (). sample: a few of the inputs seen.
    """

    square: Tensor
    total: Tensor
    rows: Tensor
    sample: list[Tensor]

    @classmethod
    def zeros(cls, d: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NormSum:
        """Nothing added yet."""
        square, total = (torch.zeros(d, dtype=dtype, device=device) for _ in range(2))
        return cls(square, total, torch.zeros((), dtype=torch.int64, device=device), [])

    def add_(self, x: Tensor, most: int = 32) -> NormSum:
        """Add inputs (..., d); ``most`` of them, evenly spaced, are remembered."""
        rows = x.detach().reshape(-1, x.shape[-1]).to(self.square.dtype)
        self.square += rows.square().sum(0)  # many times as fast as a norm over the first axis
        self.total += rows.sum(0)
        self.rows += len(rows)
        if sum(map(len, self.sample)) < 512:
            self.sample.append(rows[:: max(1, -(-len(rows) // most))].clone())
        return self

    def tensors(self) -> dict[str, Tensor]:
        """What is reduced over processes in place."""
        return {"square": self.square, "total": self.total, "rows": self.rows}

    def gram(self, name: str = "") -> Norms:
        """The means."""
        n = max(int(self.rows), 1)
        seen = torch.cat(self.sample) if self.sample else self.square.new_zeros(0, len(self.square))
        return Norms(self.square / n, self.total / n, int(self.rows), seen, name)
