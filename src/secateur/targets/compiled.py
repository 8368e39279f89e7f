"""PyTorch compiled by inductor, on the CPU or on the CUDA device that holds the model."""

from __future__ import annotations

import dataclasses
import shutil
import types
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.prepare import first_line, snapshot
from secateur.targets.eager import ready
from secateur.types import Artefact, Example, Target

COMPILERS = ("g++", "clang++", "c++")


def build(model: nn.Module, example: Example, threads: int) -> Artefact:
    """Compile a model with ``torch.compile`` for the shapes of the example, by running it.

    What compilation took stands as ``load_seconds``. Another shape compiles anew, on its first call.

    Raises:
        TargetError: there is no C++ compiler, the model does not run on the example, or it cannot be compiled.
    """
    if not any(shutil.which(name) for name in COMPILERS):
        raise TargetError(
            f"compiled: torch.compile needs a C++ compiler and none of {', '.join(COMPILERS)} is on the PATH: "
            "install one (Debian: apt-get install g++), or take the target eager"
        )
    twin = snapshot(model)
    ready(twin, twin, example, threads, "compiled")  # tells a wrong example from a failed compilation
    begun = perf_counter()
    try:
        made = ready(torch.compile(_own(twin), dynamic=False), twin, example, threads, "compiled")
    except Exception as e:
        raise TargetError(
            f"compiled: {type(model).__qualname__} runs in torch and torch.compile fails on it: {first_line(e)}"
        ) from e
    return dataclasses.replace(made, load_seconds=perf_counter() - begun)


def _own(module: nn.Module) -> Callable[..., Any]:
    """A function with a code object of its own: torch stops compiling after eight models that share one."""

    def whole(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    return types.FunctionType(whole.__code__.replace(), globals(), "whole", None, whole.__closure__)


compiled = Target("compiled", build)


if __name__ == "__main__":
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    shown = build(net, torch.randn(1, 64), 1)
    print(f"compiled in {shown.load_seconds:.1f} s: outputs of shape {shown.run()[0].shape}")
