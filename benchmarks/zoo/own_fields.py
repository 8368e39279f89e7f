"""Nets of graphs, sets, fields and forecasts as their users write them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def rows() -> Tensor:
    return torch.randn(4, 32)


def graph() -> tuple[Tensor, Tensor]:
    """Features of 20 nodes and a normalised adjacency matrix."""
    a = (torch.rand(20, 20) < 0.2).float()
    a = ((a + a.t() + torch.eye(20)) > 0).float()
    d = a.sum(1).rsqrt()
    return torch.randn(20, 32), d[:, None] * a * d[None]


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    made: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        made += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*made[:-1])


class _GCN(nn.Module):
    """Graph convolution as a product with the adjacency matrix, weights as bare parameters."""

    def __init__(self, hidden: int = 320) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.empty(32, hidden)), nn.Parameter(torch.empty(hidden, hidden))
        self.w3, self.b1 = nn.Parameter(torch.empty(hidden, 7)), nn.Parameter(torch.zeros(hidden))
        for w in (self.w1, self.w2, self.w3):
            nn.init.xavier_uniform_(w)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = F.relu(torch.mm(adj, torch.mm(x, self.w1)) + self.b1)
        x = F.dropout(x, 0.5, self.training)
        x = F.relu(adj @ (x @ self.w2))
        return F.log_softmax(adj @ (x @ self.w3), dim=1)


def gcn_dense() -> nn.Module:
    return _GCN()


class _GATLayer(nn.Module):
    def __init__(self, cin: int, cout: int, heads: int, concat: bool = True) -> None:
        super().__init__()
        self.heads, self.out_features, self.concat = heads, cout, concat
        self.w = nn.Linear(cin, heads * cout, bias=False)
        self.a_src, self.a_dst = (nn.Parameter(torch.randn(heads, cout) * 0.1) for _ in range(2))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        h = self.w(x).view(-1, self.heads, self.out_features)
        e = (h * self.a_src).sum(-1)[:, None] + (h * self.a_dst).sum(-1)[None]
        e = F.leaky_relu(e, 0.2).masked_fill(adj[..., None] == 0, -9e15)
        y = torch.einsum("ijh,jhf->ihf", e.softmax(dim=1), h)
        return F.elu(y.reshape(-1, self.heads * self.out_features)) if self.concat else y.mean(1)


class _GAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.out = _GATLayer(32, 40, 8), _GATLayer(320, 80, 4, concat=False), nn.Linear(80, 7)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return self.out(F.elu(self.conv2(self.conv1(x, adj), adj)))


def gat_dense() -> nn.Module:
    return _GAT()


class _MessagePassing(nn.Module):
    """Edges as pairs of indices: messages from gathered nodes, summed with ``index_add``, a cell updates the node."""

    def __init__(self, hidden: int = 96, rounds: int = 2) -> None:
        super().__init__()
        self.rounds = rounds
        self.embed = nn.Linear(32, hidden)
        self.message = nn.Sequential(nn.Linear(2 * hidden + 4, 128), nn.ReLU(), nn.Linear(128, hidden))
        self.update = nn.GRUCell(hidden, hidden)
        self.readout = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        h = F.relu(self.embed(x))
        src, dst = edges[0], edges[1]
        for _ in range(self.rounds):
            m = self.message(torch.cat([h[src], h[dst], features], dim=-1))
            h = self.update(torch.zeros_like(h).index_add(0, dst, m), h)
        return self.readout(h).sum(0)


def message_passing() -> nn.Module:
    return _MessagePassing()


class _SetTransformer(nn.Module):
    """A set read by attention, pooled by learned seeds."""

    def __init__(self, dim: int = 96, heads: int = 4, seeds: int = 2) -> None:
        super().__init__()
        self.proj = nn.Linear(8, dim)
        self.enc1, self.enc2 = (nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(2))
        self.ff1, self.ff2 = mlp((dim, 192, dim)), mlp((dim, 192, dim))
        self.seed = nn.Parameter(torch.randn(1, seeds, dim))
        self.out = nn.Linear(dim * seeds, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = x + self.enc1(x, x, x)[0]
        x = x + F.relu(self.ff1(x))
        s = self.seed.repeat(x.size(0), 1, 1)
        s = s + self.enc2(s, x, x)[0]
        return self.out((s + F.relu(self.ff2(s))).flatten(1))


def set_transformer() -> nn.Module:
    return _SetTransformer()


class _DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = mlp((8, 256, 256, 128)), mlp((256, 128, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(x)
        return self.rho(torch.cat([h.mean(1), h.max(1).values], -1))


def deep_sets() -> nn.Module:
    return _DeepSets()


class _ODENet(nn.Module):
    """One block of weights used at every step of a fourth-order integration, the time joined to the state."""

    def __init__(self, dim: int = 128, hidden: int = 384, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.enc, self.dec = nn.Linear(32, dim), nn.Linear(dim, 10)
        self.f1, self.f2 = nn.Linear(dim + 1, hidden), nn.Linear(hidden, dim)

    def ode(self, t: float, y: Tensor) -> Tensor:
        return self.f2(torch.tanh(self.f1(torch.cat([y, torch.full_like(y[:, :1], t)], dim=1))))

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.enc(x), 1 / self.steps
        for i in range(self.steps):
            t = i * h
            k1 = self.ode(t, y)
            k2 = self.ode(t + h / 2, y + h / 2 * k1)
            k3 = self.ode(t + h / 2, y + h / 2 * k2)
            k4 = self.ode(t + h, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.dec(y)


def neural_ode() -> nn.Module:
    return _ODENet()


class _Siren(nn.Module):
    def __init__(self, hidden: int = 256, w0: float = 30.0) -> None:
        super().__init__()
        self.omega_0 = w0
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((2, hidden, hidden, hidden)))
        self.final = nn.Linear(hidden, 3)
        for i, layer in enumerate(self.layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / hidden) / w0
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, coords: Tensor) -> Tensor:
        for layer in self.layers:
            coords = torch.sin(self.omega_0 * layer(coords))
        return self.final(coords)


def siren() -> nn.Module:
    return _Siren()


class _NeRF(nn.Module):
    """Encoded places join again in the middle; the direction of view joins before the colour."""

    def __init__(self, depth: int = 6, width: int = 160, skip: int = 3) -> None:
        super().__init__()
        self.skips, self.in_xyz, self.in_dir = (skip,), 3 + 6 * 6, 3 + 6 * 4
        self.pts_linears = nn.ModuleList(
            nn.Linear(self.in_xyz if i == 0 else width + self.in_xyz * (i == skip + 1), width) for i in range(depth)
        )
        self.feature, self.alpha = nn.Linear(width, width), nn.Linear(width, 1)
        self.views, self.rgb = nn.Linear(width + self.in_dir, width // 2), nn.Linear(width // 2, 3)

    @staticmethod
    def encode(x: Tensor, n: int) -> Tensor:
        return torch.cat([x] + [f(2.0**i * x) for i in range(n) for f in (torch.sin, torch.cos)], -1)

    def forward(self, x: Tensor) -> Tensor:
        points, dirs = torch.split(x, [3, 3], dim=-1)
        pts, views = self.encode(points, 6), self.encode(dirs, 4)
        h = pts
        for i, layer in enumerate(self.pts_linears):
            h = F.relu(layer(h))
            if i in self.skips:
                h = torch.cat([pts, h], -1)
        alpha = self.alpha(h)
        h = F.relu(self.views(torch.cat([self.feature(h), views], -1)))
        return torch.cat([torch.sigmoid(self.rgb(h)), alpha], -1)


def nerf() -> nn.Module:
    return _NeRF()


class _NBeats(nn.Module):
    """Blocks that take what they explain away from the past and add to the forecast."""

    def __init__(self, past: int = 32, ahead: int = 8, hidden: int = 192, blocks: int = 3) -> None:
        super().__init__()
        self.past, self.ahead = past, ahead
        self.bodies = nn.ModuleList(nn.Sequential(mlp((past, hidden, hidden)), nn.ReLU()) for _ in range(blocks))
        self.thetas = nn.ModuleList(nn.Linear(hidden, past + ahead, bias=False) for _ in range(blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        forecast = x.new_zeros(x.shape[0], self.ahead)
        for body, theta in zip(self.bodies, self.thetas, strict=True):
            back, front = theta(body(x)).split([self.past, self.ahead], dim=1)
            x, forecast = x - back, forecast + front
        return forecast, x


def nbeats() -> nn.Module:
    return _NBeats()


class _DuelingDQN(nn.Module):
    """A convolutional body; a value and advantages, whose mean is taken away."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *[nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
        )
        self.value, self.advantage = mlp((64 * 9, 256, 1)), mlp((64 * 9, 256, actions))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).view(x.size(0), -1)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


def dueling_dqn() -> nn.Module:
    return _DuelingDQN()


CASES: dict[str, Case] = {
    "gcn_dense": Case(gcn_dense, graph),
    "gat_dense": Case(gat_dense, graph),
    "message_passing": Case(
        message_passing, lambda: (torch.randn(10, 32), torch.randint(0, 10, (2, 24)), torch.randn(24, 4))
    ),
    "set_transformer": Case(set_transformer, lambda: torch.randn(2, 9, 8)),
    "deep_sets": Case(deep_sets, lambda: torch.randn(2, 9, 8)),
    "neural_ode": Case(neural_ode, rows),
    "siren": Case(siren, lambda: torch.rand(16, 2)),
    "nerf": Case(nerf, lambda: torch.randn(16, 6)),
    "nbeats": Case(nbeats, rows),
    "dueling_dqn": Case(dueling_dqn, lambda: torch.randn(2, 4, 52, 52)),
}
