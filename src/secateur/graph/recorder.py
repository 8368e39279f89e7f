"""What a recording is written into."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.graph.recorded import NOWHERE, Call, Place, Value
from secateur.graph.resize import NAMES, STATISTICS
from secateur.graph.sizes import Expression, Size

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent.parent) + os.sep
_TO_INT = Size.__int__.__code__
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
    kinds: dict[str, type] = field(default_factory=dict)  # module path -> its class
    literals: dict[int, Any] = field(default_factory=dict)  # integer tensors that the code wrote out
    silent: bool = False  # inside of a torch function that is written down whole
    counts: list[Counter[str]] = field(default_factory=lambda: [Counter()])  # by module on the stack, of `RESIZED`
    turns: Counter[str] = field(default_factory=Counter)  # of `STATISTICS`, in the whole pass
    nth: int | None = None
    turn: int | None = None
    api: str = ""
    sizes: tuple[int, ...] = ()
    place: Place = NOWHERE
    facts: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # of tensors that stay alive, for scripts.py
    schemas: dict[int, Schema] = field(default_factory=dict)
    homes: dict[int, dict[str, Any]] = field(default_factory=dict)  # globals of code that took the int of a size

    def value(self, tensor: Tensor, weight: bool = False) -> Value:
        """The value that a tensor is."""
        known = self.values.get(id(tensor))
        if known is None:
            integral = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
            known = self.fresh(tuple(tensor.shape), weight, integral)
            self.holds(tensor, known)
        return known

    def enter(self, item: Any, inputs: list[Value]) -> Any:
        """An argument with values in the place of tensors, which are gathered in ``inputs``."""
        if isinstance(item, Tensor):
            inputs.append(self.value(item))
            return inputs[-1]
        if isinstance(item, (list, tuple)):
            return [self.enter(x, inputs) for x in item]
        return item

    def write(self, op: str, bound: dict[str, Any], inputs: list[Value], out: Any, pointwise: bool) -> None:
        """Write down a call and what came out of it."""
        made = out if isinstance(out, (tuple, list)) else (out,)
        weight = bool(inputs) and all(v.weight for v in inputs)
        outs = tuple(self.value(t, weight) if isinstance(t, Tensor) else None for t in made)
        about = self.place, self.api, self.sizes, pointwise, self.nth, self.turn
        self.calls.append(Call(op, bound, tuple(inputs), outs, *about))

    def fresh(self, shape: tuple[int, ...], weight: bool, integral: bool) -> Value:
        """A value that no tensor holds yet."""
        self.shapes.append(shape)
        return Value(len(self.shapes) - 1, shape, weight, integral)

    def holds(self, tensor: Tensor, value: Value) -> None:
        """A tensor is this value, and will not be forgotten."""
        self.values[id(tensor)] = value
        self.alive.append(tensor)

    def let_go(self) -> None:
        """Forget calls and tensors: sizes in the graph hold on to this recorder, and would to themselves by it."""
        self.calls, self.values, self.alive, self.facts = [], {}, [], {}

    def here(self) -> Place:
        """The innermost line that is neither torch's nor ours."""
        frame: Any = sys._getframe(2)
        while frame and _is_library(frame.f_code.co_filename):
            frame = frame.f_back
        return Place(self.stack[-1], frame.f_code.co_filename, frame.f_lineno) if frame else NOWHERE

    def count(self, func: Any, name: str) -> tuple[int | None, int | None]:
        """The number of this call among those of its function: in the innermost module's forward, and in all."""
        nth = turn = None
        if func in NAMES and len(self.counts) > 1:  # else no module was called whose hooks could replace anything
            nth = self.counts[-1][name]
            for counter in self.counts:
                counter[name] += 1
        if name in STATISTICS:
            turn = self.turns[name]
            self.turns[name] += 1
        return nth, turn

    def escape(self, source: Expression) -> None:
        """A size became a number."""
        self.escapes.append((source, self.here()))
        frame: Any = sys._getframe(1)
        if frame.f_code is _TO_INT and not _is_library(frame.f_back.f_code.co_filename):
            self.homes[id(frame.f_back.f_globals)] = frame.f_back.f_globals

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
