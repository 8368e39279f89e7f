"""One block as the work sees it: its weights in memory, its calibration data, and what its matrices are fed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.llm import together
from secateur.llm.activations import Hidden
from secateur.llm.moments import Fed, Moments, alike, inputs_of, matrix_of, unreached
from secateur.llm.recording import Call, hidden_of
from secateur.products import fast
from secateur.solve.gram import Gram
from secateur.solve.norms import Norms


@dataclass(eq=False)
class Live:
    """A block in memory.

    Attributes:
        index, path: which it is. module: it, in evaluation mode, with weights in the type that is computed in: what
            the work changes, or replaces by another module that is called alike.
        hidden: its inputs by batch: those that the blocks before it make, pruned as they are.
        calls: how the model calls it, by batch.
        dense: the same block with the dense model's weights and inputs, where the stream was asked to keep them.
        device: where it is computed. prepared: what was found out before the first block, see `stream`.
    """

    index: int
    path: str
    module: nn.Module
    hidden: Hidden
    calls: Sequence[Call]
    device: torch.device
    make_dense: Callable[[], Live] | None = None
    prepared: Any = None
    in_dims: dict[str, int] = field(default_factory=dict)
    _dense: Live | None = None

    @property
    def dense(self) -> Live:
        """The dense twin, read from the checkpoint when first asked for."""
        if self._dense is None:
            if self.make_dense is None:
                raise DataError("the dense model's hidden states were not kept: stream with dense=True")
            self._dense = self.make_dense()
        return self._dense

    def drop_dense(self) -> None:
        """Let the dense twin go."""
        self._dense = None

    def __len__(self) -> int:
        """How many batches there are (of this process)."""
        return len(self.hidden)

    def run(self, batch: int, hidden: Tensor | None = None, module: nn.Module | None = None) -> Tensor:
        """What the block makes of a batch, (samples, window, hidden).

        Args:
            batch: its number. hidden: other inputs. module: another module in the block's place.
        """
        given = self.hidden[batch] if hidden is None else hidden
        with torch.no_grad(), fast(self.device):  # a block may add into its input
            out: Tensor = hidden_of(self.calls[batch](self.module if module is None else module, given.clone()))
        return out

    def inputs(self) -> Iterator[Tensor]:
        """The hidden states before the block, batch by batch."""
        return (self.hidden[i] for i in range(len(self)))

    def outputs(self) -> Iterator[Tensor]:
        """Those that it makes of them as it is now, batch by batch."""
        return (self.run(i) for i in range(len(self)))

    def grams(self, only: Collection[str] | None = None, held: float = 0.0, cross: bool = False) -> dict[str, Gram]:
        """Moments of what each matrix is fed, from one pass over the calibration data with the block as it is now.

        Args:
            only: keys of the matrices, or all. held: the part of the batches that is kept aside, to choose by: every
                ``1 / held``-th one, or the last of fewer. cross: also between the dense block's inputs and these.

        Returns:
            Key -> moments; matrices that share an input have one object. Keys are names of parameters in the block,
            ``NAME[i]`` of slices of stacked ones. See `matrices`.

        Raises:
            DataError: an input is not finite.

        Time: a pass up to the last matrix's input, and n d² an input. Memory: d² floats an input.
        """
        found = self._moments(Moments(only, held > 0, cross, False, f"{self.path}.", self.device), held)
        return {k: g for k, g in found.items() if isinstance(g, Gram)}

    def norms(self, only: Collection[str] | None = None, batches: int | None = None) -> dict[str, Norms]:
        """The same of norms alone: a pass, and little more; or of the first batches, to learn what shares an input."""
        found = self._moments(Moments(only, norms=True, lead=f"{self.path}.", device=self.device), 0.0, batches)
        return {k: g for k, g in found.items() if isinstance(g, Norms)}

    def _moments(self, moments: Moments, held: float, batches: int | None = None) -> dict[str, Gram | Norms]:
        most = max(together.everyones(len(self))) if held > 0 else 0  # of few batches one is kept aside all the same
        every = min(round(1 / held), most) if held > 0 else 0
        if every == 1:
            raise DataError(f"held={held:g} keeps a part of the batches aside, and there is one: give smaller batches")
        for i in range(len(self))[:batches]:
            last = moments.last(self.module)
            twin = inputs_of(self.dense.module, partial(self.dense.run, i), last) if moments.cross else None
            moments.add(self.module, partial(self.run, i), bool(every) and i % every == every - 1, twin)
        found = moments.grams()
        self.in_dims |= moments.in_dims
        return found

    def with_unreached(self, grams: dict[str, Fed], keys: Collection[str] = ()) -> dict[str, Fed]:
        """Experts that no token reached, and others of ``keys``: as if their inputs were alike and uncorrelated."""
        shared: dict[int, Gram] = {}
        self.in_dims |= unreached(self.module, self.in_dims)
        whole = self.matrices()
        for key in [k for k in self.in_dims if k not in grams and (alike(k) != k or k in keys)]:
            d = whole[key].shape[1]
            if d not in shared:
                square, mean = torch.eye(d, device=self.device), torch.zeros(d, device=self.device)
                shared[d] = Gram(square, mean, 1, name="no tokens")
            grams[key] = shared[d]
        return grams

    def matrices(self) -> dict[str, Tensor]:
        """The matrices that were seen by `grams`, as (outputs, inputs): views, to be written into with ``copy_``."""
        return {key: matrix_of(self.module, key, dim) for key, dim in self.in_dims.items()}
