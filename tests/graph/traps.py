"""Code in which a careless cut would change the function or crash: each net must hold the oracle or stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nets import Calls, Case, img, seq, vec
from torch import Tensor, nn


def net(forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> Callable[[], nn.Module]:
    """6 -> 8 by ``a`` and by ``b``, 8 -> 8 by ``c``, 8 -> 3 by ``out``."""

    def make() -> nn.Module:
        made = Calls(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 8), c=nn.Linear(8, 8), out=nn.Linear(8, 3))
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                made.register_buffer(name, value.clone())
            else:
                setattr(made, name, value)
        return made

    return make


def images(forward: Callable[[Any, Tensor], Tensor], **parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Calls(forward, **{name: part() for name, part in parts.items()})


def by_size(use: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """A net that divides by a number made of a tensor's size."""
    return lambda: Calls(
        lambda s, x: s.out((h := s.a(x)) * 0 + s.b(h) / use(h)),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 8),
        out=nn.Linear(8, 3),
    )


def written_view(s: Any, x: Tensor) -> Tensor:
    h = torch.zeros_like(s.a(x))
    h[:].copy_(s.b(x))
    return s.out(F.relu_(h + s.a(x)))


def written_run(s: Any, x: Tensor) -> Tensor:
    z = torch.zeros(x.shape[0], 16, dtype=x.dtype)
    z[:, 4:12] = s.a(x)
    return s.out(z[:, 4:12])


def written_transpose(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h.t().add_(s.b(x).t())
    return s.out(torch.tanh(h))


def branching(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(h if h.sum() > 0 else -h)


def hidden_branch(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(h if x.sum() > 0 else s.b(h).flip(-1))


def two(**more: int) -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 8), "b": nn.Linear(more.get("b", 6), 8), "out": nn.Linear(8, 3)}


def scattered(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    index = torch.arange(8, device=x.device).flip(0).expand(x.shape[0], 8)
    return s.out(torch.zeros_like(h).scatter(1, index, s.b(x)))


def sampled(s: Any, x: Tensor) -> Tensor:
    grid = torch.tanh(s.where(x)).permute(0, 2, 3, 1)
    return s.head(F.grid_sample(s.stem(x), grid, align_corners=False))


def channel_attention(s: Any, x: Tensor) -> Tensor:
    h = s.stem(x)
    weights = s.along(h.mean((2, 3))[:, None, :]).sigmoid()
    return s.head(h * weights.transpose(1, 2)[..., None])


def over_channels(s: Any, x: Tensor) -> Tensor:
    h = s.stem(x).flatten(2).transpose(1, 2)
    return s.head(s.along(h.mean(1, keepdim=True)).squeeze(1))


def tokens_as_channels(s: Any, x: Tensor) -> Tensor:
    return s.out(F.gelu(s.a(x)) * (s.along(s.b(x)) + 1))


def padded_tap(s: Any, x: Tensor) -> Tensor:
    return s.out(s.along(s.a(x)))


def picked_run(s: Any, x: Tensor) -> Tensor:
    return s.out(F.relu(s.a(x))[: (x > -9).sum() - 20])


def picked_and_seen(s: Any, x: Tensor) -> Tensor:
    h, k = F.relu(s.a(x)), (x > 9).sum()
    return s.out(h + s.b(x) * x[k, :1] if x[k, 0] > -9 else h)


def in_turn(s: Any, x: Tensor) -> Tensor:
    h = s.a(x).view(x.shape[0], s.heads, -1)
    return s.out(torch.cat([torch.tanh(h[:, i]) * (i + 1) for i in range(s.heads)], -1))


def runs(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(torch.cat([h[:, i * s.width : (i + 1) * s.width].softmax(-1) for i in range(8 // s.width)], -1))


def two_bounds(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)[:, : s.time, : s.kept]
    return s.out(F.pad(h, (0, 4))[..., :8] + s.b(x)[:, : s.time])


def whole_slice(s: Any, x: Tensor) -> Tensor:
    h = s.a(x).view(x.shape[0], s.heads, 4)
    return s.out(h[:, : s.heads].flatten(1))


def complex_pairs(s: Any, x: Tensor) -> Tensor:
    h = torch.view_as_complex(s.a(x).view(*x.shape[:-1], -1, 2).contiguous())
    return s.out(torch.view_as_real(h * s.turn).flatten(-2))


def checked(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    if h.shape[-1] != s.width:
        raise ValueError(f"expected {s.width} features, got {h.shape[-1]}")
    return s.out(F.relu(h))


def by_width(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(F.relu(h) if h.shape[-1] > 6 else torch.tanh(h))


class Config:
    """Where many models keep their sizes."""

    def __init__(self, **sizes: int) -> None:
        vars(self).update(sizes)


def read_list(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(F.relu(h) if x.detach().flatten().tolist()[0] > 100 else h.flip(-1))


def read_array(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.out(F.relu(h) if x.detach().numpy().sum() > 1000 else h.flip(-1))


EIGHT = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
CASES: dict[str, Case] = {
    "size_as_root": Case(by_size(lambda h: math.sqrt(h.size(-1))), vec),
    "size_as_power": Case(by_size(lambda h: h.shape[-1] ** -0.5), vec),
    "size_as_divisor": Case(by_size(lambda h: h.shape[-1]), vec),
    "numel": Case(by_size(lambda h: h.numel()), vec),
    "written_view": Case(lambda: Calls(written_view, **two()), vec),
    "written_run": Case(lambda: Calls(written_run, **two()), vec),
    "written_transpose": Case(lambda: Calls(written_transpose, **two()), vec),
    "branching": Case(lambda: Calls(branching, **two()), vec),
    "hidden_branch": Case(lambda: Calls(hidden_branch, **two(b=8)), vec),
    "rolled_forth": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x).roll(2, -1))) + s.b(x))), vec),
    "rolled_back": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x).roll(-2, -1))) + s.b(x))), vec),
    "triangle": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x).tril())) + s.b(x))), vec),
    "filled_in_place": Case(net(lambda s, x: s.out(s.c(s.a(x).masked_fill_(s.b(x) > 0, 0.5)))), vec),
    "scattered": Case(net(scattered), vec),
    "sampled": Case(
        images(
            sampled, stem=lambda: nn.Conv2d(3, 8, 1), where=lambda: nn.Conv2d(3, 2, 1), head=lambda: nn.Conv2d(8, 2, 1)
        ),
        img,
    ),
    "channel_attention": Case(
        images(
            channel_attention,
            stem=lambda: nn.Conv2d(3, 8, 1),
            along=lambda: nn.Conv1d(1, 1, 3, padding=1),
            head=lambda: nn.Conv2d(8, 2, 1),
        ),
        img,
    ),
    "over_channels": Case(
        images(
            over_channels,
            stem=lambda: nn.Conv2d(3, 8, 1),
            along=lambda: nn.Conv1d(1, 1, 3),
            head=lambda: nn.Linear(6, 2),
        ),
        img,
    ),
    "tokens_as_channels": Case(
        images(
            tokens_as_channels,
            a=lambda: nn.Linear(6, 8),
            b=lambda: nn.Linear(6, 8),
            along=lambda: nn.Conv1d(5, 5, 1),
            out=lambda: nn.Linear(8, 3),
        ),
        seq,
    ),
    "padded_tap": Case(
        images(
            padded_tap,
            a=lambda: nn.Linear(6, 8),
            along=lambda: nn.Conv1d(5, 5, 1, padding=1),
            out=lambda: nn.Linear(10, 3),
        ),
        seq,
    ),
    "strided_tap": Case(
        images(
            padded_tap,
            a=lambda: nn.Linear(6, 8),
            along=lambda: nn.Conv1d(5, 5, 1, stride=2),
            out=lambda: nn.Linear(4, 3),
        ),
        seq,
    ),
    "picked_run": Case(net(picked_run), vec),
    "picked_and_seen": Case(net(picked_and_seen), vec),
    "log_sigmoid": Case(net(lambda s, x: s.out(F.logsigmoid(s.c(F.logsigmoid(s.a(x)))))), vec),
    "read_as_bits": Case(
        net(
            lambda s, x: (
                s.out(s.c(F.relu(s.a(x))))
                + (s.b(x).view(torch.int64 if x.dtype == torch.float64 else torch.int32) % 2).sum(-1, keepdim=True)
            )
        ),
        vec,
    ),
    "order_of_two": Case(
        net(lambda s, x: s.out(s.c(F.relu(s.a(x))[:, s.order])[:, s.order] + s.b(x)), order=EIGHT), vec
    ),
    "order_as_number": Case(
        net(lambda s, x: s.out(s.c(F.relu(s.a(x)[:, s.order])) + s.b(x) * s.order), order=EIGHT), vec
    ),
    "ratio": Case(net(lambda s, x: s.out(s.a(x) / (1 + s.b(x).abs()))), vec),
    "exponential_weights": Case(
        net(lambda s, x: s.out(F.linear(s.a(x).sigmoid(), s.c.weight.exp(), s.c.bias) + s.b(x))), vec
    ),
    "as_other": Case(net(lambda s, x: s.out(s.a(x).view(x.shape[0], 2, 4).transpose(1, 2).reshape_as(s.b(x)))), vec),
    "in_turn": Case(net(in_turn, heads=4), vec),
    "runs": Case(net(runs, width=4), vec),
    "two_bounds": Case(net(two_bounds, time=4, kept=4), seq),
    "whole_slice": Case(net(whole_slice, heads=2), vec),
    "complex_pairs": Case(net(complex_pairs, turn=torch.polar(torch.ones(4), torch.arange(4.0))), vec),
    "checked": Case(net(checked, width=8), vec),
    "by_width": Case(net(by_width), vec),
    "config": Case(
        net(lambda s, x: s.out(F.relu(s.a(x).view(-1, s.cfg.heads, 2)).flatten(1)), cfg=Config(heads=4)), vec
    ),
    "read_list": Case(net(read_list), vec),
    "read_array": Case(net(read_array), vec),
    "float_times_size": Case(net(lambda s, x: s.out(s.a(x) * (s.c(F.relu(s.b(x))).shape[-1] * 0.5))), vec),
    "float_over_size": Case(net(lambda s, x: s.out(s.a(x) * (1.0 / s.c(F.relu(s.b(x))).shape[-1]))), vec),
    "int_of_size": Case(net(lambda s, x: s.out(s.a(x) * int(s.b(x).shape[-1]))), vec),
    "masked_rows": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x))))[x[:, 0] > 0]), vec),
    "top": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x))) * (s.b(x) >= s.b(x).topk(3, -1).values[:, -1:]))), vec),
    "cumulative": Case(net(lambda s, x: s.out(s.c(F.relu(s.a(x).cumsum(-1))) + s.b(x))), vec),
    "normalized": Case(net(lambda s, x: s.out(F.normalize(s.c(F.relu(s.a(x))), dim=-1) + s.b(x))), vec),
    "cosine": Case(net(lambda s, x: F.cosine_similarity(s.c(F.relu(s.a(x))), s.b(x), dim=-1)), vec),
    "outer": Case(net(lambda s, x: s.out((F.relu(s.a(x))[:, :, None] * s.b(x)[:, None, :]).sum(2))), vec),
    "gram": Case(net(lambda s, x: s.out(s.c(x @ s.a.weight.t()) @ (s.b.weight @ s.b.weight.t()))), vec),
    "squeezed": Case(net(lambda s, x: s.out(F.relu(s.a(x)[:, None, :]).squeeze())), vec),
    "local_response": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(3), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        img,
    ),
    "statistics_only": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8, affine=False),
            nn.Conv2d(8, 6, 1),
            nn.InstanceNorm2d(6),
            nn.Conv2d(6, 2, 1),
        ),
        img,
    ),
    "weight_norm": Case(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)), vec
    ),
    "spectral_norm": Case(
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)), vec
    ),
    "grouped_transposed": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ConvTranspose2d(8, 12, 2, groups=4),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 12, 2, groups=12),
            nn.Conv2d(12, 2, 1),
        ),
        img,
    ),
}
