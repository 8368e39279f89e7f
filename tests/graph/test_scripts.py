"""What is read from memory is what would be recorded anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import attention_nets
import families
import nets
import pytest
import torch
import traps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import secateur as sc
from secateur.graph import record, scripts
from secateur.graph.recorded import Graph, Value
from secateur.graph.recorder import Recorder
from secateur.graph.sizes import Extent, expression, leaves
from secateur.types import Example

CASES = {**nets.CASES, **attention_nets.CASES, **traps.CASES, **families.CASES}


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> dict[Any, scripts.Script]:
    """A memory that holds nothing yet."""
    known: dict[Any, scripts.Script] = {}
    monkeypatch.setattr(scripts, "_known", known)
    monkeypatch.setattr(scripts, "_outcomes", {})
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


def renumbered(graph: Graph) -> Any:
    """Calls with their values numbered as they come: which are the same, whatever else was numbered between."""
    numbers: dict[int, int] = {}
    return [
        (c.op, c.api, c.place.module, str(c.args.get("device")), tuple(map(expression, c.sizes)))
        + tuple(
            [None if v is None else (numbers.setdefault(v.index, len(numbers)), v.shape, v.weight) for v in values]
            for values in (c.inputs, c.outs)
        )
        for c in graph.calls
    ]


def anew(model: nn.Module, example: Example) -> Graph:
    """A recording that neither reads nor writes the memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "call", lambda r, mode, func, args, kwargs: scripts.made_by(r, func, args, kwargs))
        patch.setattr(record, "outcome", lambda r, mode, func, args, kwargs: func(*args, **kwargs))
        return sc.trace(model, example)


def same_calls(model: nn.Module, example: Example) -> None:
    first, again = sc.trace(model, example), sc.trace(model, example)
    assert everything(again) == everything(first)
    fresh = anew(model, example)
    assert (again.fake, len(again.escapes)) == (fresh.fake, len(fresh.escapes))
    if not any(isinstance(leaf, Extent) for c in again.calls for n in c.sizes for leaf in leaves(expression(n))):
        assert renumbered(again) == renumbered(fresh)  # extents name values by number
    assert [r[:4] + r[5:] for r in renumbered(again)] == [r[:4] + r[5:] for r in renumbered(fresh)]


@pytest.mark.parametrize("name", CASES)
def test_a_second_recording_is_the_first(name: str, empty: dict[Any, scripts.Script]) -> None:
    torch.manual_seed(0)
    same_calls(CASES[name].make().eval(), CASES[name].example())


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
def test_every_kind_of_result(name: str, empty: dict[Any, scripts.Script]) -> None:
    same_calls(Uses(KEPT[name]), torch.zeros(3, 4))
    assert empty


def shapes(model: nn.Module, x: Tensor) -> list[tuple[str, list[tuple[int, ...]], Any]]:
    return [(c.op, [v.shape for v in c.inputs], c.args.get("dtype")) for c in sc.trace(model, x).calls]


def test_the_key_holds_what_matters(empty: dict[Any, scripts.Script]) -> None:
    """The same function on other shapes, flags or defaults is another script."""
    one = shapes(Uses(lambda h: h.sum(1)), torch.zeros(3, 4))
    assert shapes(Uses(lambda h: h.sum(1, keepdim=True)), torch.zeros(3, 4)) != one or len(empty) > 2
    assert shapes(Uses(lambda h: h.sum(1)), torch.zeros(5, 4)) != one
    assert len({scripts._facts((n,), {}, Recorder()) for n in (1, True, 1.0, 0, False, 0.0, -0.0)}) == 7
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


class Two(nn.Module):
    """One function of two layers' outputs, or of one output twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.a, self.b, self.o, self.twice = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2), twice

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        return self.o(h * (h if self.twice else self.b(x)))


@pytest.mark.parametrize("first", [True, False])
def test_one_tensor_given_twice_is_not_two(first: bool, empty: dict[Any, scripts.Script]) -> None:
    x = torch.zeros(3, 4)
    for twice in (first, not first):
        same_calls(Two(twice), x)
    groups = sc.couple(sc.trace(Two(False), x))
    assert [{s.name for s in g.slices if s.role == "out"} for g in groups] == [
        {"a.weight", "a.bias", "b.weight", "b.bias"}
    ]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Upside(TorchFunctionMode):
    """Somebody else's mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.sigmoid(args[0]) if func is torch.relu else func(*args, **(kwargs or {}))


SWITCHES: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "kernels": lambda: torch.backends.mkldnn.flags(enabled=False),
    "device": lambda: torch.device("meta"),
    "mode": Upside,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
}


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("switched_first", [True, False])
def test_switches_are_heeded(name: str, switched_first: bool, empty: dict[Any, scripts.Script]) -> None:
    nets: list[tuple[nn.Module, Example]] = [
        (Attends(), torch.zeros(1, 5, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.zeros(2, 3, 8, 8)),
        (Uses(lambda h: (torch.relu(h), torch.ones(6))), torch.zeros(3, 4)),
        (nn.LSTM(4, 6), torch.zeros(5, 1, 4)),
    ]
    for switched in (switched_first, not switched_first):
        with SWITCHES[name]() if switched else contextlib.nullcontext():
            for model, x in nets:
                assert renumbered(sc.trace(model.eval(), x)) == renumbered(anew(model.eval(), x))


def test_gradients_are_never_read_from_memory(empty: dict[Any, scripts.Script]) -> None:
    def slope(h: Tensor) -> Tensor:
        with torch.enable_grad():
            wide = h.sin() * 2
            return wide * 3 if wide.requires_grad else wide

    same_calls(Uses(slope), torch.zeros(3, 4))


def test_a_mapped_function_is_not_the_plain_one(empty: dict[Any, scripts.Script]) -> None:
    row: Callable[[Tensor], Tensor] = lambda v: v.sin() * 2  # noqa: E731
    sc.trace(Uses(row), torch.zeros(4))
    same_calls(Uses(lambda h: torch.vmap(row)(h)), torch.zeros(3, 4))


def test_what_may_have_a_state_is_not_remembered(empty: dict[Any, scripts.Script]) -> None:
    class Wide(NamedTuple):
        rows: int
        columns: int

    for odd in (Wide(1, 2), lambda a, b: a - b, nn.Linear, torch.tensor(1).to_sparse()):
        with pytest.raises(scripts._Unsure):
            scripts._facts((odd,), {}, Recorder())


def test_custom_ops_are_not_remembered(empty: dict[Any, scripts.Script]) -> None:
    library = torch.library.Library("secateur_scripts", "DEF")
    library.define("turn(Tensor x) -> Tensor")
    way = ["cos"]
    library.impl("turn", lambda x: getattr(torch, way[0])(x), "CompositeImplicitAutograd")
    net = Uses(lambda h: torch.ops.secateur_scripts.turn(h))
    seen = []
    for way[0] in ("cos", "sin"):
        seen.append([c.op for c in sc.trace(net, torch.zeros(3, 4)).calls][-1])
    assert seen == ["aten::cos", "aten::sin"]
