"""Hidden states of the batches between two blocks: in memory, or one file a batch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from secateur.atomic import sync, write_bytes
from secateur.llm.tensor_files import Stored, raw, read

SEAL = "complete"


class Hidden:
    """Hidden states by batch, before one block.

    In memory the states behind the block replace those before it, batch by batch. On disk they go into a folder of
    their own, which is sealed when all are there: a killed run goes on from the last one that is.

    Args:
        folder: where the files go, or None for memory. block: number of the block that they are the inputs of.
        shapes: of the batches. dtype, device: of the states.
    """

    def __init__(
        self,
        folder: Path | None,
        block: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.folder, self.block, self.shapes = folder, block, tuple(shapes)
        self.dtype, self.device = dtype, device
        self.held: list[Tensor | None] = [None] * len(shapes)
        if folder is not None:
            self._here.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():  # of a block before, which a killed run could not take away any more
                if int(old.name) < block and (self._here / SEAL).exists():
                    shutil.rmtree(old)

    @property
    def _here(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.block:05}"

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, batch: int) -> Tensor:
        """States of a batch, (samples, window, hidden); not to be written into."""
        if self.folder is None:
            held = self.held[batch]
            assert held is not None
            return held.to(self.device)
        stored = Stored(self._here / f"{batch:05}", 0, self.shapes[batch], self.dtype)
        return read(stored).to(self.device)

    def __setitem__(self, batch: int, states: Tensor) -> None:
        if self.folder is None:
            self.held[batch] = states.detach().to("cpu", self.dtype)
        else:
            with (self._here / f"{batch:05}").open("wb") as f:
                f.write(raw(states.to("cpu", self.dtype).contiguous()))

    def following(self) -> Hidden:
        """Where the states behind the block go."""
        if self.folder is None:
            self.block += 1
            return self
        return Hidden(self.folder, self.block + 1, self.shapes, self.dtype, self.device)

    def seal(self, before: Hidden) -> None:
        """All are there; those before the block are no longer needed."""
        if self.folder is None:
            return
        for path in self._here.iterdir():
            sync(path)
        write_bytes(self._here / SEAL, b"")
        if before is not self:
            shutil.rmtree(before._here, ignore_errors=True)


def gone_on_from(folders: Sequence[Path | None]) -> int | None:
    """The block before which all states are on disk, in each of the folders; None, and nothing is left, if none.

    Example:
        >>> gone_on_from([None]) is None
        True
    """
    found = []
    for folder in folders:
        there = [] if folder is None or not folder.is_dir() else [p for p in folder.iterdir() if (p / SEAL).exists()]
        found.append(max((int(p.name) for p in there), default=None))
    if len(set(found)) == 1:
        return found[0]
    for folder in folders:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return None
