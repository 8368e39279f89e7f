"""Takes the marks of a fresh net from it: zero biases, unit norms, empty statistics, which would hide a wrong cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def lived_in(model: nn.Module) -> nn.Module:
    """The model with noise on every constant vector, such as a bias of zeros, and on the statistics of its norms."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if name.endswith(("running_var", "moving_variance")):
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif name.endswith(("running_mean", "moving_mean")) or (isinstance(tensor, nn.Parameter) and flat(tensor)):
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def flat(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and tensor.numel() > 1 and bool((tensor == tensor[0]).all())
