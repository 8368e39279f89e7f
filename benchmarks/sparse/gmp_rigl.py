"""What training sparse costs: gradual magnitude pruning, RigL and SET at 98 % sparsity beside fixed random masks.

Experiment ``gmp_rigl``; cases ``dense``, ``static``, ``set``, ``rigl``, ``gmp``: a small convolutional network on
Fashion-MNIST, the same epochs, data order and learning rates for all, Erdős–Rényi densities wherever it is sparse.
``accuracy`` is that on the 10,000 test images after the last step; ``sparsity`` is counted in the trained weights. What
must hold: GMP is a point better than fixed random masks, and RigL is better than them too.

    SECATEUR_BENCH_QUICK=1 python benchmarks/sparse/gmp_rigl.py     a smoke run
    python benchmarks/sparse/gmp_rigl.py --seeds 0                  one seed, printed but not written
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _fashion
from _fashion import Data
from _rows import Figure, quick, say, seed_by_seed
from secateur.choose.density import erk
from secateur.train.dynamic import gmp, rigl, sparse_evolution, static
from secateur.train.schedule import cubic
from secateur.train.sparse import Method, Sparse

EXPERIMENT = "gmp_rigl"
SEEDS, SPARSITY = (0, 1, 2), 0.98
EPOCHS, BATCH, RATE, EVERY = 4, 128, 0.2, 100


def network(seed: int) -> nn.Sequential:
    """Three convolutions of 16, 32 and 64 channels with stride 2, and a head: 23,824 weights."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in ((1, 16), (16, 32), (32, 64)):
        parts += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def methods(steps: int, seed: int) -> dict[str, Method | None]:
    """By case; nothing moves in the last quarter."""
    end = max(3 * steps // 4, 1)
    return {
        "dense": None,
        "static": static(SPARSITY, erk, seed),
        "set": sparse_evolution(SPARSITY, end, EVERY, seed=seed),
        "rigl": rigl(SPARSITY, end, EVERY, seed=seed),
        "gmp": gmp(cubic(SPARSITY, steps // 10, end), every=EVERY if steps > 10 * EVERY else 1, density=erk),
    }


def trained(method: Method | None, data: Data, seed: int, epochs: int) -> nn.Module:
    """SGD with Nesterov momentum and one cycle of the learning rate; the masks are driven by its steps."""
    model = network(seed).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(data.train.x) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.25)
    run = None if method is None else Sparse(model, optimizer, method)
    epoch = _fashion.epochs_of(data.train, BATCH, seed)
    for number in range(epochs):
        for x, y in epoch(number):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            cycle.step()
    return model if run is None else run.strip()


def rows(seed: int, data: Data, epochs: int = EPOCHS) -> list[Figure]:
    """Accuracy and sparsity of every case."""
    figures = []
    for case, method in methods(epochs * (len(data.train.x) // BATCH), seed).items():
        model = trained(method, data, seed, epochs)
        weights = [p for p in model.parameters() if p.dim() > 1]
        zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        figures.append(Figure(case, "accuracy", _fashion.accuracy(model, data.test), "%", seed))
        figures.append(Figure(case, "sparsity", 100 * zeros / total, "%", seed))
    say(EXPERIMENT, figures)
    return figures


def main(load: Callable[[], Data] = _fashion.data) -> None:
    """The command line."""
    data = load()
    about = str(__doc__)
    seed_by_seed(EXPERIMENT, lambda seed: rows(seed, data, 1 if quick() else EPOCHS), SEEDS, about, [__file__])


if __name__ == "__main__":
    main()
