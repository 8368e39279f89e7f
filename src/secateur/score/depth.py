"""How much a whole layer does to the stream that runs through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.calling import tensors_of
from secateur.errors import DataError
from secateur.graph.depth import Layer
from secateur.score.calibrate import checked, forward, quiet_eval, real
from secateur.types import Batches


def block_influence(
    model: nn.Module, batches: Batches, layers: Iterable[str | Layer], dim: int = -1
) -> dict[str, float]:
    """How far each layer turns the stream: ``1 - E[cos(h_in, h_out)]`` over all positions; small goes first.

    ShortGPT's block influence (arXiv:2403.03853): 0 for a layer that only scales its input, 2 at most.

    Args:
        model: left as it was.
        batches: examples; labels are ignored. Every position counts, padding too: give texts of one length.
        layers: from `sc.layers`, or their paths.
        dim: the features: -1 in transformers, 1 in convolutional networks.

    Raises:
        DataError: no batches, NaN or inf in one or behind a layer, or a layer that is not called on one.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> turn, scale = torch.tensor([[0.0, -1], [1, 0]]), 3 * torch.eye(2)
        >>> _ = net[0].weight.data.copy_(turn), net[1].weight.data.copy_(scale)
        >>> block_influence(net, [torch.tensor([[3.0, 4]])], ["0", "1"])
        {'0': 1.0, '1': 0.0}
    """
    paths = [layer if isinstance(layer, str) else layer.path for layer in layers]
    seen = {path: _Turn(path, dim) for path in paths}
    handles: list[Any] = []
    try:
        for path, turn in seen.items():
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise DataError(f"{type(model).__name__} has no layer {path!r}: give paths of sc.layers") from error
            handles.append(module.register_forward_pre_hook(turn.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(turn.leave))
        with quiet_eval(model), torch.no_grad():
            for number, example, _ in checked(model, batches):
                before = {path: turn.positions for path, turn in seen.items()}
                forward(model, example, number)
                for path, turn in seen.items():
                    if turn.positions == before[path]:
                        raise DataError(f"{path} is not called on calibration batch {number}: leave it out")
    finally:
        for handle in handles:
            handle.remove()
    return {path: 1 - turn.total / turn.positions for path, turn in seen.items()}


class _Turn:
    """Sum of the cosines between what a layer gets and what it gives, over positions."""

    def __init__(self, path: str, dim: int) -> None:
        self.path, self.dim = path, dim
        self.given: Tensor | None = None
        self.total, self.positions = 0.0, 0

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next(iter(tensors_of((args, kwargs))), None)
        self.given = None if first is None else first.clone()  # layers may write into it

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        made = next(iter(tensors_of(output)), None)
        if self.given is None or made is None or made.shape != self.given.shape:
            raise DataError(f"{self.path} does not make a tensor like its first input: give layers of sc.layers")
        cosines = F.cosine_similarity(real(self.given), real(made), dim=self.dim).double()
        if not bool(torch.isfinite(cosines).all()):
            raise DataError(f"the stream through {self.path} is not finite on the calibration data")
        self.total += float(cosines.sum())
        self.positions += cosines.numel()
