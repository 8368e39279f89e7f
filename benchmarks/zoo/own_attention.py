"""Attention in the ways that users write it: torch's layers, pictures, einops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from case import Case
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, nn


def sequence() -> Tensor:
    return torch.randn(2, 12, 96)


def sequence_first() -> Tensor:
    return torch.randn(12, 2, 96)


def tokens() -> Tensor:
    return torch.randint(0, 300, (2, 12))


def picture() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim))


class _SelfAttention(nn.Module):
    """Blocks around ``nn.MultiheadAttention``; the weights of attention come back too where they are asked for."""

    def __init__(self, dim: int = 96, need_weights: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attns = nn.ModuleList(nn.MultiheadAttention(dim, 4, dropout=0.1, **kwargs) for _ in range(2))
        self.mlps = nn.ModuleList(feed_forward(dim, 2 * dim) for _ in range(2))
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        weights = None
        for norm, attn, mlp in zip(self.norms, self.attns, self.mlps, strict=True):
            y = norm(x)
            y, weights = attn(y, y, y, need_weights=self.need_weights)
            x = x + y
            x = x + mlp(x)
        return (self.head(x), weights) if self.need_weights else self.head(x)


def mha_batch_first() -> nn.Module:
    return _SelfAttention(batch_first=True)


def mha_weights() -> nn.Module:
    return _SelfAttention(need_weights=True)


def mha_bias_kv() -> nn.Module:
    return _SelfAttention(batch_first=True, add_bias_kv=True, add_zero_attn=True)


def mha_without_bias() -> nn.Module:
    return _SelfAttention(bias=False)


class _CrossAttention(nn.Module):
    """Queries of one width see keys and values of two others, padding masked."""

    def __init__(self, dim: int = 96, kdim: int = 48, vdim: int = 64) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, 6, kdim=kdim, vdim=vdim, batch_first=True)
        self.norm, self.mlp, self.out = nn.LayerNorm(dim), feed_forward(dim, 256), nn.Linear(dim, 10)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(q, k, v, key_padding_mask=padding, average_attn_weights=False)
        y = self.norm(q + y)
        return self.out(y + self.mlp(y)), weights


def mha_cross_kdim_vdim() -> nn.Module:
    return _CrossAttention()


def crossed() -> tuple[Tensor, ...]:
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    return torch.randn(2, 5, 96), torch.randn(2, 9, 48), torch.randn(2, 9, 64), padding


class _TextEncoder(nn.Module):
    """Embedding, sines of the place, ``nn.TransformerEncoder``, a mean over the words."""

    def __init__(
        self, dim: int = 96, norm_first: bool = False, batch_first: bool = True, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.d_model, self.batch_first = dim, batch_first
        self.embed = nn.Embedding(300, dim)
        place = torch.arange(64)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        pe = torch.zeros(64, dim)
        pe[:, 0::2], pe[:, 1::2] = place.sin(), place.cos()
        self.register_buffer("pe", pe)
        layer = nn.TransformerEncoderLayer(dim, 4, 192, 0.1, activation, norm_first=norm_first, batch_first=batch_first)
        norm = nn.LayerNorm(dim) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
        self.fc = nn.Linear(dim, 10)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) * math.sqrt(self.d_model) + self.pe[: text.size(1)]
        if self.batch_first:
            return self.fc(self.encoder(x).mean(1))
        return self.fc(self.encoder(x.transpose(0, 1)).mean(0))


def transformer_encoder() -> nn.Module:
    return _TextEncoder()


def transformer_encoder_norm_first() -> nn.Module:
    return _TextEncoder(norm_first=True, batch_first=False, activation="gelu")


class _Decoder(nn.Module):
    def __init__(self, dim: int = 96) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(300, dim), nn.Parameter(0.1 * torch.randn(1, 64, dim))
        layer = nn.TransformerDecoderLayer(dim, 4, 192, batch_first=True)
        self.decoder, self.out = nn.TransformerDecoder(layer, 4), nn.Linear(dim, 300)

    def forward(self, text: Tensor, memory: Tensor) -> Tensor:
        n = text.size(1)
        mask = torch.triu(torch.full((n, n), float("-inf"), dtype=memory.dtype), diagonal=1)
        return self.out(self.decoder(self.embed(text) + self.pos[:, :n], memory, tgt_mask=mask))


def transformer_decoder() -> nn.Module:
    return _Decoder()


class _Translator(nn.Module):
    def __init__(self, dim: int = 96) -> None:
        super().__init__()
        self.src_embed, self.tgt_embed = nn.Embedding(300, dim), nn.Embedding(300, dim)
        self.transformer = nn.Transformer(dim, 4, 2, 2, 192, batch_first=True, norm_first=True)
        self.generator = nn.Linear(dim, 300)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        n = tgt.size(1)
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return self.generator(self.transformer(self.src_embed(src), self.tgt_embed(tgt), tgt_mask=mask))


def transformer_translation() -> nn.Module:
    return _Translator()


class _ViTBlock(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, mlp), nn.Linear(mlp, dim)
        self.ls1, self.ls2 = nn.Parameter(0.5 * torch.ones(dim)), nn.Parameter(0.5 * torch.ones(dim))

    def attn(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class _ViT(nn.Module):
    def __init__(self, dim: int = 128, depth: int = 4, heads: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, 17, dim))
        self.blocks = nn.ModuleList(_ViTBlock(dim, heads, 2 * dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit() -> nn.Module:
    return _ViT()


class _EinopsAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in self.to_qkv(self.norm(x)).chunk(3, -1))
        attn = (torch.matmul(q, k.transpose(-1, -2)) * self.scale).softmax(dim=-1)
        return self.to_out(rearrange(torch.matmul(attn, v), "b h n d -> b n (h d)"))


class _EinopsViT(nn.Module):
    """Patches, heads and the class token all by ``einops``."""

    def __init__(self, dim: int = 96, depth: int = 3, patch: int = 8) -> None:
        super().__init__()
        cut = Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch)
        size = 3 * patch * patch
        self.to_patch = nn.Sequential(cut, nn.LayerNorm(size), nn.Linear(size, dim), nn.LayerNorm(dim))
        self.pos_embedding = nn.Parameter(0.1 * torch.randn(1, 17, dim))
        self.cls_token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([_EinopsAttention(dim, 4, 32), feed_forward(dim, 192)]) for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch(img)
        x = torch.cat((repeat(self.cls_token, "1 1 d -> b 1 d", b=x.shape[0]), x), dim=1) + self.pos_embedding
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.head(x[:, 0])


def vit_einops() -> nn.Module:
    return _EinopsViT()


class _WindowBlock(nn.Module):
    """Attention inside windows, which are shifted by ``roll``, with a table of relative places."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, 2 * dim)
        self.table = nn.Parameter(0.1 * torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        away = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("index", away[0] * (2 * window - 1) + away[1])

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        m, n = self.window, self.window**2
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(b, h // m, m, w // m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n, c)
        q, k, v = self.qkv(y).reshape(-1, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        attn = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads) + bias.unsqueeze(0)).softmax(-1)
        y = self.proj((attn @ v).transpose(1, 2).reshape(-1, n, c))
        y = y.view(b, h // m, w // m, m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp(x)


class _PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class _Swin(nn.Module):
    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.stage1 = nn.Sequential(_WindowBlock(dim, 2, 4, 0), _WindowBlock(dim, 2, 4, 2), _PatchMerging(dim))
        self.stage2 = nn.Sequential(_WindowBlock(2 * dim, 4, 4, 0), _WindowBlock(2 * dim, 4, 4, 0))
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.embed(x).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).mean((1, 2)))


def swin() -> nn.Module:
    return _Swin()


CASES: dict[str, Case] = {
    "mha_batch_first": Case(mha_batch_first, sequence),
    "mha_weights": Case(mha_weights, sequence_first),
    "mha_bias_kv": Case(mha_bias_kv, sequence),
    "mha_without_bias": Case(mha_without_bias, sequence_first),
    "mha_cross_kdim_vdim": Case(mha_cross_kdim_vdim, crossed),
    "transformer_encoder": Case(transformer_encoder, tokens),
    "transformer_encoder_norm_first": Case(transformer_encoder_norm_first, tokens),
    "transformer_decoder": Case(transformer_decoder, lambda: (tokens(), torch.randn(2, 7, 96))),
    "transformer_translation": Case(transformer_translation, lambda: (tokens(), tokens())),
    "vit": Case(vit, picture),
    "vit_einops": Case(vit_einops, picture),
    "swin": Case(swin, picture),
}
