"""Nine in ten weights less with `transformers.Trainer`: one callback more."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from digits import accuracy, digits, network, zeros
from secateur.train.callbacks.huggingface import SparseCallback
from secateur.train.dynamic import gmp
from secateur.train.schedule import cubic


class Classifier(nn.Module):
    """A network whose forward takes labels and gives the loss, as the trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(folder: Path, steps: int, callback: SparseCallback) -> Trainer:
    """Small steps on the CPU, nothing reported, two checkpoints."""
    train, _ = digits()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=64, learning_rate=3e-3, use_cpu=True,
        save_strategy="steps", save_steps=(steps + 1) // 2, logging_steps=50, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in zip(*train.tensors, strict=True)]
    torch.manual_seed(0)
    return Trainer(Classifier(), arguments, train_dataset=rows, callbacks=[callback])


def method(steps: int) -> SparseCallback:
    """Gradual pruning to 90 %."""
    return SparseCallback(gmp(cubic(0.9, start=steps // 4, end=3 * steps // 4), every=5))


def main(steps: int = 240) -> tuple[float, float]:
    """Train, and tell the accuracy in percent and the sparsity."""
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(Path(folder), steps, method(steps))
        run.train()
    model = run.model.net
    print(f"{accuracy(model, digits()[1]):.1f} % right with {zeros(model):.1%} of the weights zero")
    return accuracy(model, digits()[1]), zeros(model)


if __name__ == "__main__":
    main()
