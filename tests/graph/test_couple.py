"""What coupling says: kinds, slices, reasons, unknown ops, rules of the user's own, several examples, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attention_nets
import families
import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import traps
from nets import Calls, vec
from test_oracle import built, check
from torch import Tensor, nn

import secateur as sc


def reasons(name: str) -> list[str]:
    """What is said of everything that stays whole."""
    case = {**nets.CASES, **attention_nets.CASES, **traps.CASES, **families.CASES}[name]
    torch.manual_seed(0)
    try:
        groups = sc.couple(sc.trace(case.make(), case.example()))
    except sc.CoupleError as error:
        return [str(error)]
    return [f"{f.name} {f.dim}: {f.reason} ({f.line})" for f in groups.frozen]


def test_a_unit_takes_rows_columns_biases_and_statistics() -> None:
    _, _, groups = built("batch_norm")
    first = groups["0:channel"]
    assert [(s.name, s.dim, s.role) for s in first.slices] == [
        ("0.weight", 0, "out"),
        ("0.bias", 0, "out"),
        ("1.weight", 0, "out"),
        ("1.bias", 0, "out"),
        ("3.weight", 1, "in"),
        ("1.running_mean", 0, "out"),
        ("1.running_var", 0, "out"),
    ]
    assert all((s.index == np.arange(8)[:, None]).all() for s in first.slices)
    assert (first.kind, first.module, first.units) == ("channel", "0", 8)


def test_a_channel_takes_its_run_of_flattened_features() -> None:
    _, _, groups = built("flattened")
    taken = {s.name: s.index for s in groups["conv:channel"].slices}
    assert (taken["fc.weight"] == np.arange(54).reshape(6, 9)).all()
    assert (taken["norm.running_mean"] == np.arange(54).reshape(6, 9)).all()


def test_a_head_takes_its_rows_of_queries_keys_and_values() -> None:
    _, _, groups = built("fused_by_view")
    rows = np.arange(96).reshape(3, 4, 8)
    heads, dims = groups["qkv:head"], groups["qkv:head_dim"]
    assert (heads.slices[0].index == np.sort(rows.transpose(1, 0, 2).reshape(4, 24), 1)).all()
    assert (dims.slices[0].index == np.sort(rows.transpose(2, 0, 1).reshape(8, 12), 1)).all()
    assert [(s.name, s.role) for s in heads.slices] == [
        ("qkv.weight", "out"),
        ("qkv.bias", "out"),
        ("proj.weight", "in"),
    ]


def test_shared_key_heads_take_all_their_query_heads() -> None:
    _, _, groups = built("queries_expand")
    taken = {s.name: s.index.shape for s in groups["q:head"].slices}
    assert taken == {"q.weight": (2, 12), "q.bias": (2, 12), "k.weight": (2, 4), "k.bias": (2, 4),
                     "v.weight": (2, 4), "v.bias": (2, 4), "out.weight": (2, 12)}  # fmt: skip


def test_what_an_einsum_sums_over_is_an_input() -> None:
    _, _, groups = built("einsum")
    roles = {(s.name, s.dim): s.role for g in groups for s in g.slices if s.name.startswith("w")}
    assert {at for at, role in roles.items() if role == "in"} == {("wq", 0), ("wk", 0), ("wv", 0), ("wo", 0), ("wo", 1)}


def test_shared_weights_are_one_axis() -> None:
    _, _, groups = built("shared")
    assert [s.name for s in groups["b:neuron"].slices] == ["b.weight", "b.bias", "head.weight"]
    assert groups.params(groups.all_kept()) == sum(p.numel() for p in nets.Shared().parameters())


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("mlp", "4.weight 0", "is an output of the model"),
        ("conv2d", "0.weight 2", "is a kernel tap"),
        ("tied_embedding", "embed.weight 0", "its rows are looked up by number"),
        ("linear_attention", "q.weight 0", "is summed over where neither factor is zero after a cut"),
        ("triangle", "a.weight 0", "is cut to a triangle by tril"),
        ("sampled", "where.weight 0", "says where to sample"),
        ("cumulative", "a.weight 0", "is run along by cumsum"),
        ("rolled_back", "c.weight 1", "wraps round in a roll by a literal shift"),
        ("exponential_weights", "c.weight 1", "is summed over where neither factor is zero after a cut"),
        ("float_times_size", "c.weight 0", "its size becomes a number in arithmetic"),
        ("int_of_size", "b.weight 0", "its size becomes a number in arithmetic"),
    ],
)
def test_what_stays_says_why_and_where(name: str, tensor: str, words: str) -> None:
    said = [r for r in reasons(name) if r.startswith(f"{tensor}:")]
    assert any(words in r for r in said), said
    source = "traps.py" if name in traps.CASES else "nets.py"
    if not name.startswith(("mlp", "conv2d")):  # those are nothing but torch's own modules
        assert any(source in r for r in said if words in r), said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("padded_shortcut", "in pad would be|is padding"),
        ("branching", "passes through code that decides by looking at its data"),
        ("hidden_branch", "passes through code that decides by looking at its data"),
        ("hidden_branch", "b.weight: is not used on the example"),
        ("read_list", "passes through code that decides by looking at its data"),
        ("by_width", r"\(shape\[1\] > 6\) would come out otherwise"),
        ("order_as_number", "is indexed by a buffer whose numbers are used elsewhere too"),
        ("two_bounds", "is sliced at a position that two sizes in the code could mean"),
        ("scattered", "is gathered or scattered by numbers that are computed"),
        ("over_channels", "is space that a kernel runs along"),
        ("padded_tap", "is space that a kernel runs along"),
        ("strided_tap", "is space that a kernel runs along"),
        ("picked_run", "passes through code that decides by looking at its data"),
        ("picked_and_seen", "passes through code that decides by looking at its data"),
        ("size_as_root", "its size becomes a number in arithmetic"),
        ("size_as_power", "its size becomes a number in arithmetic"),
        ("numel", "its size becomes a number in arithmetic"),
    ],
)
def test_nets_in_which_nothing_can_go_say_why(name: str, words: str) -> None:
    with pytest.raises(sc.CoupleError, match=words):
        built(name)


def test_frozen_names_the_module() -> None:
    _, _, groups = built("bert")
    at = {(f.name, f.dim): f for f in groups.frozen}
    found = at["encoder.layer.0.output.dense.weight", 0]
    assert found.module == "embeddings.LayerNorm"
    assert "modeling_bert.py:" in found.line
    assert found.size == 16


@pytest.fixture
def shout() -> Iterator[Any]:
    """An op of somebody's own: elementwise, but nothing says so."""

    @torch.library.custom_op("secateur_tests::shout", mutates_args=())
    def op(x: Tensor) -> Tensor:
        return torch.tanh(x) * 3

    op.register_fake(torch.empty_like)
    yield op
    del op


def test_an_op_without_a_rule_freezes_and_is_reported(shout: Any) -> None:
    torch.manual_seed(0)
    net = Calls(
        lambda s, x: s.out(shout(s.b(F.relu(s.a(x))))), a=nn.Linear(6, 8), b=nn.Linear(8, 10), out=nn.Linear(10, 3)
    )
    graph = sc.trace(net, vec())
    groups = sc.couple(graph)
    assert {g.name: g.units for g in groups} == {"a:neuron": 8}
    assert len(groups.unknown) == 1
    assert groups.unknown[0].startswith("secateur_tests::shout has no rule at graph/test_couple.py:")
    stuck = {f.name: f.reason for f in groups.frozen if f.dim == 0}
    assert stuck["b.weight"] == "meets secateur_tests::shout, which has no rule"

    taught = sc.couple(graph, rules={**sc.RULES, "secateur_tests::shout": lambda axes, call: axes[call["x"]]})
    assert {g.name: g.units for g in taught} == {"a:neuron": 8, "b:neuron": 10}
    assert taught.unknown == ()
    check(net, vec(), taught, sc.random_plan(taught, 0.5, seed=0))


def test_a_rule_that_fails_freezes_and_is_reported() -> None:
    def broken(axes: Any, call: Any) -> Any:
        return [[None]]

    net = nets.mlp()
    groups = sc.couple(sc.trace(net, vec()), rules={**sc.RULES, "aten::tanh": broken})
    assert {g.name for g in groups} == {"0:neuron"}
    assert "aten::tanh is not covered by its rule" in groups.unknown[0]


@pytest.mark.parametrize("error", [ZeroDivisionError, OverflowError, RuntimeError, NotImplementedError])
def test_whatever_a_rule_raises_freezes(error: type[Exception]) -> None:
    def failing(axes: Any, call: Any) -> Any:
        raise error("no")

    groups = sc.couple(sc.trace(nets.mlp(), vec()), rules={**sc.RULES, "aten::tanh": failing})
    assert {g.name for g in groups} == {"0:neuron"}
    assert groups.unknown[0].startswith("aten::tanh is not covered by its rule (no) at ")


def test_want_of_memory_is_no_matter_of_rules() -> None:
    def failing(axes: Any, call: Any) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        sc.couple(sc.trace(nets.mlp(), vec()), rules={**sc.RULES, "aten::tanh": failing})


@pytest.mark.parametrize("pattern", ["a2.bias", "stem", "stem:channel", "ste*"])
def test_ignored_things_stay_whole(pattern: str) -> None:
    torch.manual_seed(0)
    model, example = nets.Residual(), nets.img()
    groups = sc.couple(sc.trace(model, example), ignore=[pattern])
    assert {g.name for g in groups} == {"a1:channel", "b1:channel", "b2:channel"}
    assert any("is ignored on request" in f.reason for f in groups.frozen)


def test_ignoring_everything_is_an_error() -> None:
    with pytest.raises(sc.CoupleError, match=r"ignored on request \(\*\)"):
        sc.couple(sc.trace(nets.mlp(), vec()), ignore=["*"])


def test_an_unknown_group_names_those_there_are() -> None:
    _, _, groups = built("mlp")
    with pytest.raises(sc.CoupleError, match=r"no group is called 'fc'; there are \['0:neuron', '2:neuron'\]"):
        groups["fc"]


class Adaptive(nn.Module):
    """Another path for long inputs: one example cannot show both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if x.shape[1] > 4:
            h = h.cumsum(-1)
        return self.out(torch.tanh(self.b(h)))


def test_several_examples_constrain_together() -> None:
    torch.manual_seed(0)
    model, short, long = Adaptive(), torch.randn(2, 3, 6), torch.randn(2, 7, 6)
    alone = sc.couple(sc.trace(model, short))
    assert {g.name for g in alone} == {"a:neuron", "b:neuron"}
    both = sc.couple(sc.trace(model, short, also=[long]))
    assert {g.name for g in both} == {"b:neuron"}
    plan = sc.random_plan(both, 0.4, seed=0)
    small = sc.apply(plan, model)
    for example in (short, long):
        assert sc.verify(model, plan, small, example).ok


def test_examples_of_several_shapes_agree_where_nothing_differs() -> None:
    torch.manual_seed(0)
    model = attention_nets.Separate()
    masked = (torch.randn(1, 7, 6), torch.ones(1, 7))
    groups = sc.couple(sc.trace(model, torch.randn(2, 5, 6), also=[masked, torch.randn(1, 1, 6)]))
    assert {g.name: g.units for g in groups} == {"embed:neuron": 16, "q:head": 4}
    plan = sc.random_plan(groups, 0.5, seed=0)
    assert sc.verify(model, plan, sc.apply(plan, model), masked).ok


def test_the_same_model_gives_the_same_groups_again() -> None:
    for name in ("residual", "queries_kernel", "bert"):
        (_, _, one), (_, _, two) = built(name), built(name)
        assert [g.name for g in one] == [g.name for g in two]
        for a, b in zip(one, two, strict=True):
            assert all((s.index == t.index).all() for s, t in zip(a.slices, b.slices, strict=True))


def test_a_single_unit_stays() -> None:
    net = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 4), nn.Linear(4, 2))
    groups = sc.couple(sc.trace(net, vec()))
    assert {g.name for g in groups} == {"2:neuron"}


def test_a_branch_inside_a_module_freezes_only_what_it_can_change() -> None:
    """The child's own width is its own affair, whatever its parent decides."""

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.other, self.out = nn.Linear(6, 8), nets.mlp(), nn.Linear(8, 6), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            y = self.inner(x) if x.sum() > -1e9 else self.inner(self.other(h))
            return self.out(torch.tanh(h)) + y

    groups = sc.couple(sc.trace(Parent(), vec()))
    assert not groups.graph.fake
    assert {g.name: g.units for g in groups} == {"inner.0:neuron": 8, "inner.2:neuron": 10}
    said = {(f.name, f.dim): f for f in groups.frozen}
    assert said["first.weight", 0].reason == "passes through code that decides by looking at its data"
    assert Path(said["first.weight", 0].line.split(":")[0]).name == "test_couple.py"
    assert said["other.weight", 0].reason == "is not used on the example"
