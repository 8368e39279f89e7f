"""A small network that is trained on a function of the step; for the tests of tickets, in this process and others."""

import os
import signal

import torch
from torch import nn

from secateur.train.rewind import layerwise

STEPS = 30


def make_model():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def batch(seed, step):
    g = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(16, 6, generator=g)
    return x, x[:, :3].argmax(1)


def train(model, run):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    run.attach(optimizer)
    for step in range(run.first_step, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / STEPS)
        x, y = batch(run.seed, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        die_if_told(step)


def die_if_told(step):
    """kill -9 in the step that a file counts down to."""
    path = os.environ.get("DIE_AFTER")
    if path and os.path.exists(path):  # noqa: PTH110
        with open(path) as f:  # noqa: PTH123
            left = int(f.read()) - 1
        with open(path, "w") as f:  # noqa: PTH123
            f.write(str(left))
        if left == 0:
            os.unlink(path)  # noqa: PTH108
            os.kill(os.getpid(), signal.SIGKILL)


def evaluate(model):
    x, y = batch(99, 0)
    out = model(x)
    return {"accuracy": float((out.argmax(1) == y).float().mean()), "loss": float(nn.functional.cross_entropy(out, y))}


def recipe():
    return {"make_model": make_model, "train": train, "evaluate": evaluate, "cut": layerwise(0.2, {"4": 0.1})}


def never_attached():
    return {**recipe(), "train": lambda model, run: None}


misspelt = {"make_model": make_model, "train": train, "evaluat": evaluate}
no_evaluate = {"make_model": make_model, "train": train}
