"""Small models that several tests share, and what they need around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.types import Example


def mlp(*widths: int, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch norm, statistics not at their defaults, and a head."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.running_var):
                t.uniform_(0.5, 1.5)
            for t in (m.bias.data, m.running_mean):
                t.normal_()
    return net.eval()


class Attention(nn.Module):
    """Separate q, k, v, heads by a view, and a two-layer feed-forward part, each on a residual stream."""

    def __init__(self, width: int = 16, heads: int = 4, inner: int = 24) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(b, t, -1)
        x = x + self.o(mixed)
        return x + self.down(F.gelu(self.up(x)))


def attention(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention().eval()


class Tied(nn.Module):
    """An embedding that is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.b(torch.relu(self.a(x)))
        out: Tensor = self.head(x)
        return out


def groups_of(model: nn.Module, example: Example) -> sc.Groups:
    return sc.couple(sc.trace(model, example))


def cut_evenly(model: nn.Module, example: Example, sparsity: float = 0.5, seed: int = 0) -> tuple[sc.Plan, nn.Module]:
    """A random plan and what it makes of the model."""
    plan = sc.random_plan(groups_of(model, example), sparsity, seed)
    return plan, sc.apply(plan, model)


def recount(model: nn.Module) -> tuple[int, int]:
    """(parameters, bytes of parameters and buffers) of a model as it stands."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters()), sum(t.numel() * t.element_size() for t in tensors)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that may not change: weights, buffers, flags."""
    flags = {f"training {n}": torch.tensor(m.training) for n, m in model.named_modules()}
    grads = {f"grad {n}": torch.tensor(p.requires_grad) for n, p in model.named_parameters()}
    held = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    return flags | grads | held


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def draws(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(count)]


def counts(plan: sc.Plan) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in plan.keep.items()}


def scores_of(groups: sc.Groups, values: Sequence[Sequence[float]]) -> sc.Scores:
    """Scores as given, group by group."""
    return sc.Scores(groups, {g.name: np.asarray(v, float) for g, v in zip(groups, values, strict=True)}, "given")
