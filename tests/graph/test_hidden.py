"""Parts beside torch's registry: what they say follows the cut, and copies have the tensors that they should."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import hidden_nets
import pytest
import torch
from hidden_nets import Bound, Rebuilt, Stack, Unhooked
from torch import nn

import secateur as sc
from secateur.graph.copying import duplicate, tensors_by_name
from secateur.graph.parts import part_at, parts_of, put


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack()


def rows() -> torch.Tensor:
    return torch.randn(4, 6)


def test_layers_in_a_list_are_cut_with_all_that_says_their_sizes(tmp_path: Path) -> None:
    model, x = stack(), rows()
    groups = sc.couple(sc.trace(model, x))
    assert sorted(g.units for g in groups) == [10, 12]
    assert groups.coverage().share > 0.9
    for seed, share in enumerate((0.3, 0.6)):
        plan = sc.random_plan(groups, share, seed)
        small = sc.apply(plan, model)
        report = sc.verify(model, plan, small, x)
        assert report.ok, report.rows
        assert report.max_error <= 1e-10
    widths = [p.shape[1] for n, p in small.named_parameters() if "kernel" in n]
    for layer, before, units in zip(small.layers, (6, *widths[:-1]), widths, strict=True):
        assert layer._kernel.shape == tuple(layer._kernel.value.shape) == (before, units)
        assert layer._bias.shape == (units,)
        assert layer._input_spec[0].axes == {-1: before}
    assert model.layers[1]._input_spec[0].axes == {-1: 12}
    assert sc.verify(model, plan, sc.apply_(plan, copy_of(model)), x).ok
    sc.save(tmp_path / "cut", small, plan)
    assert torch.equal(sc.load(tmp_path / "cut", stack)(x), small(x))
    again = sc.couple(sc.trace(small, x))
    plan = sc.random_plan(again, 0.5, seed=2)
    assert sc.verify(small, plan, sc.apply(plan, small), x).ok


def copy_of(model: nn.Module) -> nn.Module:
    return duplicate(model)


def test_a_recording_leaves_specs_shapes_and_files_as_they_were() -> None:
    model = stack()
    before = [copy.deepcopy(vars(layer._input_spec[0])) for layer in model.layers]
    shapes = [layer._kernel._shape for layer in model.layers]
    sc.trace(model, rows())
    assert "int" not in vars(hidden_nets)
    assert [vars(layer._input_spec[0]) for layer in model.layers] == before
    assert all(type(n) is int for layer in model.layers for n in layer._input_spec[0].axes.values())
    assert all(layer._kernel._shape is shape for layer, shape in zip(model.layers, shapes, strict=True))


def test_a_recording_that_fails_leaves_files_as_they_were() -> None:
    model = stack()
    with pytest.raises(sc.TraceError):
        sc.trace(model, torch.randn(4, 7))
    assert "int" not in vars(hidden_nets)
    assert model.layers[0]._input_spec[0].axes == {-1: 6}


CAREFUL = """
import torch
from torch import nn

def number(d):
    return d if type(d) is int else int(d)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        return self.out(h / number(h.shape[1]))
"""


def test_files_that_do_more_with_int_are_left_alone(tmp_path: Path) -> None:
    """What such a file makes of a size is a number, and the axis stays."""
    file = tmp_path / "careful.py"
    file.write_text(CAREFUL)
    spec = importlib.util.spec_from_file_location("careful", file)
    assert spec
    assert spec.loader
    home: Any = importlib.util.module_from_spec(spec)
    sys.modules["careful"] = home
    spec.loader.exec_module(home)
    try:
        with pytest.raises(sc.CoupleError, match=r"becomes a number in arithmetic.*careful.py:6"):
            sc.couple(sc.trace(home.Net(), rows()))
    finally:
        del sys.modules["careful"]


def divided(s: Any, x: torch.Tensor) -> torch.Tensor:
    return s.out(torch.tanh(s.a(x)) / hidden_nets.standard(s.a(x).shape)[1])


def test_a_kept_size_that_becomes_a_number_still_freezes() -> None:
    """``int(n)`` alone forgets nothing, but a division by it does."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return divided(self, x)

    with pytest.raises(sc.CoupleError, match="becomes a number in arithmetic"):
        sc.couple(sc.trace(Net(), rows()))


def test_copies_of_a_cut_model_are_cut() -> None:
    model, x = stack(), rows()
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    small = sc.apply(plan, model)
    twin = duplicate(small)
    assert torch.equal(twin(x), small(x))
    assert not {id(t) for t in twin.parameters()} & {id(t) for t in small.parameters()}
    layer = twin.layers[0]
    assert layer._kernel.value is twin.owned["0/kernel"]
    assert layer.again.__closure__[1].cell_contents is layer  # what a layer made of itself is bound to the copy
    assert isinstance(twin.layers, hidden_nets.Tracked)
    assert twin.layers.tracker is twin.tracker is not small.tracker
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert not torch.equal(twin(x), small(x))


def test_a_class_that_copies_itself_whole_is_cut_all_the_same() -> None:
    model, x = Rebuilt(), rows()
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    small = sc.apply(plan, model)
    assert small.a.weight.shape == (4, 6)
    assert sc.verify(model, plan, small, x).ok
    shared = duplicate(model, {id(p): p for p in model.parameters()})
    assert all(t is tensors_by_name(model)[n] for n, t in tensors_by_name(shared).items())


def test_a_copy_that_would_compute_with_the_original_is_refused() -> None:
    model, x = Bound(), rows()
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    with pytest.raises(sc.PlanError, match=r"Bound.*sc.apply_"):
        sc.apply(plan, model)


def test_sizes_that_no_hook_can_replace_stay() -> None:
    model, x = Unhooked(), rows()
    with pytest.raises(sc.CoupleError, match="is written as a literal in view"):
        sc.couple(sc.trace(model, x))


def test_paths_go_through_lists_dicts_and_tuples() -> None:
    net = nn.Module()
    net.kept = {"a": [nn.Linear(2, 3)], 0: nn.ReLU(), "b": nn.Tanh()}
    net.pair = (nn.Linear(3, 4), (1, 2))
    assert list(parts_of(net).modules) == ["kept.0", "kept.b", "pair.0"]
    assert part_at(net, "kept.a.0.in_features") == 2
    put(net, "pair.1.0", 5)
    assert net.pair[1] == (5, 2)
    with pytest.raises(AttributeError, match=r"'c', of 'kept.c'"):
        part_at(net, "kept.c")
