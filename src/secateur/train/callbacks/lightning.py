"""Sparse training in a Lightning `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.errors import ArgumentError, TargetError
from secateur.train.ranks import everyone
from secateur.train.sparse import Method, Sparse

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise TargetError("lightning is needed and not installed: pip install 'secateur[lightning]'") from error


class SparseCallback(Callback):  # type: ignore[misc]
    """Makes a `LightningModule` sparse while it trains, saves with its checkpoints and goes on from them.

    Args:
        method: such as `gmp`; its steps are the optimizer's. weights: name -> parameter; `sc.prunable` by default.
        optimizer: which of the module's optimizers trains the weights.

    Attributes:
        sparse: the training, from its first step on; None before.

    Raises:
        ArgumentError: there is no such optimizer, or a checkpoint holds the state of another method or optimizer.

    Example:
        >>> from secateur.train.schedule import cubic
        >>> from secateur.train.dynamic import gmp
        >>> callback = SparseCallback(gmp(cubic(0.9, start=100, end=900), every=50))
        >>> # lightning.pytorch.Trainer(callbacks=[callback]).fit(module, data)
    """

    def __init__(self, method: Method, weights: Mapping[str, nn.Parameter] | None = None, optimizer: int = 0) -> None:
        self.method, self.weights, self.optimizer = method, weights, optimizer
        self.sparse: Sparse | None = None
        self._loaded: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from what was loaded."""
        if not 0 <= self.optimizer < len(trainer.optimizers):
            raise ArgumentError(f"optimizer {self.optimizer} of {len(trainer.optimizers)}: give the index of one")
        if self.sparse is not None:
            self.sparse.strip()
        optimizer = trainer.optimizers[self.optimizer]
        self.sparse = Sparse(pl_module, optimizer, self.method, self.weights, everyone(pl_module))
        if self._loaded is not None:
            self.sparse.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """The sparsity, beside what the module logs."""
        if self.sparse is not None:
            pl_module.log("sparsity", self.sparse.masks.sparsity)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into its checkpoint."""
        return {} if self.sparse is None else self.sparse.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Taken when the training starts, once there is an optimizer."""
        self._loaded = state_dict or None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let go of the optimizer; the zeros stay."""
        if self.sparse is not None:
            self.sparse.strip()
