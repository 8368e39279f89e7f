"""What a model makes of hidden states behind its blocks: next-token scores, with nothing else in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.errors import TraceError
from secateur.graph.dropping import with_first
from secateur.llm.recording import run_model
from secateur.llm.shrink.hollow import hollow, prompt
from secateur.llm.source import Source, put_
from secateur.products import fast


class Tail:
    """The model without its blocks.

    Args:
        source: the weights. paths: of the blocks. dtype, device: to compute in.

    Memory: what lies outside of the blocks.
    """

    def __init__(
        self,
        source: Source,
        paths: Sequence[str],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        skeleton = source.skeleton(dtype)
        blocks = [skeleton.get_submodule(p) for p in paths]
        like = _like(skeleton, paths[0])
        inside = {id(p) for block in blocks for p in block.parameters()}
        known: dict[int, nn.Parameter] = {}
        for path, module in skeleton.named_modules():
            for name, p in list(module._parameters.items()):
                if p is not None and id(p) not in inside:
                    if id(p) not in known:
                        put_(module, name, source.tensor(f"{path}.{name}".strip(".")).to(device, dtype, copy=True))
                        known[id(p)] = module._parameters[name]
                    module._parameters[name] = known[id(p)]
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        self.model, self.given = skeleton, torch.zeros(0)
        for block in blocks:
            block.forward = self._passing(like)

    def _passing(self, like: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: with_first(like, self.given)

    def __call__(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Scores of the next token, (samples, window, vocabulary).

        Args:
            ids: (samples, window). hidden: behind the last block, (samples, window, width).
        """
        self.given = hidden
        with torch.no_grad(), fast(hidden.device):
            scores: Tensor = tensors_of(run_model(self.model, ids))[0]
        return scores


def _like(skeleton: nn.Module, path: str) -> Any:
    """What a block gives, with nothing in it."""
    seen: list[Any] = []
    model = hollow(skeleton)
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            run_model(model, prompt(2))
    finally:
        handle.remove()
    if not seen:
        raise TraceError(f"{path} is not called when {type(skeleton).__name__} runs on two tokens")
    return with_first(seen[0], torch.zeros(0))
