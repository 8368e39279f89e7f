"""What the zoo knows of a model: how to build it, and what it is called with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SOURCES = ("torchvision", "timm", "transformers", "keras", "own")


@dataclass(frozen=True)
class Case:
    """A model of the zoo.

    Attributes:
        build: makes it, with random weights; called under a fixed seed. example: what its ``forward`` takes.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Any]


def cases(source: str) -> Mapping[str, Case]:
    """The models of one source, by name: ``CASES`` of the module ``SOURCE_models``."""
    found: Mapping[str, Case] = importlib.import_module(f"{source}_models").CASES
    return found


def made(case: Case) -> tuple[nn.Module, Any]:
    """The model in evaluation mode and its example, the same at every call and in every process."""
    torch.manual_seed(0)
    model = case.build().eval()
    torch.manual_seed(1)
    return model, case.example()
