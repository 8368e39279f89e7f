"""Recovery of language models: they learn to say what the dense model says, on any text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from secateur.errors import ArgumentError, DataError
from secateur.graph.dropping import original
from secateur.llm.blocks import blocks_of
from secateur.llm.lora import Lora, adapted
from secateur.train.distill import distill
from secateur.train.losses import kl_logits
from secateur.train.masks import Masks
from secateur.train.recovery import History, Recovery
from secateur.types import Plan

ROWS = 256
"""Tokens whose distributions over the vocabulary are worked on together."""


def token_kl(temperature: float = 1.0, rows: int = ROWS) -> Callable[[Any, Any, Any], Tensor]:
    """Divergence of next-token distributions, ``T^2 KL(p_T(dense) || p_T(small))``, mean over tokens, in nats.

    The same as `sc.kl_logits`, a few tokens at a time: beside the two models' logits and the gradient of one it takes
    memory for ``rows`` distributions, in float32 whatever the models compute in.

    Raises:
        ValueError: the temperature is not positive.
    """
    kl_logits(temperature)  # checks it

    def loss(student: Any, teacher: Any, batch: Any) -> Tensor:
        s, t = (out.logits.flatten(0, -2) for out in (student, teacher))
        width = min(s.shape[-1], t.shape[-1])  # a head may be padded
        parts = [
            recomputed(_summed, s[i : i + rows, :width], t[i : i + rows, :width], temperature, use_reentrant=False)
            for i in range(0, len(s), rows)
        ]
        return torch.stack(parts).sum() / len(s)

    loss.__qualname__ = f"token_kl({temperature})"
    return loss


def _summed(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = (torch.log_softmax(z.float() / temperature, -1) for z in (student, teacher))
    return (t.exp() * (t - s)).sum() * temperature**2


def distill_tokens(
    windows: Tensor,
    *,
    steps: int,
    batch: int = 4,
    temperature: float = 1.0,
    lora: Lora | None = None,
    hidden: float = 0.0,
    lr: float | None = None,
    checkpointing: bool = False,
    held_out: int = 0,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Recovery:
    """Recovery of a language model by distillation: it learns the dense one's distributions of the next token.

    Zeros stay zeros: whatever matrix holds any is trained with the mask of its other entries. Works on sparse, on
    shrunk and on shallower models; the dense model's logits are computed as they are needed and kept nowhere.

    Args:
        windows: token ids, int64 (n, length); shuffled anew each epoch.
        steps: optimizer steps. batch: windows a step (``accumulate=k`` takes k times as many at the memory of these).
        temperature: of both distributions.
        lora: train low-rank updates and merge them, instead of every weight. Needs the extra ``peft``.
        hidden: weight of the mean over blocks of ``||h - h_dense||^2 / ||h_dense||^2``, 0 for none.
        lr: peak learning rate of AdamW, warmed up and then falling as a cosine; 1e-4, or 1e-3 with LoRA.
        checkpointing: keep the inputs of the blocks only, and run each again in the backward pass.
        held_out: windows, the last ones, that are not trained on: the weights that do best on them are kept.
        checkpoint: folder for the state of the run, from which the same call goes on.
        seed: of the order of windows and of LoRA's first weights.
        settings: of `sc.distill`: ``weight_decay``, ``clip``, ``accumulate``, ``ema``, ``patience``, ...

    Raises:
        ArgumentError: there is nothing to train on. TargetError: peft is missing.
        DataError: (when run) the loss is not finite, or tokens do not fit the models.

    Memory: both models; for full training also a gradient and two moments of each weight, and 5 bytes for each entry of
    a masked one; the activations of one batch (with ``checkpointing`` one block's, and the blocks' inputs); three times
    batch * length * vocabulary logits. Time of a step: about three forward passes of the small model (with
    ``checkpointing`` four) and one of the dense one.

    Example:
        >>> import transformers
        >>> config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> dense, small = (transformers.LlamaForCausalLM(config) for _ in range(2))
        >>> stage = distill_tokens(torch.randint(9, (8, 16)), steps=3)
        >>> stage.run(small, dense, None).stopped
        'all 3 steps done; no validation set, kept the last weights'
    """
    trained, judged = _split(windows, held_out)
    batches = _batches(trained, batch)
    validation = _batches(judged, batch) if held_out else None
    loss = token_kl(temperature)
    if lora is not None:  # by the name of its loss a run is told from one of other adapters
        loss.__qualname__ += f" of {lora}"
    rate = lr if lr is not None else 1e-4 if lora is None else 1e-3

    def run(small: nn.Module, dense: nn.Module, plan: Plan | None) -> History:
        pairs = _block_pairs(small, dense, plan) if hidden else {}
        stage = distill(
            batches, steps=steps, loss=loss, hidden=pairs, weight_hidden=hidden, lr=rate, seed=seed,
            validation=validation, checkpoint=checkpoint, **settings,
        )  # fmt: skip
        masks = Masks(small, zeros_of(small))
        with ExitStack() as stack:
            stack.enter_context(_no_caches(small, dense))
            if checkpointing:
                stack.enter_context(checkpointed(small, blocks_of(small)))
            if lora is not None:
                stack.enter_context(adapted(small, lora, masks.masks, seed))
            else:
                stack.callback(masks.hold())
            history = stage.run(small, dense, plan)
        masks.apply_()
        return history

    return Recovery("distillation on text" if lora is None else f"LoRA of rank {lora.rank}, distilled on text", run)


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the matrices that hold zeros, True where they do not; of shared ones once.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> _ = net.weight.data.triu_()
        >>> zeros_of(net)["weight"].tolist()
        [[True, True], [False, True]]
    """
    found = {name: p.detach() != 0 for name, p in model.named_parameters() if p.dim() > 1}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


@contextmanager
def checkpointed(model: nn.Module, blocks: tuple[str, ...]) -> Iterator[None]:
    """Blocks keep their inputs alone for the backward pass, and run again in it; in evaluation mode too.

    Time: one more forward pass. The gradients are the same.
    """
    held = [(block, vars(block).get("forward")) for block in map(model.get_submodule, blocks)]

    def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return recomputed(forward, *args, use_reentrant=False, **kwargs)

        return call

    for block, _ in held:
        block.forward = wrapped(block.forward)
    try:
        yield
    finally:
        for block, own in held:
            del block.forward
            if own is not None:
                block.forward = own


@contextmanager
def _no_caches(*models: nn.Module) -> Iterator[None]:
    """Key-value caches are of no use here, and a block that runs again would add to them twice."""
    configs = [m.config for m in models if getattr(getattr(m, "config", None), "use_cache", None) is True]
    for config in configs:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = True  # type: ignore[union-attr]


def _split(windows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    if windows.dim() != 2 or windows.is_floating_point() or windows.shape[1] < 2:
        raise ArgumentError(
            f"windows are {windows.dtype} {tuple(windows.shape)}: give token ids, int64 (n, length), 2 tokens or more"
        )
    if not 0 <= held_out < len(windows):
        raise ArgumentError(f"{held_out} of {len(windows)} windows are held out: leave some to train on")
    return windows[: len(windows) - held_out], windows[len(windows) - held_out :]


def _batches(windows: Tensor, batch: int) -> list[dict[str, Tensor]]:
    if batch < 1:
        raise ArgumentError(f"batch is {batch} windows; give at least 1")
    return [{"input_ids": part} for part in windows.split(batch)]


def _block_pairs(small: nn.Module, dense: nn.Module, plan: Plan | None) -> dict[str, str]:
    """The blocks of the small model and what they are in the dense one."""
    ours, theirs = blocks_of(small), blocks_of(dense)
    layers = plan.layers if plan is not None else ()
    pairs = {path: original(path, layers) for path in ours}
    if not set(pairs.values()) <= set(theirs) or (not layers and len(ours) != len(theirs)):
        raise DataError(
            f"the models have {len(ours)} and {len(theirs)} blocks, and which became which is not known: leave hidden "
            "states out, or give the plan that dropped blocks"
        )
    return pairs
