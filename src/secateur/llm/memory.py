"""How a limit on memory is split: what must be there at once, and what is left for hidden states."""

from __future__ import annotations

import math
import platform
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.errors import ArgumentError, BudgetError
from secateur.llm.source import Source

SLACK = 1.1
"""What allocators and kernels take beside tensors, as a factor."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a stream holds at once, by what for.

    Attributes:
        base: the interpreter, torch and what else was there before.
        block: weights of the largest block in the type that is computed in, and its largest tensor once more.
        moments: second moments of the inputs of its matrices.
            solver: copies of the largest matrix and of its second moment. passing: what a batch makes in the block.
        hidden: hidden states of the calibration text: these may go to disk.
    """

    base: int
    block: int
    moments: int
    solver: int
    passing: int
    hidden: int

    @property
    def fixed(self) -> int:
        """Everything but the hidden states."""
        return int(self.base + SLACK * (self.block + self.moments + self.solver + self.passing))

    def on_disk(self, limit: float | None) -> bool:
        """Whether hidden states go to disk.

        Raises:
            BudgetError: the rest is more than the limit already.
        """
        if limit is None:
            return False
        if self.fixed > limit:
            parts = f"block {_gb(self.block)}, second moments {_gb(self.moments)}, solver {_gb(self.solver)}, "
            parts += f"a batch {_gb(self.passing)}, Python and torch {_gb(self.base)}"
            raise BudgetError(
                f"one block does not fit into {_gb(limit)}: it takes {_gb(self.fixed)} ({parts}). Allow that much, or "
                "give smaller batches (--batch 1, batch=1)",
                self.fixed,
            )
        return self.fixed + SLACK * self.hidden > limit

    def words(self, limit: float | None) -> str:
        """The split, for the log."""
        left = "" if limit is None else f" of {_gb(limit)}"
        where = "on disk" if self.on_disk(limit) else f"in memory, {_gb(self.hidden)}"
        return (
            f"memory{left}: {_gb(self.base)} Python and torch, {_gb(self.block)} a block, {_gb(self.moments)} second "
            f"moments, {_gb(self.solver)} solver, {_gb(self.passing)} a batch; hidden states {where}"
        )


def _gb(n: float) -> str:
    return f"{n / 1e9:.2f} GB"


@dataclass(frozen=True)
class Fed:
    """What one run of a block showed: inputs (how many, their rows) and the sizes of all outputs of its matrices."""

    inputs: list[tuple[int, int]]
    matrices: list[tuple[int, int]]


def needs_of(
    source: Source,
    names: Sequence[Sequence[str]],
    fed: Fed,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    moments: int = 1,
    states: int = 1,
) -> Needs:
    """What a stream will hold.

    Args:
        source: the model. names: of the tensors of each block. fed: what one run of a block showed.
        shapes: of the batches' hidden states. dtype: that is computed in. moments: how many a matrix, kept ones and
            those across two models counted. states: 2 where the dense model's hidden states are kept too.
    """
    sizes = [[math.prod(source.shape_of(n)) for n in block] for block in names]
    block = max(sum(s) for s in sizes) * dtype.itemsize * states
    largest = max((max(s) for s in sizes if s), default=0) * 4
    squares = [4 * d * d for d, _ in fed.inputs]
    matrix = max((4 * a * b for a, b in fed.matrices), default=0)
    rows = max(math.prod(s[:-1]) for s in shapes)
    wide = sum(a for a, _ in fed.matrices) + sum(d for d, _ in fed.inputs) + 6 * shapes[0][-1]
    hidden = sum(math.prod(s) for s in shapes) * dtype.itemsize * states
    biggest = max(squares, default=0)
    return Needs(
        resident(),
        block + largest,
        moments * sum(squares),
        4 * matrix + 4 * biggest,
        rows * wide * dtype.itemsize,
        hidden,
    )


def resident() -> int:
    """Bytes of this process that are in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return peak_bytes()


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def bytes_in(text: str) -> float:
    """``8GB``, ``500 MB`` or a number of bytes.

    Raises:
        ArgumentError: it is none of these.

    Example:
        >>> bytes_in("8GB"), bytes_in("1.5 MiB")
        (8000000000.0, 1572864.0)
    """
    units = {"": 1, "B": 1} | {p + "B": 1000.0 ** (i + 1) for i, p in enumerate("KMGT")}
    units |= {p + "IB": 1024.0 ** (i + 1) for i, p in enumerate("KMGT")}
    digits = text.strip().upper().rstrip("BIKMGT ")
    unit = text.strip().upper()[len(digits) :].strip()
    try:
        if unit in units and float(digits) > 0:
            return float(digits) * units[unit]
    except ValueError:
        pass
    raise ArgumentError(f"{text!r} is no size: write 8GB, 500MB or a number of bytes")
