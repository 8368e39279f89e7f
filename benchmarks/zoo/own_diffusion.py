"""U-Nets, autoencoders and diffusion as their users write them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def picture() -> Tensor:
    return torch.randn(1, 3, 32, 32)


def noisy() -> tuple[Tensor, Tensor]:
    """A picture and its step of diffusion."""
    return torch.randn(2, 3, 16, 16), torch.tensor([3, 700])


class _DoubleConv(nn.Sequential):
    def __init__(self, cin: int, cout: int) -> None:
        a, b = nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        super().__init__(a, nn.BatchNorm2d(cout), nn.ReLU(True), b, nn.BatchNorm2d(cout), nn.ReLU(True))


class _UNet(nn.Module):
    def __init__(self, c: int = 24, classes: int = 4) -> None:
        super().__init__()
        widths = [c, 2 * c, 4 * c, 8 * c]
        self.inc = _DoubleConv(3, c)
        self.downs = nn.ModuleList(_DoubleConv(a, 2 * a) for a in widths[:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, a // 2, 2, 2) for a in reversed(widths[1:]))
        self.convs = nn.ModuleList(_DoubleConv(a, a // 2) for a in reversed(widths[1:]))
        self.outc = nn.Conv2d(c, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, conv in zip(self.ups, self.convs, strict=True):
            skip = skips.pop()
            x = up(x)
            dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = conv(torch.cat([skip, F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], dim=1))
        return self.outc(x)


def unet() -> nn.Module:
    return _UNet()


class _AttentionGate(nn.Module):
    def __init__(self, g: int, c: int, inter: int) -> None:
        super().__init__()
        self.wg = nn.Sequential(nn.Conv2d(g, inter, 1), nn.BatchNorm2d(inter))
        self.wx = nn.Sequential(nn.Conv2d(c, inter, 1), nn.BatchNorm2d(inter))
        self.psi = nn.Sequential(nn.Conv2d(inter, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * self.psi(F.relu(self.wg(g) + self.wx(x)))


class _AttentionUNet(nn.Module):
    """Skips weighed by gates; predictions at three depths are returned."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.e1, self.e2, self.e3 = _DoubleConv(3, c), _DoubleConv(c, 2 * c), _DoubleConv(2 * c, 4 * c)
        self.g2, self.g1 = _AttentionGate(4 * c, 2 * c, c), _AttentionGate(2 * c, c, c // 2)
        self.d2, self.d1 = _DoubleConv(6 * c, 2 * c), _DoubleConv(3 * c, c)
        self.heads = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in (c, 2 * c, 4 * c))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        e1 = self.e1(x)
        e2 = self.e2(F.max_pool2d(e1, 2))
        e3 = self.e3(F.max_pool2d(e2, 2))
        u2 = self.up(e3)
        d2 = self.d2(torch.cat((self.g2(u2, e2), u2), 1))
        u1 = self.up(d2)
        d1 = self.d1(torch.cat((self.g1(u1, e1), u1), 1))
        return [torch.sigmoid(head(d)) for head, d in zip(self.heads, (d1, d2, e3), strict=True)]


def attention_unet_deep_supervision() -> nn.Module:
    return _AttentionUNet()


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=dtype) / half)
    args = t[:, None].to(dtype) * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class _ResBlock(nn.Module):
    def __init__(self, cin: int, cout: int, temb: int, groups: int = 8, film: bool = False) -> None:
        super().__init__()
        self.film = film
        self.norm1, self.conv1 = nn.GroupNorm(groups, cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.temb_proj = nn.Linear(temb, 2 * cout if film else cout)
        self.norm2, self.conv2 = nn.GroupNorm(groups, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.nin_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        emb = self.temb_proj(F.silu(temb))[:, :, None, None]
        if self.film:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + emb)
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class _AttnBlock(nn.Module):
    """Attention over places with one head, by ``bmm``."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        b, c, height, width = q.shape
        q = q.reshape(b, c, height * width).permute(0, 2, 1)
        w = torch.bmm(q, k.reshape(b, c, height * width)) * (int(c) ** (-0.5))
        w = F.softmax(w, dim=2).permute(0, 2, 1)
        return x + self.proj_out(torch.bmm(v.reshape(b, c, height * width), w).reshape(b, c, height, width))


class _HeadsBlock(nn.Module):
    """Attention over places with several heads, queries, keys and values from one convolution."""

    def __init__(self, c: int, heads: int = 4, dim_head: int = 16) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.GroupNorm(1, c)
        self.to_qkv = nn.Conv2d(c, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        attn = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k).softmax(dim=-1)
        out = torch.einsum("bhij,bhdj->bhid", attn, v)
        return x + self.to_out(out.permute(0, 1, 3, 2).reshape(b, -1, h, w))


class _DDPM(nn.Module):
    """The denoiser: residual blocks told the time, attention at the lower size, skips joined from a stack."""

    def __init__(self, attn: type[nn.Module], film: bool, ch: int = 32) -> None:
        super().__init__()
        self.ch, temb = ch, 4 * ch
        self.temb = nn.Sequential(nn.Linear(ch, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down1, self.down2 = _ResBlock(ch, ch, temb, film=film), _ResBlock(ch, 2 * ch, temb, film=film)
        self.downsample = nn.Conv2d(ch, ch, 3, stride=2)
        self.attn = attn(2 * ch)
        self.mid = _ResBlock(2 * ch, 2 * ch, temb, film=film)
        self.up2, self.up1 = _ResBlock(4 * ch, 2 * ch, temb, film=film), _ResBlock(3 * ch, ch, temb, film=film)
        self.upsample = nn.Conv2d(2 * ch, 2 * ch, 3, padding=1)
        self.up0 = _ResBlock(2 * ch, ch, temb, film=film)
        self.norm_out, self.conv_out = nn.GroupNorm(8, ch), nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.temb(timestep_embedding(t, self.ch, x.dtype))
        hs = [self.conv_in(x)]
        hs.append(self.down1(hs[-1], temb))
        hs.append(self.attn(self.down2(self.downsample(F.pad(hs[-1], (0, 1, 0, 1))), temb)))
        h = self.mid(hs[-1], temb)
        h = self.up2(torch.cat([h, hs.pop()], dim=1), temb)
        h = self.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.up1(torch.cat([h, hs.pop()], dim=1), temb)
        h = self.up0(torch.cat([h, hs.pop()], dim=1), temb)
        return self.conv_out(F.silu(self.norm_out(h)))


def ddpm_unet() -> nn.Module:
    return _DDPM(_AttnBlock, film=False)


def ddpm_unet_film_heads() -> nn.Module:
    return _DDPM(_HeadsBlock, film=True)


class _VAE(nn.Module):
    """The mean goes on to the decoder; the log variance is returned beside the picture."""

    def __init__(self, latent: int = 64) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        made: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            made += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU()]
        self.encoder = nn.Sequential(*made)
        self.fc_mu, self.fc_var = nn.Linear(128 * 16, latent), nn.Linear(128 * 16, latent)
        self.decoder_input = nn.Linear(latent, 128 * 16)
        made = []
        for a, b in ((128, 64), (64, 32), (32, 32)):
            made += [nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1), nn.BatchNorm2d(b), nn.LeakyReLU()]
        self.decoder = nn.Sequential(*made, nn.Conv2d(32, 3, 3, padding=1), nn.Tanh())

    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.randn_like(mu) * torch.exp(0.5 * log_var) if self.training else mu

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.flatten(self.encoder(x), start_dim=1)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = self.decoder_input(self.reparameterize(mu, log_var))
        return self.decoder(z.view(-1, 128, 4, 4)), mu, log_var


def vae() -> nn.Module:
    return _VAE()


class _VQVAE(nn.Module):
    """The nearest entry of a codebook stands for each place of the map."""

    def __init__(self, hidden: int = 96, dim: int = 32, entries: int = 64) -> None:
        super().__init__()
        self.embedding_dim = dim
        self.encoder = nn.Sequential(
            *[nn.Conv2d(3, hidden // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(hidden // 2, hidden, 4, 2, 1), nn.ReLU()],
            *[nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, dim, 1)],
        )
        self.codebook = nn.Embedding(entries, dim)
        self.decoder = nn.Sequential(
            *[nn.Conv2d(dim, hidden, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1)],
            *[nn.ReLU(), nn.ConvTranspose2d(hidden // 2, 3, 4, 2, 1)],
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, self.embedding_dim)
        table = self.codebook.weight
        distances = (flat**2).sum(1, keepdim=True) + (table**2).sum(1) - 2 * flat @ table.t()
        quantized = self.codebook(distances.argmin(1)).view(z.shape)
        quantized = z + (quantized - z).detach()
        return self.decoder(quantized.permute(0, 3, 1, 2).contiguous())


def vqvae() -> nn.Module:
    return _VQVAE()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class _DiTBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def attn(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class _DiT(nn.Module):
    def __init__(self, dim: int = 96, depth: int = 3, heads: int = 4, patch: int = 2, size: int = 16) -> None:
        super().__init__()
        self.dim, self.patch_size, self.out_channels = dim, patch, 3
        self.x_embedder = nn.Conv2d(3, dim, patch, patch)
        self.t_embedder = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2, dim), requires_grad=False)
        self.blocks = nn.ModuleList(_DiTBlock(dim, heads) for _ in range(depth))
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.adaLN_final = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.linear = nn.Linear(dim, patch * patch * 3)

    def unpatchify(self, x: Tensor) -> Tensor:
        c, p = self.out_channels, self.patch_size
        h = w = int(x.shape[1] ** 0.5)
        x = torch.einsum("nhwpqc->nchpwq", x.reshape(x.shape[0], h, w, p, p, c))
        return x.reshape(x.shape[0], c, h * p, h * p)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.t_embedder(timestep_embedding(t, self.dim, x.dtype))
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.adaLN_final(c).chunk(2, dim=1)
        return self.unpatchify(self.linear(modulate(self.norm_final(x), shift, scale)))


def dit() -> nn.Module:
    return _DiT()


CASES: dict[str, Case] = {
    "unet": Case(unet, picture),
    "attention_unet_deep_supervision": Case(attention_unet_deep_supervision, picture),
    "ddpm_unet": Case(ddpm_unet, noisy),
    "ddpm_unet_film_heads": Case(ddpm_unet_film_heads, noisy),
    "vae": Case(vae, picture),
    "vqvae": Case(vqvae, picture),
    "dit": Case(dit, noisy),
}
