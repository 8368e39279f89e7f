"""What masks cost a training step: ResNet-18 with masks beside it, without, and with `torch.nn.utils.prune`.

Steps of the three take turns, so that what else the machine does falls on all alike; a figure is the median of the
ratios of neighbours. All three train: SGD with momentum and weight decay, 90 % of every kernel masked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from secateur.score.weights import prunable
from secateur.train.masks import Masks

Row = tuple[str, str, float, str, int | None]
"""case, metric, value, unit, seed."""


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.around = nn.Sequential()
        if changes:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.around(x))


def resnet18(classes: int = 10) -> nn.Sequential:
    """For 32 x 32 images (arXiv:1512.03385, the stem of CIFAR nets): 11,173,962 parameters."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = [Block(*w) for w in [*widths, (512, 512, 1)]]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def _dense(model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> None:
    """Nothing."""


def _secateur(model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> None:
    held = Masks(model, masks)
    held.apply_()
    held.attach(optimizer)


def _torch_prune(model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), leaf, mask)


CASES: dict[str, Callable[[nn.Module, torch.optim.Optimizer, dict[str, Tensor]], None]] = {
    "dense": _dense,
    "secateur": _secateur,
    "torch.nn.utils.prune": _torch_prune,
}


def mask_overhead(
    seeds: Sequence[int] = (0, 1, 2), rounds: int = 20, batch: int = 32, device: str = "cpu"
) -> list[Row]:
    """Rows of the experiment ``mask_overhead``: ``step_ratio``, a step over a dense one, and ``step``, its seconds."""
    rows: list[Row] = []
    for seed in seeds:
        seconds = _seconds(seed, rounds, batch, device)
        for case, mine in seconds.items():
            ratios = [a / b for a, b in zip(mine, seconds["dense"], strict=True)]
            rows.append((case, "step", statistics.median(mine), "s", seed))
            if case != "dense":
                rows.append((case, "step_ratio", statistics.median(ratios), "", seed))
    return rows


def _seconds(seed: int, rounds: int, batch: int, device: str) -> dict[str, list[float]]:
    steps = {}
    for case, mask in CASES.items():
        torch.manual_seed(seed)
        model = resnet18().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        mask(model, optimizer, {n: torch.rand(p.shape, device=device) > 0.9 for n, p in prunable(model).items()})
        steps[case] = (model, optimizer)
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (batch,), device=device)
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    order = list(CASES)
    for turn in range(rounds + 2):
        order = order[1:] + order[:1]  # none is always first
        for case in order:
            model, optimizer = steps[case]
            begun = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if device != "cpu":
                torch.accelerator.synchronize()
            if turn >= 2:  # the first are slower
                seconds[case].append(time.perf_counter() - begun)
    return seconds


def rows(quick: bool) -> list[Row]:
    """Of three seeds; a smoke run takes a few small steps of one."""
    return mask_overhead((0,), rounds=2, batch=2) if quick else mask_overhead()
