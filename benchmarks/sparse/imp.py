"""Lottery tickets of LeNet-300-100 on Fashion-MNIST, down to 3.6 % of the weights, beside their controls.

Fifteen rounds; each layer loses 20 % of what is left, the output layer 10 %; weights go back to step 0
(arXiv:1803.03635), with 1,500 steps of Adam (rate 1.2e-3, batch 60) on 30,000 images a round in place of the paper's
50,000 steps on MNIST. Controls are trained in the last round: the masks over newly drawn weights, and shuffled within
their layers. ``behind_dense`` is dense minus ticket, ``over_random_init`` ticket minus control, in points of test
accuracy.
"""

from __future__ import annotations

import tempfile

import torch
from _nets import Row, each_seed, lenet, part, steps_of
from torch import nn
from torch.nn import functional as F

import _fashion
from secateur.train.rewind import layerwise
from secateur.train.tickets import Training, tickets

ROUNDS, STEPS = 15, 1500


def rows(quick: bool) -> list[Row]:
    """Accuracy by round, and the two gaps at the end."""
    given = _fashion.data()
    images = part(given.train, 512 if quick else 30_000)
    rounds, steps = (2, 3) if quick else (ROUNDS, STEPS)
    out: list[Row] = []
    for seed in each_seed(3, quick):
        at = steps_of(images, seed, 60)

        def train(model: nn.Module, run: Training, at=at) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
            run.attach(optimizer)
            for step in range(run.first_step, steps):
                x, y = at(step)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

        with tempfile.TemporaryDirectory() as folder:
            found = tickets(
                lenet,
                train,
                lambda model: _fashion.accuracy(model, given.test),
                rounds,
                f"{folder}/tickets",
                cut=layerwise(0.2, {"5": 0.1}),
                controls_at=[rounds],
                seed=seed,
            )
        values = {(r.round, r.case): r.values["value"] for r in found.rows}
        for r in found.rows:
            out.append((f"{r.case}_round_{r.round}", "accuracy", r.values["value"], "%", seed))
            if r.case == "ticket":
                out.append((f"{r.case}_round_{r.round}", "density", 100 * r.density, "%", seed))
        last = values[rounds, "ticket"]
        out.append(("last_round", "behind_dense", values[0, "ticket"] - last, "%", seed))
        out.append(("last_round", "over_random_init", last - values[rounds, "random_init"], "%", seed))
        out.append(("last_round", "over_shuffled_mask", last - values[rounds, "shuffled_mask"], "%", seed))
    return out
