"""Networks and short trainings on Fashion-MNIST that the experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _fashion import Images

Row = tuple[str, str, float, str, int]
"""Case, metric, value, unit, seed."""


def lenet() -> nn.Module:
    """LeNet-300-100: 266,200 weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def vgg(width: int = 32) -> nn.Module:
    """Eight convolutions with batch norm, VGG-like: 1.17 M weights at width 32, on 28 x 28 images averaged to 7 x 7."""
    w = width
    plan = [w, w, 2 * w, 2 * w, 4 * w, 4 * w, "pool", 8 * w, 8 * w]
    layers: list[nn.Module] = [nn.AvgPool2d(4)]
    inputs = 1
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
        inputs = item
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
    return net


def part(images: Images, count: int) -> Images:
    """The first so many."""
    return Images(images.x[:count], images.y[:count])


def steps_of(images: Images, seed: int, batch: int = 64) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``step -> batch``: a function of the seed and the step alone."""
    each = len(images.x) // batch
    order: dict[int, Tensor] = {}

    def at(step: int) -> tuple[Tensor, Tensor]:
        epoch = step // each
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(len(images.x), generator=torch.Generator().manual_seed(10_000 * seed + epoch))
        k = step % each
        index = order[epoch][k * batch : (k + 1) * batch]
        return images.x[index], images.y[index]

    return at


def batches(images: Images, count: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """So many batches for calibration."""
    return [(images.x[i * size : (i + 1) * size], images.y[i * size : (i + 1) * size]) for i in range(count)]


def fit(
    net: nn.Module,
    images: Images,
    seed: int,
    steps: int,
    rate: float = 0.05,
    attach: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> None:
    """SGD with momentum, the rate falling in a line to zero."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    attach(optimizer)
    at = steps_of(images, seed)
    net.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        x, y = at(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()


@torch.inference_mode()
def connected(net: nn.Module, masks: Mapping[str, Tensor]) -> bool:
    """Whether a path of kept weights leads from an input to an output, through a chain of layers without branches."""
    alive: Tensor | None = None
    for name, module in net.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        mask = masks.get(f"{name}.weight", torch.ones_like(module.weight, dtype=torch.bool))
        links = mask.flatten(2).any(2) if mask.dim() > 2 else mask
        alive = links.any(1) if alive is None else (links & alive).any(1)
    return alive is not None and bool(alive.any())


def each_seed(seeds: int, quick: bool) -> Iterator[int]:
    """The seeds; the first alone in a smoke run."""
    yield from range(1 if quick else seeds)
