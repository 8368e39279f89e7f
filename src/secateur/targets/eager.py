"""PyTorch itself, eager: on the CPU or on the CUDA device that holds the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import as_call
from secateur.errors import TargetError
from secateur.export.prepare import Array, array, batch_of, first_line, moved, output_tensors, snapshot
from secateur.types import Artefact, Example, Target


def with_threads(target: Target, threads: int) -> Target:
    """The target with another number of intra-op threads.

    Raises:
        TargetError: ``threads`` is not a positive whole number.

    Example:
        >>> with_threads(eager, 2).threads, eager.threads
        (2, 1)
    """
    if not isinstance(threads, int) or threads < 1:
        raise TargetError(f"{target.name}: threads must be a whole number of at least 1, got {threads!r}")
    return dataclasses.replace(target, threads=threads)


def build(model: nn.Module, example: Example, threads: int) -> Artefact:
    """Make a model ready to run eagerly: evaluation mode, inference mode, so many threads.

    It runs a copy that shares the weights' memory, so the model keeps its training flags. On CUDA, where the
    first parameter decides the device, a run ends when the device has finished and leaves its outputs there.

    Raises:
        TargetError: the model does not run on the example.

    Example:
        >>> build(nn.Linear(3, 2), torch.ones(4, 3), 1).batch
        4
    """
    twin = snapshot(model)
    return ready(twin, twin, example, threads, "eager")


def ready(function: Callable[..., Any], model: nn.Module, example: Example, threads: int, target: str) -> Artefact:
    """What runs a function of torch, where ``model`` holds its weights.

    Raises:
        TargetError: it does not run on the example.
    """
    device = _device(model)
    args, kwargs = as_call(moved(example, device))

    def run() -> list[Any]:
        with _threads(threads), torch.inference_mode():
            outputs = output_tensors(function(*args, **kwargs))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                return outputs
            return [array(t) for t in outputs]

    def call(other: Example) -> list[Array]:
        positional, keyword = as_call(moved(other, device))
        try:
            with _threads(threads), torch.inference_mode():
                return [array(t) for t in output_tensors(function(*positional, **keyword))]
        except Exception as e:
            name = type(model).__qualname__
            raise TargetError(f"{target}: {name} does not run on the example given: {first_line(e)}") from e

    call(example)
    peak = (lambda: _cuda_peak(model, run, device)) if device.type == "cuda" else None
    return Artefact(run, call, target=target, threads=threads, batch=batch_of(example), peak=peak)


eager = Target("eager", build)


def _device(model: nn.Module) -> torch.device:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cuda_peak(model: nn.Module, run: Any, device: torch.device) -> int:
    """Bytes of the model and of what one run adds at its highest, whatever else lies on the device."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    own = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    return int(torch.cuda.max_memory_allocated(device) - before + sum(own.values()))


if __name__ == "__main__":
    made = build(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)), torch.randn(16, 64), 1)
    print(f"{made.target}, {made.threads} thread, batch {made.batch}: outputs of shape {made.run()[0].shape}")
