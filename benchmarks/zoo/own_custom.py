"""Layers of a user's own on rows and sequences: experts, curves, gates, bare parameters, indices, products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def rows() -> Tensor:
    return torch.randn(4, 32)


def sequence() -> Tensor:
    return torch.randn(2, 10, 64)


class _SoftExperts(nn.Module):
    """Every expert answers; a gate weighs the answers."""

    def __init__(self, dim: int = 64, hidden: int = 256, experts: int = 4) -> None:
        super().__init__()
        self.inp = nn.Linear(32, dim)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )
        self.gate, self.out = nn.Linear(dim, experts), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inp(x))
        weights = F.softmax(self.gate(x), dim=-1)
        answers = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.out((weights.unsqueeze(-1) * answers).sum(dim=1))


def moe_soft_gating() -> nn.Module:
    return _SoftExperts()


class _StackedExperts(nn.Module):
    """The experts' weights lie in one parameter of three axes."""

    def __init__(self, dim: int = 64, hidden: int = 256, experts: int = 4) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(dim), nn.Linear(dim, experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(experts, dim, hidden) / dim**0.5)
        self.b1 = nn.Parameter(torch.zeros(experts, hidden))
        self.w2 = nn.Parameter(torch.randn(experts, hidden, dim) / hidden**0.5)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        h = F.gelu(torch.einsum("btd,edh->bteh", y, self.w1) + self.b1)
        out = torch.einsum("bteh,ehd->bted", h, self.w2)
        return self.head(x + torch.einsum("bted,bte->btd", out, self.router(y).softmax(-1)))


def moe_stacked_einsum() -> nn.Module:
    return _StackedExperts()


class _TopKExperts(nn.Module):
    """Every word goes to two experts; an expert sees only its own words."""

    def __init__(self, dim: int = 64, hidden: int = 224, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.k, self.gate = k, nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(self.k, dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            place, nth = torch.where(chosen == i)
            out.index_add_(0, place, expert(flat[place]) * weights[place, nth, None])
        return self.head(x + out.view_as(x))


def moe_top_k() -> nn.Module:
    return _TopKExperts()


class _KANLayer(nn.Module):
    """A learned curve on every edge: radial bases of each input, beside a plain linear part."""

    def __init__(self, cin: int, cout: int, bases: int = 6) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, bases))
        self.width = 4 / (bases - 1)
        self.base_weight = nn.Parameter(torch.randn(cout, cin) / cin**0.5)
        self.spline_weight = nn.Parameter(torch.randn(cout, cin, bases) / (cin * bases) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        bases = torch.exp(-(((x.unsqueeze(-1) - self.grid) / self.width) ** 2))
        curved = F.linear(bases.view(x.size(0), -1), self.spline_weight.view(self.spline_weight.size(0), -1))
        return F.linear(F.silu(x), self.base_weight) + curved


def kan() -> nn.Module:
    return nn.Sequential(_KANLayer(32, 128), _KANLayer(128, 96), _KANLayer(96, 10))


class _KANEinsum(nn.Module):
    """Powers of the squashed input against one parameter of three axes."""

    def __init__(self, cin: int, cout: int, degree: int = 4) -> None:
        super().__init__()
        self.degree = degree
        self.coeffs = nn.Parameter(torch.randn(cin, cout, degree + 1) / (cin * (degree + 1)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        t = [torch.ones_like(x), x]
        for _ in range(2, self.degree + 1):
            t.append(2 * x * t[-1] - t[-2])
        return torch.einsum("bid,iod->bo", torch.stack(t, -1), self.coeffs)


def chebyshev_kan() -> nn.Module:
    return nn.Sequential(
        _KANEinsum(32, 160), nn.LayerNorm(160), _KANEinsum(160, 96), nn.LayerNorm(96), _KANEinsum(96, 10)
    )


class _BareParameters(nn.Module):
    """No layer at all: matrices, scales and shifts as parameters."""

    def __init__(self, hidden: int = 320) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(32, hidden) / 32**0.5)
        self.b1 = nn.Parameter(torch.zeros(1, hidden))
        self.scale, self.shift = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.randn(hidden, hidden) / hidden**0.5)
        self.w3 = nn.Parameter(torch.randn(10, hidden) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x @ self.w1 + self.b1)
        h = torch.addcmul(self.shift, h, self.scale)
        return torch.matmul(torch.sigmoid(h @ self.w2), self.w3.T)


def bare_parameters() -> nn.Module:
    return _BareParameters()


class _RBF(nn.Module):
    """Distances to learned centres, which are a parameter's rows."""

    def __init__(self, cin: int = 96, centres: int = 384) -> None:
        super().__init__()
        self.inp = nn.Sequential(nn.Linear(32, 384), nn.ReLU(), nn.Linear(384, cin))
        self.centres, self.log_sigma = nn.Parameter(torch.randn(centres, cin)), nn.Parameter(torch.zeros(centres))
        self.out = nn.Linear(centres, 10)

    def forward(self, x: Tensor) -> Tensor:
        d = (self.inp(x).unsqueeze(1) - self.centres.unsqueeze(0)).pow(2).mean(-1)
        return self.out(torch.exp(-d * self.log_sigma.exp()))


def radial_basis() -> nn.Module:
    return _RBF()


class _Reordered(nn.Module):
    """Features turned round, rolled along, and picked by a stored order between linear layers."""

    def __init__(self, how: str, hidden: int = 320) -> None:
        super().__init__()
        self.how = how
        self.fc1, self.fc2, self.fc3 = nn.Linear(32, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)
        self.register_buffer("order", torch.randperm(hidden))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        if self.how == "flip":
            x = x.flip(1)
        elif self.how == "roll":
            x = torch.roll(x, shifts=5, dims=1)
        elif self.how == "index":
            x = x[:, self.order]
        else:
            x = torch.index_select(x, 1, self.order)
        return self.fc3(F.relu(self.fc2(x)))


def linear_flip() -> nn.Module:
    return _Reordered("flip")


def linear_roll() -> nn.Module:
    return _Reordered("roll")


def linear_index_buffer() -> nn.Module:
    return _Reordered("index")


def linear_index_select() -> nn.Module:
    return _Reordered("select")


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 48), nn.Linear(32, 40)
        self.bilinear, self.out = nn.Bilinear(48, 40, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bilinear(F.relu(self.left(x)), F.relu(self.right(x)))))


def bilinear() -> nn.Module:
    return _Bilinear()


class _Gated(nn.Module):
    """Residual blocks of a gated feed-forward, in three spellings."""

    def __init__(self, kind: str, dim: int = 64, hidden: int = 192, n: int = 3) -> None:
        super().__init__()
        self.kind = kind
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(n))
        self.ups = nn.ModuleList(nn.Linear(dim, 2 * hidden) for _ in range(n))
        self.downs = nn.ModuleList(nn.Linear(hidden, dim) for _ in range(n))
        self.head = nn.Linear(dim, 10)

    def gate(self, y: Tensor) -> Tensor:
        if self.kind == "glu":
            return F.glu(y, dim=-1)
        a, b = y.chunk(2, dim=-1)
        return a * F.gelu(b) if self.kind == "geglu" else F.silu(a) * b

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(self.gate(up(norm(x))))
        return self.head(x)


def glu() -> nn.Module:
    return _Gated("glu")


def geglu() -> nn.Module:
    return _Gated("geglu")


def swiglu() -> nn.Module:
    return _Gated("swiglu")


class _Maxout(nn.Module):
    def __init__(self, cin: int, cout: int, pieces: int = 3) -> None:
        super().__init__()
        self.out_features, self.pieces = cout, pieces
        self.lin = nn.Linear(cin, cout * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x).view(*x.shape[:-1], self.out_features, self.pieces).max(-1)[0]


def maxout() -> nn.Module:
    return nn.Sequential(_Maxout(32, 192), nn.Dropout(0.2), _Maxout(192, 160), nn.Linear(160, 10))


class _LoRALinear(nn.Module):
    """A frozen weight and a product of two thin ones."""

    def __init__(self, cin: int, cout: int, rank: int = 8, alpha: int = 16) -> None:
        super().__init__()
        self.base = nn.Linear(cin, cout).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, cin) / cin**0.5)
        self.lora_B = nn.Parameter(0.1 * torch.randn(cout, rank))
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_A.t() @ self.lora_B.t()) * self.scaling


def lora_mlp() -> nn.Module:
    return nn.Sequential(_LoRALinear(32, 320), nn.GELU(), _LoRALinear(320, 256), nn.GELU(), _LoRALinear(256, 10))


class _BitLinear(nn.Linear):
    """Weights rounded to -1, 0 and 1 of their mean size, with the gradient passed straight through."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean().clamp(min=1e-5)
        rounded = (self.weight / scale).round().clamp(-1, 1) * scale
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


def ternary_weights() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 320), nn.ReLU(), _BitLinear(320, 320), nn.ReLU(), nn.Linear(320, 10))


class _HyperNetwork(nn.Module):
    """A net makes the weights of another from the condition."""

    def __init__(self, cin: int = 32, hidden: int = 24, cond: int = 16) -> None:
        super().__init__()
        self.n_in, self.n_hidden = cin, hidden
        self.body = nn.Sequential(nn.Linear(cond, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.w1, self.w2 = nn.Linear(128, cin * hidden), nn.Linear(128, hidden)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.body(cond)
        w1 = self.w1(h).view(-1, self.n_in, self.n_hidden)
        y = torch.tanh(torch.bmm(x.unsqueeze(1), w1))
        return torch.bmm(y, self.w2(h).view(-1, self.n_hidden, 1)).squeeze(2)


def hypernetwork() -> nn.Module:
    return _HyperNetwork()


class _SharedLayers(nn.Module):
    """One block of weights, used four times, under checkpointing in training."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(64, dim)
        self.block = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, dim))
        self.mix, self.head = nn.Conv1d(dim, dim, 3, padding=1), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(4):
            x = x + self.mix(x.transpose(1, 2)).transpose(1, 2) / math.sqrt(2)
            x = x + checkpoint(self.block, x, use_reentrant=False)
        return self.head(x)


def shared_layers_checkpointed() -> nn.Module:
    return _SharedLayers()


class _Multitask(nn.Module):
    """Shared experts, a gate and a tower of each task; the answers by name."""

    def __init__(self, tasks: tuple[str, ...] = ("click", "buy"), experts: int = 3, width: int = 128) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 192), nn.ReLU(), nn.Linear(192, width), nn.ReLU()) for _ in range(experts)
        )
        self.gates = nn.ModuleDict({t: nn.Linear(32, experts) for t in tasks})
        self.towers = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 1)) for t in tasks}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = torch.stack([e(x) for e in self.experts], 1)
        mixed = {t: torch.einsum("be,bed->bd", gate(x).softmax(1), found) for t, gate in self.gates.items()}
        return {t: torch.sigmoid(tower(mixed[t])) for t, tower in self.towers.items()}


def multitask_experts() -> nn.Module:
    return _Multitask()


CASES: dict[str, Case] = {
    "moe_soft_gating": Case(moe_soft_gating, rows),
    "moe_stacked_einsum": Case(moe_stacked_einsum, sequence),
    "moe_top_k": Case(moe_top_k, sequence),
    "kan": Case(kan, rows),
    "chebyshev_kan": Case(chebyshev_kan, rows),
    "bare_parameters": Case(bare_parameters, rows),
    "radial_basis": Case(radial_basis, rows),
    "linear_flip": Case(linear_flip, rows),
    "linear_roll": Case(linear_roll, rows),
    "linear_index_buffer": Case(linear_index_buffer, rows),
    "linear_index_select": Case(linear_index_select, rows),
    "bilinear": Case(bilinear, rows),
    "glu": Case(glu, sequence),
    "geglu": Case(geglu, sequence),
    "swiglu": Case(swiglu, sequence),
    "maxout": Case(maxout, rows),
    "lora_mlp": Case(lora_mlp, rows),
    "ternary_weights": Case(ternary_weights, rows),
    "hypernetwork": Case(hypernetwork, lambda: (rows(), torch.randn(4, 16))),
    "shared_layers_checkpointed": Case(shared_layers_checkpointed, sequence),
    "multitask_experts": Case(multitask_experts, rows),
}
