"""Recording: what is written down, what is left alone, and what is said when the example does not fit."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from typing import Any

import attention_nets
import families
import nets
import pytest
import torch
import traps
from nets import Calls, seq, vec
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import secateur as sc
from secateur.graph import shells
from secateur.graph.sizes import Arithmetic, Attribute, Extent, Size, evaluate, expression, leaves, plain


def test_every_call_has_its_module_and_line() -> None:
    graph = sc.trace(attention_nets.Separate(), seq())
    by_module = {}
    for call in graph.calls:
        by_module.setdefault(call.place.module, set()).add(call.op)
    assert {"aten::addmm", "aten::t", "aten::view"} <= by_module["q"]
    assert "aten::_softmax" in by_module[""]
    softmax = next(c for c in graph.calls if c.op == "aten::_softmax")
    assert softmax.place.line.startswith("graph/attention_nets.py:")
    assert not any(c.op.startswith("prim::") for c in graph.calls)


def test_sizes_are_traced_to_attributes() -> None:
    graph = sc.trace(attention_nets.Repairable(scaled=True), seq())
    views = [c for c in graph.calls if c.api == "view"]
    assert len(views) == 3
    for call in views:
        assert expression(call.sizes[2]) == Attribute("", "n_head")
        assert expression(call.sizes[3]) == Arithmetic("__floordiv__", Attribute("", "inner"), Attribute("", "n_head"))
    assert graph.attributes[Attribute("", "n_head")] == 4


def test_fake_where_possible_real_where_a_branch_asks() -> None:
    assert sc.trace(nets.Residual(), nets.img()).fake
    assert not sc.trace(traps.CASES["branching"].make(), vec()).fake


def test_recording_on_meta_needs_no_memory() -> None:
    with torch.device("meta"):
        big = nn.Sequential(nn.Linear(20_000, 50_000), nn.ReLU(), nn.Linear(50_000, 20_000))
    groups = sc.couple(sc.trace(big, torch.zeros(1, 20_000, device="meta")))
    assert {g.name: g.units for g in groups} == {"0:neuron": 50_000}
    assert groups.params(groups.all_kept()) == 2 * 20_000 * 50_000 + 70_000


class Restless(nn.Module):
    """Writes into itself whenever it runs."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__()
        self.a, self.drop, self.norm, self.out = nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.times, self.last, self.width, self.bad = 0, None, 8, bad

    def forward(self, x: Tensor) -> Tensor:
        self.times += 2
        self.calls += 1
        h = self.drop(self.norm(self.a(x)))
        self.last = h
        self.seen = h.shape[-1]
        if self.bad:
            raise RuntimeError("no such luck")
        if self.calls > 100:
            h = -h
        return self.out(h.view(-1, self.width))


@pytest.mark.parametrize("bad", [False, True])
def test_nothing_that_the_forward_stores_stays(bad: bool) -> None:
    torch.manual_seed(0)
    model = Restless(bad)
    model.norm.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    own = {n: dict(vars(m)) for n, m in model.named_modules()}
    flags = [m.training for m in model.modules()]
    example, state = vec(), torch.random.get_rng_state()
    if bad:
        with pytest.raises(sc.TraceError, match="no such luck"):
            sc.trace(model, example)
    else:
        sc.trace(model, example)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    for n, m in model.named_modules():
        assert vars(m).keys() == own[n].keys()
        assert all(type(v) is type(own[n][k]) for k, v in vars(m).items())
    assert (model.times, model.last, model.width) == (0, None, 8)
    assert type(model.width) is int
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_are_not_asked_for() -> None:
    model = nets.mlp()
    x = vec().requires_grad_()
    sc.couple(sc.trace(model, x))
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(4, 7), r"Sequential does not run on the example \(tensor shapes \[\(4, 7\)\]\)"),
        ((torch.zeros(4, 6), torch.zeros(1)), "does not run on the example"),
        ({"x": torch.zeros(4, 6)}, "Give what its forward takes"),
    ],
)
def test_an_example_that_does_not_fit(example: Any, words: str) -> None:
    with pytest.raises(sc.TraceError, match=words):
        sc.trace(nets.mlp(), example)


def test_an_example_of_no_known_kind() -> None:
    with pytest.raises(TypeError, match="example must be a tensor, a tuple of arguments or a dict"):
        sc.trace(nets.mlp(), 3)  # type: ignore[arg-type]


def test_examples_may_be_tuples_dicts_or_tensors() -> None:
    model, x, mask = attention_nets.Separate(), seq(), torch.ones(2, 5)
    names = [
        [g.name for g in sc.couple(sc.trace(model, e))] for e in ((x, mask), {"x": x, "mask": mask}, (x,), {"x": x})
    ]
    assert all(n == names[0] for n in names)


def test_outputs_in_any_container_stay() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return {"y": s.out(torch.relu(s.a(x))), "more": (s.b(x), [None])}

    groups = sc.couple(sc.trace(Calls(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 5), out=nn.Linear(8, 3)), vec()))
    assert [g.name for g in groups] == ["a:neuron"]


def test_half_precision_and_integers_can_be_recorded() -> None:
    model = nets.TiedEmbedding().to(torch.bfloat16)
    groups = sc.couple(sc.trace(model, nets.words()))
    assert groups.nbytes(groups.all_kept()) == 2 * groups.params(groups.all_kept())


def test_a_recording_can_be_repeated_and_coupled_twice() -> None:
    case = families.CASES["gpt2"]
    model = case.make()
    graphs = [sc.trace(model, case.example()) for _ in range(2)]
    assert [c.op for c in graphs[0].calls] == [c.op for c in graphs[1].calls]
    one, two = sc.couple(graphs[0]), sc.couple(graphs[0])
    assert [g.name for g in one] == [g.name for g in two]


def size(value: int, heard: list[Any]) -> Size:
    return Size(value, Attribute("m", "n"), heard.append)


def test_sizes_remember_arithmetic() -> None:
    heard: list[Any] = []
    n = size(12, heard)
    for made, value in (
        (n + 1, 13),
        (3 * n, 36),
        (n // 4, 3),
        (n - 2, 10),
        (20 - n, 8),
        (n % 5, 2),
        (-n, -12),
        (50 // n, 4),
    ):
        assert plain(made) == value
        assert isinstance(made, Size)
        assert list(leaves(expression(made))) == [Attribute("m", "n")]
        assert evaluate(expression(made), lambda leaf: 12) == value
    assert heard == []
    assert evaluate(expression(n * n // 2), lambda leaf: 6) == 18


@pytest.mark.parametrize(
    "use", [float, lambda n: n**-0.5, lambda n: n / 3, lambda n: 3 / n, lambda n: n * 0.5, lambda n: n - 0.5, int]
)
def test_sizes_that_become_numbers_are_heard(use: Any) -> None:
    heard: list[Any] = []
    assert use(size(12, heard)) == use(12)
    assert Attribute("m", "n") in heard


def test_comparisons_are_heard_with_both_sides() -> None:
    heard: list[Any] = []
    assert size(12, heard) > Size(7, Extent(3, 1), heard.append)
    assert heard[0] == Arithmetic("__gt__", Attribute("m", "n"), Extent(3, 1))
    assert size(12, heard) == 12
    assert heard[-1] == Arithmetic("__eq__", Attribute("m", "n"), 12)


def test_sizes_copy_and_pickle_as_plain_ints() -> None:
    n = size(12, [])
    assert type(copy.copy(n)) is type(copy.deepcopy([n])[0]) is int
    assert {n: "a"}[12] == "a"
    assert torch.zeros(n).shape == (12,)


def test_a_quick_fake_is_what_the_constructor_makes() -> None:
    mode = FakeTensorMode()
    elem = torch.empty_strided((2, 3), (1, 2), dtype=torch.float16, device="meta")
    quick, slow = shells.fake(mode, (elem, torch.device("cpu"))), FakeTensor(mode, elem, torch.device("cpu"))
    assert vars(quick) == vars(slow)
    assert torch._C._dispatch_keys(quick) == torch._C._dispatch_keys(slow)
    for fact in ("shape", "dtype", "device", "layout", "requires_grad"):
        assert getattr(quick, fact) == getattr(slow, fact)
    assert quick.stride() == slow.stride()


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_recording_goes_when_nobody_holds_it(name: str) -> None:
    """Without a search for cycles, which the recording puts off; and a graph holds no tensor."""
    case = families.CASES[name]
    model, example = case.make(), case.example()
    sc.couple(sc.trace(model, example))
    gc.collect()
    gc.disable()
    before = {id(t) for t in gc.get_objects() if type(t) is FakeTensor}  # exports leave theirs
    try:
        kept = sc.trace(model, example)
        assert not [t for t in gc.get_objects() if type(t) is FakeTensor and id(t) not in before]
        call = weakref.ref(sc.couple(kept).graph)
        del kept
        assert call() is None
    finally:
        gc.enable()


def test_recording_leaves_no_debt_to_the_garbage_collector() -> None:
    """Young objects are declared old, and what a caller froze stays frozen."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    gc.collect()
    before = gc.get_stats()[2]["collections"]
    for _ in range(20):
        sc.trace(net, torch.zeros(1, 4))
    assert gc.isenabled()
    assert gc.get_stats()[2]["collections"] == before
    mine: list[object] = []  # what is frozen may still die by its count: numbers of objects tell nothing
    gc.freeze()
    try:
        assert not _collectable(mine)
        sc.trace(net, torch.zeros(1, 4))
        assert not _collectable(mine)
    finally:
        gc.unfreeze()
    assert _collectable(mine)


def _collectable(kept: object) -> bool:
    """Whether the garbage collector looks at an object: not where it is frozen."""
    return any(one is kept for one in gc.get_objects())


POINTER = """
import ctypes, torch, secateur as sc
from torch import nn

class Copies(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        h = torch.relu(self.a(x)).contiguous()
        copy = torch.empty_like(h)
        ctypes.memmove(copy.data_ptr(), h.data_ptr(), h.nbytes)
        return self.out(torch.tanh(self.b(copy)))

model, x = Copies(), torch.randn(4, 6)
graph = sc.trace(model, x)
groups = sc.couple(graph)
plan = sc.random_plan(groups, 0.5, seed=0)
print(graph.fake, "b:neuron" in [g.name for g in groups], sc.verify(model, plan, sc.apply(plan, model), x).ok)
"""


def test_code_that_asks_for_an_address_is_recorded_on_real_tensors() -> None:
    """Fake ones have none: writing there would end the process."""
    done = subprocess.run([sys.executable, "-c", POINTER], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "True", "True"]), done.stderr[-2000:]


def test_attention_in_training_is_in_training_afterwards() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32).train()
    sc.trace(layer, torch.zeros(2, 3, 16))
    assert all(m.training for m in layer.modules())
