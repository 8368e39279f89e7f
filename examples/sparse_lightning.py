"""Nine in ten weights less with Lightning: one callback more."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from digits import accuracy, digits, network, zeros
from secateur.train.callbacks.lightning import SparseCallback
from secateur.train.dynamic import gmp
from secateur.train.schedule import cubic


class Classifier(pl.LightningModule):
    """A network, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross entropy of a batch."""
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def method(steps: int) -> SparseCallback:
    """Gradual pruning to 90 %."""
    return SparseCallback(gmp(cubic(0.9, start=steps // 4, end=3 * steps // 4), every=5))


def trainer(folder: Path, steps: int, callback: SparseCallback) -> pl.Trainer:
    """On the CPU, nothing logged."""
    return pl.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", logger=False, callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def loader() -> DataLoader:
    """Batches of 64 in an order that is always the same."""
    return DataLoader(digits()[0], batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(1))


def main(steps: int = 240) -> tuple[float, float]:
    """Train, and tell the accuracy in percent and the sparsity."""
    model = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        trainer(Path(folder), steps, method(steps)).fit(model, loader())
    print(f"{accuracy(model.net, digits()[1]):.1f} % right with {zeros(model):.1%} of the weights zero")
    return accuracy(model.net, digits()[1]), zeros(model)


if __name__ == "__main__":
    main()
