"""Through a model block by block: each is read, worked on and let go; hidden states go from one to the next."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError
from secateur.llm import together
from secateur.llm.activations import Hidden, gone_on_from
from secateur.llm.blocks import blocks_of
from secateur.llm.live import Live
from secateur.llm.memory import needs_of
from secateur.llm.recording import Call, Recorder
from secateur.llm.source import Source, put_
from secateur.types import Bools

log = logging.getLogger("secateur")

ROWS = 4096
"""Tokens of a batch, about: enough for the products to be fast."""


def batches_of(tokens: Tensor | Sequence[Tensor], size: int | None = None) -> list[Tensor]:
    """Tokens (samples, window) in batches of ``size`` samples; of so many that there are about 4096 tokens by default.

    Raises:
        DataError: there are none, or they are no whole numbers. ArgumentError: a size below 1.

    Example:
        >>> [tuple(b.shape) for b in batches_of(torch.zeros(5, 2048, dtype=torch.int64))]
        [(2, 2048), (2, 2048), (1, 2048)]
    """
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    for t in given:
        if not isinstance(t, Tensor) or t.dim() != 2 or t.dtype.is_floating_point or not t.numel():
            what = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise DataError(f"tokens are int64 (samples, window), at least one; got {what}")
    if size is not None and size < 1:
        raise ArgumentError(f"batch is how many samples run at once, at least 1; got {size}")
    if not given:
        raise DataError("no calibration tokens: give at least one window of text")
    return [b.long() for t in given for b in t.split(size or max(1, ROWS // t.shape[1]))]


@dataclass(eq=False)
class Walk:
    """A way through the blocks of a model.

    Attributes:
        source: the weights. skeleton: the module without them. paths: of its blocks.
        batches: tokens, those of this process. calls: batch by batch, how each block is called.
        hidden: inputs of the block that is next. dense: those of the dense model, or None.
        dtype, device: that blocks are computed in.
        folder: where hidden states are kept, or None for memory.
    """

    source: Source
    skeleton: nn.Module
    paths: tuple[str, ...]
    batches: Sequence[Tensor]
    calls: Sequence[Sequence[Call]]
    hidden: Hidden
    dense: Hidden | None
    dtype: torch.dtype
    device: torch.device
    dense_inputs: bool

    @classmethod
    def begin(
        cls,
        source: Source,
        tokens: Tensor | Sequence[Tensor],
        *,
        batch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        dense: bool = False,
        dense_inputs: bool = False,
        channels: Bools | None = None,
        memory: float | None = None,
        moments: int = 1,
        folder: Path | None = None,
    ) -> Walk:
        """Look the batches up in the embedding and record how the blocks are called.

        Args:
            source: the model. tokens: of the calibration text. batch: samples at once.
            device, dtype: to compute in. dense: keep the dense model's hidden states beside.
            dense_inputs: every block gets what the dense model's blocks before it make (as FLAP does), not the pruned
                ones' (as Wanda and SparseGPT do).
            channels: of the hidden states, bool (width,), those that the changed blocks work on; None: all.
            memory: bytes that the process may take. moments: how many second moments an input has, for that.
            folder: for hidden states that do not fit into memory. What is complete there is gone on from.

        Raises:
            DataError: no tokens, or one beyond the vocabulary. TraceError: the model cannot be run block by block.
            BudgetError: one block does not fit into the memory.
        """
        device = together.own_device(device)
        skeleton = source.skeleton(dtype)
        all_of_them = batches_of(tokens, batch)
        check_vocabulary(skeleton, all_of_them)
        mine = all_of_them[together.rank() :: together.size()]
        if len(all_of_them) < together.size():  # all of them say so: nobody waits for the others
            raise DataError(
                f"{len(all_of_them)} calibration batches for {together.size()} processes: give more samples, or "
                "smaller batches"
            )
        paths = blocks_of(skeleton)
        recorder = Recorder(source, skeleton, paths, dtype, device)
        first, called = recorder.batch(mine[0])
        shapes = [(*b.shape, *first.shape[2:]) for b in mine]
        names = [[f"{p}.{n}" for n in skeleton.get_submodule(p).state_dict()] for p in paths]
        needs = needs_of(source, names, recorder.fed, shapes, dtype, moments, 1 + dense)
        log.info("%s", needs.words(memory))
        folder = folder if needs.on_disk(memory) else None
        folders = (
            [folder and folder / "hidden", folder and folder / "dense"] if dense else [folder and folder / "hidden"]
        )
        at = gone_on_from(folders)
        narrow = [first.shape[-1]] if channels is None else [int(channels.sum())]
        own = [(*shape[:-1], *narrow) for shape in shapes]
        states = [Hidden(f, at or 0, s, dtype, device) for f, s in zip(folders, (own, shapes), strict=False)]
        calls = []
        for i, ids in enumerate(mine):
            first, called = recorder.batch(ids) if i else (first, called)
            calls.append(called)
            for s in states if at is None else ():
                s[i] = first if channels is None or s is not states[0] else first[..., torch.from_numpy(channels)]
        for s in states if at is None else ():
            s.seal(s)
        hidden, twin = states[0], states[1] if dense else None
        return cls(source, skeleton, paths, mine, calls, hidden, twin, dtype, device, dense_inputs)

    def __len__(self) -> int:
        return len(self.paths)

    def names(self, index: int) -> list[str]:
        """Names, in the whole model, of what is saved of a block."""
        path = self.paths[index]
        return [f"{path}.{n}" for n in self.skeleton.get_submodule(path).state_dict()]

    def block(self, index: int) -> nn.Module:
        """A block without its weights, which are on the meta device."""
        config = getattr(self.skeleton, "config", None)
        return copy.deepcopy(self.skeleton.get_submodule(self.paths[index]), {id(config): config})

    def live(self, index: int) -> Live:
        """A block with the checkpoint's weights."""
        live = self._live(index, self.hidden)
        if self.dense is not None:
            live.make_dense = lambda: self._live(index, self.dense)
        return live

    def _live(self, index: int, hidden: Hidden | None, module: nn.Module | None = None) -> Live:
        path = self.paths[index]
        if module is None:
            module = self.source.fill_(self.block(index), path, self.dtype, self.device)
        assert hidden is not None
        return Live(index, path, module, hidden, [called[index] for called in self.calls], self.device)

    def again(self, index: int, module: nn.Module) -> Live:
        """A block that is done, of the shape that the work gave it; its values come with `pass_on`."""
        return self._live(index, self.hidden, module)

    def pass_on(self, live: Live, values: Iterable[tuple[str, Tensor]] = ()) -> None:
        """Make the inputs of the next block, by a block with its new values; with dense inputs, with its old ones."""
        if self.dense is not None:
            twin = live.dense if live.make_dense is not None else self._live(live.index, self.dense)
            self.dense = _passed(twin, self.dense)
            live.drop_dense()
        if self.dense_inputs:
            live.module = self.source.fill_(self.block(live.index), live.path, self.dtype, self.device)
        else:
            for name, value in values:
                put_(live.module, name, value.to(self.device, self.dtype if value.is_floating_point() else value.dtype))
            for name, buffer in live.module.named_buffers():
                put_(live.module, name, buffer.to(self.device))
        self.hidden = _passed(live, self.hidden)


def _passed(live: Live, hidden: Hidden) -> Hidden:
    after = hidden.following()
    for i in range(len(live)):
        after[i] = live.run(i, hidden[i])
    after.seal(hidden)
    return after


def check_vocabulary(skeleton: nn.Module, batches: Sequence[Tensor]) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        DataError: names the token.
    """
    most = getattr(getattr(skeleton, "config", None), "vocab_size", None)
    low, high = min(int(b.min()) for b in batches), max(int(b.max()) for b in batches)
    if isinstance(most, int) and not 0 <= low <= high < most:
        bad = high if high >= most else low
        raise DataError(
            f"token {bad} is not in the model's vocabulary of {most}: the text was tokenised by another model's "
            "tokenizer"
        )


Progress = Callable[[int, int, str], None]
"""``(blocks done, blocks, words)``."""
