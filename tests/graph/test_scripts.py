"""What is read from memory is what would be recorded anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attention_nets
import families
import nets
import pytest
import torch
import traps
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.graph import record, scripts
from secateur.graph.recorded import Graph, Value
from secateur.graph.sizes import expression
from secateur.types import Example

CASES = {**nets.CASES, **attention_nets.CASES, **traps.CASES, **families.CASES}


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> dict[Any, scripts.Script]:
    """A memory that holds nothing yet."""
    known: dict[Any, scripts.Script] = {}
    monkeypatch.setattr(scripts, "_known", known)
    return known


def told(item: Any) -> Any:
    """Values by what they say, not by which object says it."""
    if isinstance(item, Value):
        return item.index, item.shape, item.weight, item.integral
    if isinstance(item, (list, tuple)):
        return [told(x) for x in item]
    if isinstance(item, dict):
        return {k: told(v) for k, v in item.items()}
    return repr(item) if isinstance(item, float) or item.__class__.__name__ == "Place" else item


def everything(graph: Graph) -> Any:
    calls = [
        (c.op, told(c.args), told(c.inputs), told(c.outs), c.place.module, c.place.line, c.api, c.pointwise)
        + (tuple(map(expression, c.sizes)),)
        for c in graph.calls
    ]
    escapes = [(source, place.module, place.line) for source, place in graph.escapes]
    return calls, graph.shapes, told(graph.outputs), escapes, graph.attributes


def same_calls(model: nn.Module, example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = sc.trace(model, example), sc.trace(model, example)
    assert everything(again) == everything(first)
    monkeypatch.setattr(record, "call", lambda r, mode, func, args, kwargs: func(*args, **kwargs))
    anew = sc.trace(model, example)
    ops = [
        [(c.op, c.api, c.place.module, [v.shape for v in c.inputs], c.pointwise) for c in g.calls]
        for g in (again, anew)
    ]
    assert ops[0] == ops[1]


@pytest.mark.parametrize("name", CASES)
def test_a_second_recording_is_the_first(
    name: str, empty: dict[Any, scripts.Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    same_calls(CASES[name].make().eval(), CASES[name].example(), monkeypatch)


class Uses(nn.Module):
    """One torch function over the output of a layer."""

    def __init__(self, use: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.use = nn.Linear(4, 6), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.fc(x))


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda h: h.relu_() + 1,
    "the argument itself": lambda h: h.contiguous() * 2,
    "many results": lambda h: torch.cat(h.chunk(2, 1), 1),
    "a named tuple": lambda h: h.max(dim=0).values,
    "a slice": lambda h: h[:, 1:5],
    "nested lists": lambda h: torch.cat([h, h], 1),
    "a written slice": lambda h: [h.__setitem__((slice(None), slice(0, 2)), 0.0), h][1],
}


@pytest.mark.parametrize("name", KEPT)
def test_every_kind_of_result(name: str, empty: dict[Any, scripts.Script], monkeypatch: pytest.MonkeyPatch) -> None:
    same_calls(Uses(KEPT[name]), torch.zeros(3, 4), monkeypatch)
    assert empty


def shapes(model: nn.Module, x: Tensor) -> list[tuple[str, list[tuple[int, ...]], Any]]:
    return [(c.op, [v.shape for v in c.inputs], c.args.get("dtype")) for c in sc.trace(model, x).calls]


def test_the_key_holds_what_matters(empty: dict[Any, scripts.Script]) -> None:
    """The same function on other shapes, flags or defaults is another script."""
    one = shapes(Uses(lambda h: h.sum(1)), torch.zeros(3, 4))
    assert shapes(Uses(lambda h: h.sum(1, keepdim=True)), torch.zeros(3, 4)) != one or len(empty) > 2
    assert shapes(Uses(lambda h: h.sum(1)), torch.zeros(5, 4)) != one
    assert scripts._facts((1, True, 1.0), []) != scripts._facts((1, 1, 1), [])
    ones = Uses(lambda h: h + torch.ones(6))
    single = sc.trace(ones, torch.zeros(3, 4))
    torch.set_default_dtype(torch.float64)
    try:
        double = sc.trace(ones.double(), torch.zeros(3, 4, dtype=torch.float64))
    finally:
        torch.set_default_dtype(torch.float32)
    assert single.itemsize["fc.weight"] == 4
    assert double.itemsize["fc.weight"] == 8


def test_autocast_is_never_read_from_memory(empty: dict[Any, scripts.Script]) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = [c.op for c in sc.trace(net, torch.zeros(1, 4)).calls]
    known = len(empty)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [c.op for c in sc.trace(net, torch.zeros(1, 4)).calls]
    assert len(empty) == known
    assert len(mixed) > len(plain)
    assert [c.op for c in sc.trace(net, torch.zeros(1, 4)).calls] == plain


def test_sizes_that_a_function_turns_into_numbers_are_heard_each_time(empty: dict[Any, scripts.Script]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.wide = nn.Linear(4, 6), 6

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(self.fc(x)[:, None], scale_factor=self.wide / 3)

    net = Scaled()
    heard = [len(sc.trace(net, torch.zeros(3, 4)).escapes) for _ in range(3)]
    assert heard[0] == heard[1] == heard[2] > 0


def test_the_memory_is_bounded(empty: dict[Any, scripts.Script], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "MOST", 5)
    for n in range(1, 30):
        sc.trace(nn.Sequential(nn.Linear(4, n), nn.ReLU()), torch.zeros(1, 4))
    assert len(empty) <= 6
