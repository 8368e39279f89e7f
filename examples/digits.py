"""Handwritten digits, 8 x 8, from scikit-learn: data and a small network for the examples of sparse training."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test images, 1,297 and 500, as vectors of 64 between 0 and 1."""
    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(found.target)[order]
    return TensorDataset(x[:-500], y[:-500]), TensorDataset(x[-500:], y[-500:])


def network() -> nn.Sequential:
    """Two hidden layers of 128."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Percent right."""
    x, y = data.tensors
    model.eval()
    logits: Tensor = model(x)
    return 100 * float((logits.argmax(1) == y).float().mean())


def zeros(model: nn.Module) -> float:
    """The fraction of all matrices' entries that is zero."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    return float(sum((p == 0).sum() for p in weights)) / sum(p.numel() for p in weights)
