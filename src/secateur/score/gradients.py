"""Gradients and curvature of a loss in single weights, batch by batch, the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import ArgumentError, DataError
from secateur.score.calibrate import Loss, checked, forward
from secateur.types import Batches

Named: TypeAlias = Mapping[str, Tensor]
"""Tensors by parameter name."""


@contextmanager
def learning(model: nn.Module, weights: Iterable[Tensor], batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode with gradients for these weights alone, frozen or not; flags and buffers put back afterwards.

    Args:
        model: whose weights they are. weights: of the model.
        batch_statistics: batch norms use those of the batch: an untrained network has no others.
    """
    chosen = {id(w) for w in weights}
    modes = [(m, m.training) for m in model.modules()]
    required = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(m, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    try:
        model.eval()
        for m in model.modules():
            if batch_statistics and isinstance(m, _BatchNorm):
                m.training = True
        for p in model.parameters():
            p.requires_grad_(id(p) in chosen)
        with torch.enable_grad(), ExitStack() as stack:
            if any(isinstance(m, nn.RNNBase) for m in model.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # no backward in evaluation mode
            yield
    finally:
        for m, flag in modes:
            m.training = flag
        for p, flag in required:
            p.requires_grad_(flag)
        with torch.no_grad():
            for m, name, buffer, before in buffers:
                m._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


Use: TypeAlias = Callable[[dict[str, Tensor], dict[str, Tensor]], None]
"""``(parameters, gradients)``, both by name."""


def differentiate(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    weights: Named,
    use: Use,
    *,
    twice: bool = False,
    batch_statistics: bool = False,
) -> int:
    """Call ``use`` with the gradients of the loss on every batch; returns how many there were.

    Args:
        model, batches, loss: as in `sc.taylor_with`. weights: whose gradients, by name; zero where there is none.
        use: must not keep what it is given. twice: the gradients can be differentiated again.
        batch_statistics: see `learning`.

    Raises:
        DataError: no batches, or a loss or a gradient that is not finite; ``weights`` names what the model has not.
    """
    mine = parameters_of(model, weights)
    generator = torch.Generator().manual_seed(0)
    count = 0
    with learning(model, mine.values(), batch_statistics), ExitStack() as stack:
        if twice:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels have no second derivative
        for number, example, targets in checked(model, batches):
            value = _scalar(loss(forward(model, example, number), targets, generator), number)
            found = torch.autograd.grad(value, list(mine.values()), create_graph=twice, allow_unused=True)
            grads = {n: torch.zeros_like(mine[n]) if g is None else g for n, g in zip(mine, found, strict=True)}
            finite(grads, "gradient", number)
            use(mine, grads)
            count += 1
    return count


def parameters_of(model: nn.Module, weights: Named) -> dict[str, Tensor]:
    """The model's own parameters of these names.

    Raises:
        DataError: it has none of a name.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in weights:
        if name not in named:
            raise DataError(f"{type(model).__name__} has no parameter {name!r}: take the weights of sc.prunable(model)")
    return {name: named[name] for name in weights}


def _scalar(value: Any, number: int) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"the loss on calibration batch {number} is {what}; expected one number: take its mean or sum")
    if not bool(torch.isfinite(value)):
        raise DataError(f"the loss on calibration batch {number} is {float(value.detach())}: check weights and data")
    if not value.requires_grad:
        raise DataError("the loss has no gradient in these weights: the model or the loss detaches it (no_grad?)")
    return value.reshape(())


def finite(tensors: Named, what: str, number: int) -> None:
    """Check tensors that came of a batch.

    Raises:
        DataError: one holds NaN or inf; it names the weight and the batch.
    """
    for name, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            bad = int((~torch.isfinite(t)).sum())
            raise DataError(
                f"the {what} of {name} has {bad} of {t.numel()} entries NaN or inf on calibration batch {number}: "
                "check the batch and the weights; half precision may overflow, try float32"
            )


def hessian_times(parameters: Named, grads: Named, along: Named) -> dict[str, Tensor]:
    """``H v`` from gradients that can be differentiated again; ``v`` and the product by name."""
    total = torch.stack([(g * along[n].to(g.dtype)).sum() for n, g in grads.items()]).sum()
    if not total.requires_grad:  # a loss linear in the weights
        return {n: torch.zeros_like(p) for n, p in parameters.items()}
    found = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if h is None else h for (n, p), h in zip(parameters.items(), found, strict=True)}


@dataclass(frozen=True)
class Curvature:
    """How the diagonal of the Hessian is found.

    Attributes:
        of: ``(parameters, gradients, generator) -> diagonal``, of one batch, by name.
        twice: whether it differentiates the gradients again.
    """

    of: Callable[[Named, Named, torch.Generator], dict[str, Tensor]]
    twice: bool = True


def hutchinson(probes: int = 8) -> Curvature:
    """``mean v ⊙ H v`` over random signs ``v`` (Hutchinson): unbiased, and exact where the Hessian is diagonal.

    The standard error of an entry is the norm of the rest of its row of ``H`` over the root of all draws together, so
    a few draws on a few batches tell little where weights interact.

    Args:
        probes: draws a batch.

    Raises:
        ArgumentError: fewer than one probe.

    Example:
        >>> hutchinson(4).twice
        True
    """
    if probes < 1:
        raise ArgumentError(f"hutchinson takes one probe or more a batch, got {probes}")

    def of(parameters: Named, grads: Named, generator: torch.Generator) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
        for _ in range(probes):
            signs = {
                n: (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1).to(p.device, p.dtype)
                for n, p in parameters.items()
            }
            for n, h in hessian_times(parameters, grads, signs).items():
                total[n] += (signs[n] * h).double() / probes
        return total

    return Curvature(of)


def _exact(parameters: Named, grads: Named, generator: torch.Generator) -> dict[str, Tensor]:
    diagonal = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    for n, g in grads.items():
        for i, entry in enumerate(g.reshape(-1)):
            if entry.requires_grad:
                (row,) = torch.autograd.grad(entry, parameters[n], retain_graph=True, allow_unused=True)
                diagonal[n].view(-1)[i] = 0.0 if row is None else row.reshape(-1)[i].double()
    return diagonal


exact_diagonal = Curvature(_exact)
"""The diagonal of the Hessian by double backward: one backward pass a weight, so for small networks."""

squared_gradient = Curvature(lambda p, grads, generator: {n: g.detach().double() ** 2 for n, g in grads.items()}, False)
"""The diagonal of the empirical Fisher matrix: ``g²`` of each batch (of each example, in batches of one)."""


def stat_of(stats: Mapping[str, Any], name: str) -> Any:
    """What was gathered for a weight.

    Raises:
        DataError: nothing was.
    """
    if name not in stats:
        raise DataError(f"no statistics were gathered for {name}: gather them for the weights that are scored")
    return stats[name]
