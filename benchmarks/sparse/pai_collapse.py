"""Pruning at initialisation far beyond what is usual: who keeps a path from input to output, and what can be learnt.

A VGG-like network with 1.17 M weights (``_nets.vgg``) is pruned untrained to compressions of 10^1 .. 10^4.5: SynFlow
in 100 rounds on an input of ones, SNIP and GraSP in one shot on 10 batches of 64, magnitude in one shot, one ranking
of all weights each. ``connected`` is 1 where a path of kept weights leads from an input to an output, ``layers`` the
share of layers that keep any weight. At 10^1 and 10^3 what is left is trained for 60 steps of 64 (Fashion-MNIST).

At 10^1 the masks of SynFlow, SNIP and GraSP are also shuffled within each layer and trained alike: ``shuffled`` beside
``accuracy`` tells whether more than the layers' densities matters (arXiv:2009.08576).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from _nets import Row, batches, connected, each_seed, fit, part, vgg
from torch import Tensor, nn

import _fashion
from _fashion import Images
from secateur.choose.density import ranked
from secateur.run.sparsify import sparsify
from secateur.score.criteria import magnitude
from secateur.score.weigh_flow import synflow
from secateur.score.weigh_gradient import grasp, snip
from secateur.train.masks import Masks
from secateur.train.rewind import Start, shuffled_mask
from secateur.types import Criterion

CASES: dict[str, tuple[Criterion, int]] = {
    "synflow": (synflow, 100),
    "snip": (snip, 1),
    "grasp": (grasp, 1),
    "magnitude": (magnitude, 1),
}
POWERS = (1.0, 2.0, 3.0, 4.5)
TRAINED = (1.0, 3.0)
STEPS = 60


def learnt(net: nn.Module, masks: dict[str, Tensor], train: Images, test: Images, seed: int, steps: int) -> float:
    """Test accuracy after a short training under fixed masks, percent."""
    model = copy.deepcopy(net)
    hand = Masks(model, masks)
    hand.apply_()
    fit(model, train, seed, steps, attach=hand.attach)
    hand.strip()
    return _fashion.accuracy(model, test)


def rows(quick: bool) -> list[Row]:
    """Connectivity at every compression, accuracy at some."""
    given = _fashion.data()
    train, test = part(given.train, 512 if quick else 20_000), part(given.test, 200 if quick else 2_000)
    steps, powers = (2, (1.0, 3.0)) if quick else (STEPS, POWERS)
    out: list[Row] = []
    for seed in each_seed(3, quick):
        torch.manual_seed(seed)
        net = vgg(8 if quick else 32)
        dense = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters() if p.dim() > 1}
        out.append(("dense", "accuracy", learnt(net, dense, train, test, seed, steps), "%", seed))
        for name, (criterion, rounds) in CASES.items():
            out += one(name, criterion, 3 if quick else rounds, net, train, test, seed, steps, powers)
    return out


def one(
    name: str,
    criterion: Criterion,
    rounds: int,
    net: nn.Module,
    train: Images,
    test: Images,
    seed: int,
    steps: int,
    powers: Sequence[float],
) -> list[Row]:
    """The rows of a criterion and seed."""
    given = [train.x[:1]] if name == "synflow" else batches(train, 2 if steps < STEPS else 10)
    out: list[Row] = []
    for power in powers:
        found = sparsify(net, given, criterion, sparsity=1 - 10**-power, density=ranked, rounds=rounds, seed=seed)
        masks, case = dict(found.masks), f"{name}_10^{power:g}"
        filled = sum(bool(m.any()) for m in masks.values()) / len(masks)
        out.append((case, "connected", float(connected(net, masks)), "", seed))
        out.append((case, "layers", filled, "", seed))
        if power in TRAINED:
            out.append((case, "accuracy", learnt(net, masks, train, test, seed, steps), "%", seed))
        if power == 1.0 and name != "magnitude":
            start = Start(net.state_dict(), masks, 0)
            mixed = shuffled_mask(start, dict, torch.Generator().manual_seed(seed)).masks
            out.append((case, "shuffled", learnt(net, dict(mixed), train, test, seed, steps), "%", seed))
    return out
