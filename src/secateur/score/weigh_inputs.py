"""Criteria of single weights that look at what a weight is fed: the norm of each input over the data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ArgumentError, CoupleError
from secateur.score.calibrate import checked, forward
from secateur.score.capture import Contraction, Watch, from_matrix, matrix
from secateur.score.gradients import finite, learning, stat_of
from secateur.types import Batches, Criterion, Weighing


@dataclass(frozen=True, eq=False)
class Inputs:
    """How large the inputs of a weight are.

    Attributes:
        square: ``sum x_j²`` over all rows of all batches, float64, (groups, columns of `matrix`). A convolution has
            one column a channel and tap.
        in_dim: the axis of the weight that is summed over; a row that is compared within runs along it.
    """

    square: Tensor
    in_dim: int

    def rows(self, weight: Tensor) -> Tensor:
        """A weight as (groups, outputs of a group, columns), float64."""
        flat = matrix(weight.detach().double(), self.in_dim)
        return flat.reshape(len(self.square), -1, flat.shape[1])

    def back(self, rows: Tensor, weight: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return from_matrix(rows.flatten(0, 1), weight, self.in_dim)


def input_norms(model: nn.Module, batches: Batches, weights: Mapping[str, Tensor]) -> dict[str, Inputs]:
    """Squared norms of the inputs of weights, by name, from one pass: memory of one vector a weight.

    Args:
        model: left as it was. batches: examples; targets are ignored.
        weights: those of linear layers and convolutions of any rank, grouped ones too, by the function that uses
            them: the transposed weights of transformers' ``Conv1D`` are recognized, and self-attention by torch's
            ``MultiheadAttention`` is looked into.

    Raises:
        DataError: no batches, or inputs that are not finite; it names the weight and the batch.
        CoupleError: a weight is used in no way that shows its inputs.

    Example:
        >>> found = input_norms(nn.Linear(2, 1), [torch.tensor([[3.0, 1], [4, 0]])], {"weight": torch.ones(1, 2)})
        >>> found["weight"].square.sqrt()
        tensor([[5., 1.]], dtype=torch.float64)
    """
    found: dict[str, Inputs] = {}
    number = 0

    def seen(c: Contraction) -> None:
        if c.weight not in weights:
            return
        more = Inputs(squares(c), c.in_dim)
        finite({c.weight: more.square}, "input", number)
        have = found.setdefault(c.weight, more)
        if have is more:
            return
        if have.in_dim != c.in_dim or have.square.shape != more.square.shape:
            raise CoupleError(
                f"{c.weight} is used in two ways that sum over other axes: leave it out with ignore=[...]"
            )
        have.square.add_(more.square)

    with learning(model, ()), torch.no_grad():
        for number, example, _ in checked(model, batches):
            with Watch(model, seen, every=True):
                forward(model, example, number)
    for name in weights:
        if name not in found:
            raise CoupleError(
                f"the inputs of {name} cannot be seen: no linear layer, product or convolution used it as it is on the "
                f"calibration data; leave it dense with ignore=[{name!r}], or use sc.magnitude or sc.taylor"
            )
    return found


def squares(c: Contraction) -> Tensor:
    """``sum x_j²`` over the rows of one contraction, (groups, columns): without unfolding, one tap after another."""
    x = c.x.detach().double()
    if not c.unfold:
        return x.reshape(-1, x.shape[-1]).square().sum(0)[None]
    kernel, stride, padding, dilation = (c.unfold[k] for k in ("kernel", "stride", "padding", "dilation"))
    x = F.pad(x, [p for at in reversed(padding) for p in (at, at)]).square()
    reach = [
        (n - d * (k - 1) - 1) // s * s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    taps = []
    for tap in itertools.product(*map(range, kernel)):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        window = tuple(slice(a, a + r, s) for a, r, s in zip(starts, reach, stride, strict=True))
        taps.append(x[(slice(None), slice(None), *window)].transpose(0, 1).flatten(1).sum(1))
    return torch.stack(taps, 1).reshape(c.groups, -1)


def _wanda(model: nn.Module, weights: Mapping[str, Tensor], stats: Mapping[str, Inputs]) -> dict[str, Tensor]:
    scores = {}
    for name, w in weights.items():
        inputs: Inputs = stat_of(stats, name)
        scores[name] = inputs.back(inputs.rows(w).abs() * inputs.square.sqrt()[:, None], w)
    return scores


wanda = Criterion("wanda", weights=Weighing(_wanda, input_norms))
"""``|W_ij| ‖X_j‖``: a weight times the norm of its input (Wanda, arXiv:2306.11695).

The paper compares within each row of outputs: use a pattern that keeps as many in each.
"""


def ria_with(power: float = 0.5) -> Criterion:
    """Relative importance and activations: ``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ‖X_j‖^power``.

    A weight counts by its share of all weights on its input and of all on its output, so that no row and no column
    goes before the others (RIA, ICLR 2024, openreview Tr0lPx9woF).

    Args:
        power: of the input's norm, at least 0; 0 leaves the data out.

    Raises:
        ArgumentError: the power is negative or not finite.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 1], [1, 1]]))
        >>> how = ria_with(0.0).weights
        >>> how.score(net, {"weight": net.weight}, how.stat(net, [torch.eye(2)], {"weight": net.weight}))["weight"]
        tensor([[1.5000, 0.7500],
                [0.7500, 1.0000]], dtype=torch.float64)
    """
    if not 0 <= power < float("inf"):
        raise ArgumentError(f"ria_with takes a power of at least 0, got {power}; the paper has 0.5")

    def of(model: nn.Module, weights: Mapping[str, Tensor], stats: Any) -> dict[str, Tensor]:
        scores = {}
        for name, w in weights.items():
            inputs: Inputs = stat_of(stats, name)
            size = inputs.rows(w).abs()
            share = _share(size, 1) + _share(size, 2)
            scores[name] = inputs.back(share * inputs.square.sqrt()[:, None] ** power, w)
        return scores

    return Criterion("ria", weights=Weighing(of, input_norms))


def _share(size: Tensor, dim: int) -> Tensor:
    total = size.sum(dim, keepdim=True)
    return size / torch.where(total > 0, total, 1.0)


ria = ria_with()
"""`ria_with` its defaults."""
