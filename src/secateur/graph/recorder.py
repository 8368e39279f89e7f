"""What a recording is written into."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.graph.recorded import NOWHERE, Call, Place, Value
from secateur.graph.sizes import Expression

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent.parent) + os.sep
_library: dict[str, bool] = {}  # source file -> whether it is torch's or ours

Schema: TypeAlias = tuple[str, list[tuple[str, Any, bool]], bool]


@dataclass
class Recorder:
    """Calls, values and escapes so far, and where in the model's code the pass is."""

    calls: list[Call] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)  # ids are reused otherwise
    escapes: list[tuple[Expression, Place]] = field(default_factory=list)
    stack: list[str] = field(default_factory=lambda: [""])
    api: str = ""
    sizes: tuple[int, ...] = ()
    place: Place = NOWHERE
    schemas: dict[int, Schema] = field(default_factory=dict)

    def value(self, tensor: Tensor, weight: bool = False) -> Value:
        """The value that a tensor is."""
        known = self.values.get(id(tensor))
        if known is None:
            integral = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
            known = self.fresh(tuple(tensor.shape), weight, integral)
            self.holds(tensor, known)
        return known

    def fresh(self, shape: tuple[int, ...], weight: bool, integral: bool) -> Value:
        """A value that no tensor holds yet."""
        self.shapes.append(shape)
        return Value(len(self.shapes) - 1, shape, weight, integral)

    def holds(self, tensor: Tensor, value: Value) -> None:
        """A tensor is this value, and will not be forgotten."""
        self.values[id(tensor)] = value
        self.alive.append(tensor)

    def here(self) -> Place:
        """The innermost line that is neither torch's nor ours."""
        frame: Any = sys._getframe(2)
        while frame and _is_library(frame.f_code.co_filename):
            frame = frame.f_back
        return Place(self.stack[-1], frame.f_code.co_filename, frame.f_lineno) if frame else NOWHERE

    def escape(self, source: Expression) -> None:
        """A size became a number."""
        self.escapes.append((source, self.here()))

    def schema(self, op: Any) -> Schema:
        """Name, arguments (name, default, keyword only) and whether it is elementwise."""
        known = self.schemas.get(id(op))  # torch keeps its ops alive, and hashes them in Python
        if known is None:
            arguments = [(a.name, a.default_value, a.kwarg_only) for a in op._schema.arguments]
            known = (op._schema.name, arguments, torch.Tag.pointwise in op.tags)
            self.schemas[id(op)] = known
        return known


def _is_library(file: str) -> bool:
    known = _library.get(file)
    if known is None:
        known = _library[file] = file.startswith((_TORCH, _OURS))
    return known
