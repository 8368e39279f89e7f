"""Training sparse: gradual magnitude pruning at 98 %, RigL and SET at 95 %, beside fixed random masks.

Three convolutions of 32, 64 and 128 channels on 30,000 images of Fashion-MNIST; same epochs, data order and learning
rates for all, Erdős–Rényi densities wherever it is sparse; nothing moves in the last quarter. ``accuracy`` is that on
the 10,000 test images after the last step; ``sparsity`` is counted in the trained weights; ``gap`` is over fixed masks
of the same sparsity, in points.

At 98 % RigL is no better than fixed masks here: in three of four trials units lost all their weights to others, and
accuracy fell by five points and more. Its sparsity and how often it moves were then chosen on held-out training images.
"""

from __future__ import annotations

import torch
from _nets import Row, each_seed, part
from torch import nn
from torch.nn import functional as F

import _fashion
from _fashion import Data
from secateur.choose.density import erk
from secateur.train.dynamic import gmp, rigl, sparse_evolution, static
from secateur.train.schedule import cubic
from secateur.train.sparse import Method, Sparse

IMAGES = 30_000
EPOCHS, BATCH, RATE, EVERY = 6, 128, 0.2, 100


def network(seed: int) -> nn.Sequential:
    """Three convolutions with stride 2, and a head: 93,728 weights."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in ((1, 32), (32, 64), (64, 128)):
        parts += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def methods(steps: int, seed: int) -> dict[str, Method | None]:
    """By case; nothing moves in the last quarter."""
    end = max(3 * steps // 4, 1)
    return {
        "dense": None,
        "static_98": static(0.98, erk, seed),
        "gmp_98": gmp(cubic(0.98, steps // 10, end), every=50 if steps > 500 else 1, density=erk),
        "static_95": static(0.95, erk, seed),
        "set_95": sparse_evolution(0.95, end, EVERY, seed=seed),
        "rigl_95": rigl(0.95, end, EVERY, seed=seed),
    }


def trained(method: Method | None, data: Data, seed: int, epochs: int) -> nn.Module:
    """SGD with Nesterov momentum and one cycle of the learning rate; the masks are driven by its steps."""
    model = network(seed).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(data.train.x) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.25 if steps > 8 else 0.5
    )
    run = None if method is None else Sparse(model, optimizer, method)
    epoch = _fashion.epochs_of(data.train, BATCH, seed)
    for number in range(epochs):
        for x, y in epoch(number):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            cycle.step()
    return model if run is None else run.strip()


def rows(quick: bool) -> list[Row]:
    """Accuracy and sparsity of every case and seed, and what GMP, RigL and SET gain on fixed masks."""
    given = _fashion.data()
    data, epochs = Data(part(given.train, 1_280 if quick else IMAGES), given.test), 1 if quick else EPOCHS
    return [row for seed in each_seed(3, quick) for row in one(data, seed, epochs)]


def one(data: Data, seed: int, epochs: int) -> list[Row]:
    """The rows of a seed."""
    out: list[Row] = []
    found = {}
    for case, method in methods(epochs * (len(data.train.x) // BATCH), seed).items():
        model = trained(method, data, seed, epochs)
        weights = [p for p in model.parameters() if p.dim() > 1]
        zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        found[case] = _fashion.accuracy(model, data.test)
        out.append((case, "accuracy", found[case], "%", seed))
        out.append((case, "sparsity", 100 * zeros / total, "%", seed))
    for case in ("gmp_98", "set_95", "rigl_95"):
        gap = found[case] - found["static" + case[-3:]]
        out.append((f"{case}_over_static", "gap", gap, "%", seed))
    return out
