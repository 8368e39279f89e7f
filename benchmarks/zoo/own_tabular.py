"""Nets of rows of a table and of recommendations as their users write them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def rows() -> Tensor:
    return torch.randn(4, 32)


def clicks() -> tuple[Tensor, Tensor]:
    """Numbers and the categories of six columns."""
    return torch.randn(4, 13), torch.randint(0, 50, (4, 6))


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    made: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        made += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def mlp_batch_norm() -> nn.Module:
    made: list[nn.Module] = []
    for a, b in itertools.pairwise((32, 256, 256, 128)):
        made += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*made, nn.Linear(128, 10))


class _ResidualMLP(nn.Module):
    def __init__(self, dim: int = 128, hidden: int = 256, n: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(32, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, dim))
            for _ in range(n)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).squeeze(-1)


def mlp_residual_layer_norm() -> nn.Module:
    return _ResidualMLP()


class _TwoTower(nn.Module):
    """Users and items from bags of numbers; the score is a product of unit vectors."""

    def __init__(self, users: int = 500, items: int = 800, dim: int = 64, out: int = 48) -> None:
        super().__init__()
        self.user_emb = nn.EmbeddingBag(users, dim, mode="mean")
        self.item_emb = nn.EmbeddingBag(items, dim, mode="sum")
        self.user_tower, self.item_tower = mlp((dim, 192, out)), mlp((dim, 192, out))
        self.temperature = nn.Parameter(torch.tensor(0.1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u = F.normalize(self.user_tower(self.user_emb(user)), dim=-1)
        v = F.normalize(self.item_tower(self.item_emb(item)), dim=-1)
        return u @ v.t() / self.temperature


def two_tower() -> nn.Module:
    return _TwoTower()


class _DLRM(nn.Module):
    """Products of every pair of embeddings, the lower triangle picked by index, beside the dense vector."""

    def __init__(self, dim: int = 32, tables: int = 6) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(50, dim, mode="sum") for _ in range(tables))
        self.bot_l = mlp((13, 256, 128, dim))
        pairs = (tables + 1) * tables // 2
        self.top_l = mlp((dim + pairs, 320, 192, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = F.relu(self.bot_l(dense))
        ly = [emb(sparse[:, i : i + 1]) for i, emb in enumerate(self.emb_l)]
        batch, d = x.shape
        t = torch.cat([x, *ly], dim=1).view(batch, -1, d)
        z = torch.bmm(t, t.transpose(1, 2))
        ni = z.shape[1]
        li = torch.tensor([i for i in range(ni) for _ in range(i)])
        lj = torch.tensor([j for i in range(ni) for j in range(i)])
        return torch.sigmoid(self.top_l(torch.cat([x, z[:, li, lj]], dim=1)))


def dlrm() -> nn.Module:
    return _DLRM()


class _DeepFM(nn.Module):
    """A linear part, a factorisation machine and a deep net over one table, whose columns start at offsets."""

    def __init__(self, columns: int = 6, dim: int = 32) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.arange(columns) * 50)
        self.linear, self.embedding = nn.Embedding(50 * columns, 1), nn.Embedding(50 * columns, dim)
        self.dense, self.bias = nn.Linear(13, 1), nn.Parameter(torch.zeros(1))
        self.embed_output_dim = columns * dim
        self.deep = nn.Sequential(
            *[nn.Linear(columns * dim + 13, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 128)],
            *[nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 1)],
        )

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        ids = sparse + self.offsets.unsqueeze(0)
        e = self.embedding(ids)
        first = self.linear(ids).sum(1) + self.dense(dense) + self.bias
        second = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        deep = self.deep(torch.cat([e.view(-1, self.embed_output_dim), dense], 1))
        return torch.sigmoid(first + second + deep).squeeze(1)


def deepfm() -> nn.Module:
    return _DeepFM()


class _WideDeep(nn.Module):
    def __init__(self, dim: int = 16, columns: int = 6) -> None:
        super().__init__()
        self.wide = nn.Linear(13, 1)
        self.embeds = nn.ModuleDict({f"c{i}": nn.Embedding(50, dim) for i in range(columns)})
        self.deep = nn.Sequential(mlp((13 + dim * columns, 320, 192, 64)), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        e = [table(sparse[:, i]) for i, table in enumerate(self.embeds.values())]
        return torch.sigmoid(self.wide(dense) + self.deep(torch.cat([dense, *e], dim=-1)))


def wide_deep() -> nn.Module:
    return _WideDeep()


class _CrossNet(nn.Module):
    """Every cross layer is the input times a linear map of what came before, added."""

    def __init__(self, dim: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(13, dim)
        self.w = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.deep = mlp((dim, 192, 128))
        self.out = nn.Linear(dim + 128, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x0 = self.embed(dense) + sparse.to(dense.dtype).mean(1, keepdim=True) / 50
        x = x0
        for w in self.w:
            x = x0 * w(x) + x
        return self.out(torch.cat([x, self.deep(x0)], 1))


def deep_cross() -> nn.Module:
    return _CrossNet()


class _NeuMF(nn.Module):
    """A generalised factorisation and an MLP, each with tables of its own, joined at the end."""

    def __init__(self, n: int = 400, mf: int = 32, width: int = 96) -> None:
        super().__init__()
        self.mf_user, self.mf_item = nn.Embedding(n, mf), nn.Embedding(n, mf)
        self.mlp_user, self.mlp_item = nn.Embedding(n, width), nn.Embedding(n, width)
        self.fc_layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((2 * width, 160), (160, 64), (64, 32)))
        self.affine_output = nn.Linear(mf + 32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        vector = torch.cat([self.mlp_user(user), self.mlp_item(item)], dim=-1)
        for layer in self.fc_layers:
            vector = F.relu(layer(vector))
        factor = torch.mul(self.mf_user(user), self.mf_item(item))
        return torch.sigmoid(self.affine_output(torch.cat([vector, factor], dim=-1)))


def neural_collaborative_filtering() -> nn.Module:
    return _NeuMF()


class _TabTransformer(nn.Module):
    """Categories through a transformer, numbers through a norm, all flattened into an MLP."""

    def __init__(self, columns: int = 6, dim: int = 48) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(50, dim) for _ in range(columns))
        layer = nn.TransformerEncoderLayer(dim, 4, 96, dropout=0.1, activation="gelu", batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2)
        self.norm = nn.LayerNorm(13)
        self.mlp = nn.Sequential(nn.Linear(columns * dim + 13, 256), nn.SELU(), nn.Linear(256, 64), nn.SELU())
        self.head = nn.Linear(64, 2)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = torch.stack([e(sparse[:, i]) for i, e in enumerate(self.embeds)], dim=1)
        x = self.transformer(x).flatten(1)
        return self.head(self.mlp(torch.cat((x, self.norm(dense)), dim=-1)))


def tab_transformer() -> nn.Module:
    return _TabTransformer()


class _FTTransformer(nn.Module):
    """Every number becomes a token by a weight and bias of its own; the class token is read."""

    def __init__(self, columns: int = 32, dim: int = 80) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(columns, dim)), nn.Parameter(torch.randn(columns, dim))
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.attns = nn.ModuleList(nn.MultiheadAttention(dim, 4, batch_first=True) for _ in range(2))
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*s) for _ in range(2)) for s in ((dim, 320), (160, dim)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight[None] * x[..., None] + self.bias[None]
        x = torch.cat([x, self.cls.expand(len(x), 1, -1)], dim=1)
        for i, attn in enumerate(self.attns):
            y = self.norms[2 * i](x)
            x = x + attn(y, y, y)[0]
            a, b = self.ups[i](self.norms[2 * i + 1](x)).chunk(2, dim=-1)
            x = x + self.downs[i](a * F.relu(b))
        return self.head(x[:, -1])


def ft_transformer() -> nn.Module:
    return _FTTransformer()


class _TabNet(nn.Module):
    """Steps that choose columns by a gate, share a layer, and add up what they decide."""

    def __init__(self, n_d: int = 64, n_a: int = 64, steps: int = 3) -> None:
        super().__init__()
        self.n_d, self.n_steps = n_d, steps
        self.initial_bn = nn.BatchNorm1d(32)
        self.shared = nn.Linear(32, 2 * (n_d + n_a), bias=False)
        self.specific = nn.ModuleList(nn.Linear(n_d + n_a, 2 * (n_d + n_a)) for _ in range(steps + 1))
        self.att = nn.ModuleList(nn.Sequential(nn.Linear(n_a, 32), nn.BatchNorm1d(32)) for _ in range(steps))
        self.final = nn.Linear(n_d, 3)

    def transform(self, x: Tensor, i: int) -> Tensor:
        h = F.glu(self.shared(x))
        return (h + F.glu(self.specific[i](h))) * math.sqrt(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.initial_bn(x)
        prior, a = torch.ones_like(x), self.transform(x, 0)[:, self.n_d :]
        total, out = x.new_zeros(()), None
        for i in range(self.n_steps):
            mask = torch.softmax(self.att[i](a) * prior, dim=-1)
            total, prior = total + (mask * torch.log(mask + 1e-8)).sum(1).mean(), prior * (1.3 - mask)
            h = self.transform(mask * x, i + 1)
            d, a = F.relu(h[:, : self.n_d]), h[:, self.n_d :]
            out = d if out is None else out + d
        return self.final(out), total


def tabnet() -> nn.Module:
    return _TabNet()


class _TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights, transposed."""

    def __init__(self, sizes: tuple[int, ...] = (384, 256, 160, 48)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(a)) for a in sizes[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = torch.selu(layer(x))
        code = x
        for i in reversed(range(len(self.layers))):
            x = F.linear(x, self.layers[i].weight.t(), self.biases[i])
            x = torch.selu(x) if i else x
        return x, code


def tied_autoencoder() -> nn.Module:
    return _TiedAutoencoder()


class _Highway(nn.Module):
    def __init__(self, dim: int = 160, layers: int = 3) -> None:
        super().__init__()
        self.inp = nn.Linear(32, dim)
        self.h, self.t = (nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers)) for _ in range(2))
        for gate in self.t:
            nn.init.constant_(gate.bias, -1.0)
        self.out = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for h, t in zip(self.h, self.t, strict=True):
            gate = torch.sigmoid(t(x))
            x = F.relu(h(x)) * gate + x * (1 - gate)
        return self.out(x)


def highway() -> nn.Module:
    return _Highway()


class _MaskedLinear(nn.Linear):
    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class _MADE(nn.Module):
    """Masks on the weights let every output see only the inputs before it."""

    def __init__(self, n: int = 32, hidden: int = 320) -> None:
        super().__init__()
        degrees = [torch.arange(n), torch.arange(hidden) % (n - 1), torch.arange(hidden) % (n - 1)]
        masks = [(b[:, None] >= a[None]).float() for a, b in itertools.pairwise(degrees)]
        last = (torch.arange(n)[:, None] > degrees[-1][None]).float().repeat(2, 1)
        self.net = nn.Sequential(
            _MaskedLinear(masks[0]), nn.ReLU(), _MaskedLinear(masks[1]), nn.ReLU(), _MaskedLinear(last)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(x).chunk(2, dim=1)
        return mean, log_std


def made_density() -> nn.Module:
    return _MADE()


CASES: dict[str, Case] = {
    "mlp_batch_norm": Case(mlp_batch_norm, rows),
    "mlp_residual_layer_norm": Case(mlp_residual_layer_norm, rows),
    "two_tower": Case(two_tower, lambda: (torch.randint(0, 500, (4, 5)), torch.randint(0, 800, (4, 7)))),
    "dlrm": Case(dlrm, clicks),
    "deepfm": Case(deepfm, clicks),
    "wide_deep": Case(wide_deep, clicks),
    "deep_cross": Case(deep_cross, clicks),
    "neural_collaborative_filtering": Case(
        neural_collaborative_filtering, lambda: (torch.randint(0, 400, (4,)), torch.randint(0, 400, (4,)))
    ),
    "tab_transformer": Case(tab_transformer, clicks),
    "ft_transformer": Case(ft_transformer, rows),
    "tabnet": Case(tabnet, rows),
    "tied_autoencoder": Case(tied_autoencoder, lambda: torch.randn(4, 384)),
    "highway": Case(highway, rows),
    "made_density": Case(made_density, rows),
}
