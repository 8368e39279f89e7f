"""The papers' loops, written plainly: what the library is compared with, on a Llama of transformers in memory.

One block after another: the inputs of its linear layers are gathered over all calibration windows, its weights are
pruned, and what it then puts out is what the next block gets (algorithm sheets of arXiv:2301.00774 and 2306.11695).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

Loop = Callable[[Tensor, Tensor, str], Tensor]
"""``(weight (out, in), second moment of the inputs (in, in), pattern) -> pruned weight``."""


def magnitude(weight: Tensor, second: Tensor, pattern: str) -> Tensor:
    """The smallest go: of the layer, or of each group."""
    return weight * _keep(weight.abs(), pattern, by_row=False)


def wanda(weight: Tensor, second: Tensor, pattern: str) -> Tensor:
    """``|W| ‖x‖``, the smallest of each output (arXiv:2306.11695)."""
    return weight * _keep(weight.abs() * second.diagonal().sqrt(), pattern, by_row=True)


def sparsegpt(weight: Tensor, second: Tensor, pattern: str, block: int = 128, damping: float = 0.01) -> Tensor:
    """Column after column, what is lost made up for in those to the right (arXiv:2301.00774)."""
    w, h = weight.clone(), second.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * h.diagonal().mean() * torch.eye(len(h))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    nm = _groups(pattern)
    for start in range(0, len(h), block):
        end = min(start + block, len(h))
        part, upper = w[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(part)
        kept = torch.ones_like(part, dtype=torch.bool)
        if nm is None:
            kept = _keep((part / upper.diagonal()).square(), pattern, by_row=False)
        for i in range(end - start):
            if nm is not None and i % nm[1] == 0:
                group = slice(i, i + nm[1])
                kept[:, group] = _keep((part[:, group] / upper.diagonal()[group]).square(), pattern, by_row=True)
            errors[:, i] = part[:, i] * ~kept[:, i] / upper[i, i]
            part[:, i:] -= errors[:, i, None] * upper[i, i:]
        w[:, start:end] = part * kept
        w[:, end:] -= errors @ factor[start:end, end:]
    return w


LOOPS: Mapping[str, Loop] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}


@torch.no_grad()
def prune_(model: Any, windows: Tensor, loop: Loop, pattern: str) -> Any:
    """Prune the linear layers of every block in place; windows of token ids, shape (windows, length)."""
    inner = model.model
    hidden = [inner.embed_tokens(w[None]) for w in windows]
    rope = inner.rotary_emb(hidden[0], torch.arange(windows.shape[1])[None])
    for number, block in enumerate(inner.layers):
        moments: dict[nn.Module, Tensor] = {}
        linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
        hooks = [m.register_forward_pre_hook(_gatherer(moments)) for m in linears]
        for h in hidden:
            block(h, position_embeddings=rope)
        for hook in hooks:
            hook.remove()
        for m in linears:
            m.weight.copy_(loop(m.weight, moments[m] / windows.numel(), pattern))
        hidden = [block(h, position_embeddings=rope) for h in hidden]
        print(f"plain {loop.__name__} {pattern}: block {number + 1} of {len(inner.layers)}", flush=True)
    return model


def _gatherer(moments: dict[nn.Module, Tensor]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def gather(module: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0].flatten(0, -2)
        moments[module] = x.T @ x + moments.get(module, 0)

    return gather


def _groups(pattern: str) -> tuple[int, int] | None:
    if pattern.endswith("%"):
        return None
    kept, group = map(int, pattern.split(":"))
    return kept, group


def _keep(score: Tensor, pattern: str, by_row: bool) -> Tensor:
    """Which stay: all but the lowest of each row, or of the whole, or the highest n of every m in a row."""
    nm = _groups(pattern)
    if nm is not None:
        rows, drop = score.reshape(-1, nm[1]), nm[1] - nm[0]
    else:
        rows = score if by_row else score.reshape(1, -1)
        drop = int(rows.shape[1] * float(pattern[:-1]) / 100)
    kept = torch.ones_like(rows, dtype=torch.bool)
    return kept.scatter_(1, rows.argsort(dim=1, stable=True)[:, :drop], False).reshape(score.shape)


def main(folder: str, tokens: str, method: str, pattern: str, out: str) -> None:
    """Prune a folder: ``python _plain.py MODEL TOKENS METHOD PATTERN OUT``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    prune_(model, load_file(tokens)["tokens"], LOOPS[method], pattern).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
