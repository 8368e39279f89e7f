"""What a model passes to each of its blocks, and the hidden states at the first: one run with the blocks passed by."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from secateur.calling import tensors_of
from secateur.errors import DataError, TraceError, brief
from secateur.graph.dropping import with_first
from secateur.llm.memory import Fed
from secateur.llm.source import Source, put_
from secateur.llm.tensor_files import raw
from secateur.score.capture import Contraction, Watch


class _Hole:
    """Where the hidden states go."""


HOLE = _Hole()


@dataclass(frozen=True, eq=False)
class Call:
    """How the model calls a block on a batch: everything but the hidden states, whose place is a hole."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Any:
        """What the block makes of hidden states."""
        args, kwargs = self._filled(hidden)
        return block(*args, **kwargs)

    def named(self, block: nn.Module, hidden: Tensor) -> dict[str, Any]:
        """What it passes to the block, by name."""
        args, kwargs = self._filled(hidden.clone())
        signature = inspect.signature(block.forward)
        named = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named

    def _filled(self, hidden: Tensor) -> tuple[list[Any], dict[str, Any]]:
        def fill(value: Any) -> Any:
            return hidden if value is HOLE else value

        return [fill(a) for a in self.args], {k: fill(v) for k, v in self.kwargs.items()}


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block gives: the first tensor."""
    return tensors_of(output)[0]


class _Stop(BaseException):
    """Behind the last block there is nothing to see."""


class Recorder:
    """Runs the model outside of its blocks.

    Args:
        source: the weights. skeleton: the module on the meta device; what a pass needs is filled in for it, and the
            rest never. paths: of the blocks. dtype, device: to compute in.

    Memory: what lies before the blocks, of an embedding only the rows that a batch uses; and one block, once.
    """

    def __init__(
        self, source: Source, skeleton: nn.Module, paths: Sequence[str], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.source, self.skeleton, self.paths = source, skeleton, paths
        self.dtype, self.device = dtype, device
        self.pool: dict[str, Tensor] = {}
        self.fed = Fed([], [])
        self.like: Any = None  # what a block gives, apart from its hidden states

    def batch(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """The hidden states before the first block, and the calls of all blocks.

        Raises:
            TraceError: the model does something to the hidden states between two blocks.
            DataError: it refuses the batch.
        """
        calls: list[Call] = []
        found: list[Tensor] = []
        blocks = [self.skeleton.get_submodule(p) for p in self.paths]

        def forward(number: int) -> Callable[..., Any]:
            def passed(*args: Any, **kwargs: Any) -> Any:
                hidden = self._enter(number, found, len(calls), args, kwargs)
                calls.append(self._call(args, kwargs, hidden))
                if self.like is None:
                    self.like = self._try(blocks[number], calls[-1], hidden)
                if number == len(blocks) - 1:
                    raise _Stop
                return with_first(self.like, hidden)

            return passed

        for number, block in enumerate(blocks):
            block.forward = forward(number)
        try:
            with torch.no_grad(), self._filled(), _Rows(self):
                run_model(self.skeleton, ids.to(self.device))
            last = self.paths[len(calls)] if len(calls) < len(self.paths) else self.paths[-1]
            raise TraceError(f"{last} is not called on a batch of shape {tuple(ids.shape)}")
        except _Stop:
            return found[0].to(self.dtype), calls
        except (TypeError, RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise DataError(
                f"{type(self.skeleton).__name__} refuses tokens of shape {tuple(ids.shape)}: {brief(error)}"
            ) from error
        finally:
            for block in blocks:
                del block.forward

    def _enter(self, number: int, found: list[Tensor], done: int, args: Any, kwargs: Any) -> Tensor:
        hidden = next((t for t in tensors_of((args, kwargs)) if t.is_floating_point()), None)
        if hidden is None or number != done:
            raise TraceError(
                f"{self.paths[number]} is not called next after {self.paths[done - 1]}, with hidden states"
            )
        if number == 0:
            found.append(hidden.clone())
            found.append(hidden)
        elif hidden is not found[1]:
            raise TraceError(
                f"{self.paths[number]} does not get what {self.paths[number - 1]} gives: the model changes the hidden "
                "states between its blocks, so that they cannot be run one at a time"
            )
        return hidden

    def _call(self, args: Any, kwargs: Any, hidden: Tensor) -> Call:
        kept: tuple[Any, dict[str, Any]] = tree_map(lambda v: HOLE if v is hidden else self._shared(v), (args, kwargs))
        return Call(*kept)

    def _shared(self, value: Any) -> Any:
        """Equal tensors of all blocks and batches are one."""
        if not isinstance(value, Tensor):
            return value
        bytes_ = hashlib.sha256(raw(value.cpu().contiguous())).hexdigest()
        return self.pool.setdefault(f"{value.dtype}{tuple(value.shape)}{bytes_}", value.clone())

    def _try(self, block: nn.Module, call: Call, hidden: Tensor) -> Any:
        """Run the first block as it is, to see what it gives beside the hidden states."""
        forward = block.__dict__.pop("forward")
        try:
            self.source.fill_(block, self.paths[0], self.dtype, self.device)
            found: dict[str, Tensor] = {}
            with Watch(block, lambda c: self._fed(c, found), stacked=True):
                out = call(block, hidden.to(self.dtype, copy=True))
        finally:
            block.forward = forward
            to_meta_(block)
        made = tensors_of(out)
        if not made or made[0].shape != hidden.shape:
            raise TraceError(
                f"{self.paths[0]} makes {tuple(made[0].shape) if made else 'nothing'} of hidden states of shape "
                f"{tuple(hidden.shape)}; expected the same shape"
            )
        return with_first(out, made[0].new_empty(0))

    def _fed(self, c: Contraction, found: dict[str, Tensor]) -> None:
        """Note the sizes of a matrix and of an input that it may share."""
        self.fed.matrices.append((c.y.shape[-1], c.x.shape[-1]))
        if not any(x is c.x for x in found.values()):
            self.fed.inputs.append((c.x.shape[-1], c.x.numel() // c.x.shape[-1]))
        found[c.weight] = c.x

    @contextmanager
    def _filled(self) -> Iterator[None]:
        """Modules outside of the blocks get their own parameters when they are called, and lose them at the end."""
        inside = {m for p in self.paths for m in self.skeleton.get_submodule(p).modules()}
        handles, filled = [], []

        def fill(module: nn.Module, args: Any) -> None:
            filled.append(module)
            for name, p in module._parameters.items():
                if p is not None and p.device.type == "meta" and p not in self.lazy:
                    full = f"{where[module]}.{name}".strip(".")
                    put_(module, name, self.source.tensor(full).to(self.device, self.dtype, copy=True))

        where = {m: path for path, m in self.skeleton.named_modules() if m not in inside}
        self.lazy: dict[Tensor, str] = {}
        for module, path in where.items():
            if isinstance(module, nn.Embedding):
                self.lazy[module.weight] = f"{path}.weight".strip(".")
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)
            if any(p is not None for p in module._parameters.values()):
                handles.append(module.register_forward_pre_hook(fill))
        shared = {m: dict(m._parameters) for m in where}
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in filled:
                module._parameters.update(shared[module])


class _Rows(TorchFunctionMode):
    """Looks up in an embedding that is not there: the rows that are asked for are read."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the call on."""
        kwargs = kwargs or {}
        if func is F.embedding and len(args) > 1 and args[1] in self.recorder.lazy:
            ids, weight = args[:2]
            used, at = ids.unique(return_inverse=True)
            if int(used[-1]) >= len(weight) or int(used[0]) < 0:
                bad = int(used[0]) if int(used[0]) < 0 else int(used[-1])
                raise DataError(f"token {bad} is beyond the {len(weight)} rows of the embedding")
            rows = self.recorder.source.rows(self.recorder.lazy[weight], used.cpu())
            return rows.to(ids.device, self.recorder.dtype)[at]
        return func(*args, **kwargs)


def run_model(model: nn.Module, ids: Tensor) -> Any:
    """Call a language model on tokens (batch, window)."""
    return model(input_ids=ids) if getattr(model, "config", None) is not None else model(ids)


def to_meta_(module: nn.Module) -> None:
    """Let go of the values of all parameters; what shares one still shares it. Buffers stay."""
    memo: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and p.device.type != "meta":
                gone = memo.setdefault(id(p), nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False))
                part._parameters[name] = gone
