"""STR: every tensor learns the threshold below which its weights are zero (arXiv:2002.03231)."""

from __future__ import annotations

import torch

from secateur.errors import ArgumentError
from secateur.train.shadow import put_back_, remember, remembered
from secateur.train.sparse import Method, Sparse


def learned_threshold(decay: float, initial: float = -10.0, momentum: float = 0.9) -> Method:
    """Soft threshold reparametrisation: ``w' = sign(w) relu(|w| - sigmoid(s))`` with one learned ``s`` a tensor.

    ``dL/dw = dL/dw' [w' != 0]`` and ``dL/ds = -sigmoid'(s) sum sign(w') dL/dw'``; ``s`` is trained by SGD at the
    learning rate of its weight, ``v <- momentum v + dL/ds + decay s``, ``s <- s - lr v``. The sparsity is not set but
    found: weight decay pulls ``s`` up towards zero. Between steps the parameters are ``w'``; the dense weights, ``s``
    and ``v`` are in the run's memory.

    Args:
        decay: weight decay of ``s``. initial: where ``s`` starts, far below zero. momentum: of ``s``.

    Example:
        >>> learned_threshold(1e-4).name
        'str'
    """
    if decay < 0 or not 0 <= momentum < 1:
        raise ArgumentError(
            f"learned_threshold needs decay >= 0 and momentum in [0, 1); got decay={decay}, momentum={momentum}"
        )

    def start(run: Sparse) -> None:
        for n, w in run.masks.weights.items():
            run.memory[f"s.{n}"] = torch.full((), initial, dtype=torch.float32, device=w.device)
            run.memory[f"velocity.{n}"] = torch.zeros((), device=w.device)
        after(run)

    def before(run: Sparse) -> bool:
        _learn(run, decay, momentum)
        put_back_(run)
        return False

    def after(run: Sparse) -> None:
        remember(run)
        masks, dense = {}, remembered(run)
        with torch.no_grad():
            for n, w in run.masks.weights.items():
                w.copy_(torch.nn.functional.softshrink(dense[n], float(run.memory[f"s.{n}"].sigmoid())))
                masks[n] = w != 0
        run.masks.put(masks)

    about = {"decay": decay, "initial": initial, "momentum": momentum}
    return Method("str", start, before, after, about, shadowed=True)


@torch.no_grad()
def _learn(run: Sparse, decay: float, momentum: float) -> None:
    """A step of every threshold, and the weights' own gradients."""
    rates = {p: float(g["lr"]) for g in run.optimizer.param_groups for p in g["params"]}
    for n, w in run.masks.weights.items():
        if w.grad is not None and w in rates:
            s = run.memory[f"s.{n}"]
            slope = s.sigmoid() * (1 - s.sigmoid())
            gradient = -slope * (w.grad * w.sign()).sum().float() + decay * s
            run.memory[f"velocity.{n}"] = momentum * run.memory[f"velocity.{n}"] + gradient
            run.memory[f"s.{n}"] = s - rates[w] * run.memory[f"velocity.{n}"]
            w.grad.mul_(run.masks.masks[n])
