"""Language models as their users write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from own_attention import feed_forward, sequence, tokens
from torch import Tensor, nn


class _CausalSelfAttention(nn.Module):
    """nanoGPT's: one product, cut by the stored width."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd, self.dropout = n_head, n_embd, 0.1

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class _MinGPTAttention(nn.Module):
    """minGPT's: three layers, a mask kept as a buffer, attention spelled out."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(n_embd, n_embd) for _ in range(3))
        self.proj = nn.Linear(n_embd, n_embd)
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))
        self.n_head = n_head

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        return self.proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))


class _GPTBlock(nn.Module):
    def __init__(self, attn: nn.Module, dim: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.mlp = nn.LayerNorm(dim), attn, feed_forward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(x)


class _GPT(nn.Module):
    def __init__(self, attention: type[nn.Module], dim: int = 96, layers: int = 3, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(300, dim), nn.Embedding(64, dim), nn.Dropout(0.1)
        self.h = nn.ModuleList(_GPTBlock(attention(dim, 4), dim) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, 300, bias=False)
        if tied:
            self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(pos))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def nanogpt() -> nn.Module:
    return _GPT(_CausalSelfAttention)


def mingpt() -> nn.Module:
    return _GPT(_MinGPTAttention, tied=False)


class _RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate_half(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


class _LlamaBlock(nn.Module):
    """Fewer heads of keys and values than of queries, places by rotation, a gated feed-forward."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.n_rep = n_heads, n_kv_heads, head_dim, n_heads // n_kv_heads
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=False)
        self.wk, self.wv = (nn.Linear(dim, n_kv_heads * head_dim, bias=False) for _ in range(2))
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=False)
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.attention_norm, self.ffn_norm = _RMSNorm(dim), _RMSNorm(dim)

    def repeat_kv(self, x: Tensor) -> Tensor:
        b, n, heads, d = x.shape
        return x[:, :, :, None, :].expand(b, n, heads, self.n_rep, d).reshape(b, n, heads * self.n_rep, d)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.n_heads, self.head_dim)
        k = self.wk(x).view(b, n, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(b, n, self.n_kv_heads, self.head_dim)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        q, k, v = (t.transpose(1, 2) for t in (q, self.repeat_kv(k), self.repeat_kv(v)))
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class _Llama(nn.Module):
    def __init__(self, dim: int = 96, layers: int = 3, head_dim: int = 16) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(300, dim)
        self.layers = nn.ModuleList(_LlamaBlock(dim, 6, 2, head_dim, 256) for _ in range(layers))
        self.norm, self.output = _RMSNorm(dim), nn.Linear(dim, 300, bias=False)
        inv_freq = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(64).float(), inv_freq).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tok_embeddings(text)
        n = text.shape[1]
        cos, sin = self.cos[:n].unsqueeze(1).to(x.dtype), self.sin[:n].unsqueeze(1).to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


def llama_gqa() -> nn.Module:
    return _Llama()


class _ComplexRotary(nn.Module):
    """Rotation as a product of complex numbers, with one head of keys and values for all."""

    def __init__(self, dim: int = 96, heads: int = 4, head_dim: int = 24) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.kv = nn.Linear(dim, heads * head_dim), nn.Linear(dim, 2 * head_dim)
        self.o, self.mlp, self.norm = nn.Linear(heads * head_dim, dim), feed_forward(dim, 384), nn.LayerNorm(dim)
        self.register_buffer("freqs", 1.0 / 10000 ** (torch.arange(0, head_dim, 2) / head_dim))

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), self.freqs.to(x.dtype))
        turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        k, v = self.kv(y).split(self.head_dim, dim=-1)
        q = self.rotate(self.q(y).view(b, n, self.heads, self.head_dim)).transpose(1, 2)
        k, v = self.rotate(k.unsqueeze(2)).transpose(1, 2), v.unsqueeze(1)
        attn = (q @ k.transpose(-1, -2) / self.head_dim**0.5).softmax(-1)
        x = x + self.o((attn @ v).transpose(1, 2).reshape(b, n, -1))
        return x + self.mlp(x)


def multi_query_complex_rotary() -> nn.Module:
    return _ComplexRotary()


CASES: dict[str, Case] = {
    "nanogpt": Case(nanogpt, tokens),
    "mingpt": Case(mingpt, tokens),
    "llama_gqa": Case(llama_gqa, tokens),
    "multi_query_complex_rotary": Case(multi_query_complex_rotary, sequence),
}
