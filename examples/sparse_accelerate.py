"""Nine in ten weights less with Accelerate, in mixed precision and with accumulated gradients."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

from digits import accuracy, digits, network, zeros
from secateur.train.callbacks.accelerate import prepare
from secateur.train.dynamic import gmp
from secateur.train.schedule import cubic


def main(epochs: int = 12) -> tuple[float, float]:
    """Train, and tell the accuracy in percent and the sparsity."""
    train, test = digits()
    model = network()
    loader = DataLoader(train, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(1))
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    steps = epochs * (len(loader) + 1) // 2
    method = gmp(cubic(0.9, start=steps // 4, end=3 * steps // 4), every=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader, sparse = prepare(accelerator, model, optimizer, loader, method=method)
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    model = accelerator.unwrap_model(sparse.strip())
    print(f"{accuracy(model, test):.1f} % right with {zeros(model):.1%} of the weights zero")
    return accuracy(model, test), zeros(model)


if __name__ == "__main__":
    main()
