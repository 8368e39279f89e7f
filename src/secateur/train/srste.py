"""N:M from the first step (SR-STE), or once from trained weights (ASP)."""

from __future__ import annotations

import math

import torch

from secateur.choose.density import Densities, check_sparsity, even, select
from secateur.choose.patterns import Pattern
from secateur.errors import ArgumentError
from secateur.score.criteria import magnitude
from secateur.score.weights import saliency
from secateur.train.shadow import put_back_, remember, remembered
from secateur.train.sparse import Method, Sparse, named


def srste(pattern: Pattern, decay: float = 2e-4, sparsity: float = 0.0, density: Densities = even) -> Method:
    """SR-STE: every step chooses the mask anew, and what is masked decays (arXiv:2102.04010).

    ``W <- W - lr (dL/dW' + decay (1 - M) W)``, ``W' = W M``, ``M`` the largest ``|W|`` in the pattern. The gradient is
    that of the masked weights, taken straight through; the optimizer sees the decay as part of it.

    Args:
        pattern: such as 2:4. decay: of masked weights; zero is the plain straight-through estimator.
        sparsity, density: only for patterns that do not fix the density.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> srste(unstructured, sparsity=0.5).about["decay"]
        0.0002
    """
    sparsity = check_sparsity(sparsity)
    if not 0 <= decay < math.inf:
        raise ArgumentError(f"srste needs a finite decay of at least 0, got {decay}")

    def before(run: Sparse) -> bool:
        put_back_(run)
        dense = remembered(run)
        with torch.no_grad():
            for n, w in run.masks.weights.items():
                if w.grad is not None:
                    w.grad.add_(dense[n] * ~run.masks.masks[n], alpha=decay)
        return False

    def after(run: Sparse) -> None:
        remember(run)
        scores = saliency(run.model, magnitude, run.masks.weights)
        run.masks.put(select(scores, sparsity, pattern, density, turned=run.turned))

    about = {"pattern": pattern.name, "decay": decay, "sparsity": sparsity, "density": named(density)}
    return Method("srste", after, before, after, about, shadowed=True)


def asp(pattern: Pattern, sparsity: float = 0.0, density: Densities = even) -> Method:
    """ASP: one mask by magnitude from the trained weights, then training goes on with it (arXiv:2104.08378).

    The recipe repeats the dense training, with the same schedule and a fresh optimizer.

    Args:
        pattern: such as 2:4. sparsity, density: only for patterns that do not fix the density.

    Example:
        >>> from secateur.choose.patterns import unstructured
        >>> asp(unstructured, 0.5).name
        'asp'
    """
    sparsity = check_sparsity(sparsity)

    def start(run: Sparse) -> None:
        scores = saliency(run.model, magnitude, run.masks.weights)
        run.masks.put(select(scores, sparsity, pattern, density, turned=run.turned))

    return Method("asp", start, about={"pattern": pattern.name, "sparsity": sparsity, "density": named(density)})
