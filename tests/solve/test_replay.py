"""Passes that compute only what can have changed: the same as whole passes, and fewer calls."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.solve.refit import refit_, same_inputs
from secateur.solve.replay import Replay
from tiny import assert_same, attention, cnn, cut_evenly, draws, groups_of, mlp, state_of


class Blocks(nn.Module):
    """Blocks on a residual stream; one module is called in all of them, activations write in place or not."""

    def __init__(self, depth: int, inplace: bool) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, 10) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(10, 6) for _ in range(depth))
        self.norm, self.act = nn.LayerNorm(6), nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(self.act(up(self.norm(x))))
        return x


class Leaves(nn.Linear):
    """Hands on its input by an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["seen"] = x
        return super().forward(x)


class Behind(nn.Module):
    """A later step takes what a module left as an attribute: nothing where that was not run, or what was there."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third = mlp(6, 12, 6, seed=1), mlp(6, 12, 6, seed=2), mlp(6, 12, 6, seed=3)
        self.first[0].__class__ = Leaves

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        left = self.first[0].__dict__
        y = y + {
            "pop": lambda: left.pop("seen", torch.zeros(())), "need": lambda: left.pop("seen"),
            "stays": lambda: left["seen"],
        }[self.how]().mean()  # fmt: skip
        out: Tensor = self.third(torch.relu(y))
        return out


def ignored_result() -> nn.Module:
    """The result of a module that writes over its input is not used: the input is."""

    class Ignored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.act = (
                nn.Linear(6, 10),
                nn.Linear(10, 8),
                nn.Linear(8, 6),
                nn.ReLU(inplace=True),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            self.act(x)
            x = self.b(x)
            self.act(x)
            return self.c(x)

    return Ignored()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: Blocks(3, False),
    "blocks that write in place": lambda: Blocks(3, True),
    "in place, the result ignored": ignored_result,
    "mlp": lambda: mlp(6, 12, 12, 12, 4),
    "state besides outputs": lambda: Behind("pop"),
    "state besides outputs that must be there": lambda: Behind("need"),
    "state besides outputs that stays": lambda: Behind("stays"),
}


def both(make: Callable[[], nn.Module], data: list[Tensor]) -> tuple[Any, Any]:
    """The same cut refitted with passes that are remembered, and with whole ones."""
    torch.manual_seed(0)
    dense = make().double().eval()
    plan, one = cut_evenly(dense, data[0])
    other = sc.apply(plan, dense)
    return (refit_(one, dense, plan, data), state_of(one)), (
        refit_(other, dense, plan, data, memory=0),
        state_of(other),
    )


@pytest.mark.parametrize("name", MODELS)
def test_refitted_as_with_whole_passes(name: str) -> None:
    (report, mine), (expected, theirs) = both(MODELS[name], draws(3, 40, 6, dtype=torch.float64))
    assert len(report) > 1
    assert report == expected
    assert_same(mine, theirs)


@pytest.mark.parametrize("make", [attention, cnn])
def test_real_layers_are_refitted_as_with_whole_passes(make: Any) -> None:
    shape = (4, 5, 16) if make is attention else (4, 3, 8, 8)
    (report, mine), (expected, theirs) = both(make, draws(2, *shape, dtype=torch.float64))
    assert report == expected
    assert_same(mine, theirs)


def hugging_face(name: str) -> nn.Module:
    """Small models with random weights: position biases that blocks hand on, convolutions with norms, experts."""
    torch.manual_seed(0)
    size = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    if name == "t5":
        return tf.T5Model(tf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    if name == "resnet":
        return tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2]))
    if name == "mixtral":
        config = tf.MixtralConfig(**size, num_key_value_heads=1, num_local_experts=4)
        model: nn.Module = tf.AutoModelForCausalLM.from_config(config)
        return model
    return tf.BertModel(tf.BertConfig(**size))


@pytest.mark.parametrize("name", ["bert", "t5", "resnet", "mixtral"])
def test_models_of_transformers_are_refitted_as_with_whole_passes(name: str) -> None:
    dense = hugging_face(name).eval()
    ids = [torch.randint(0, 40, (3, 8), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    data: list[Any] = [{"input_ids": i, **({"decoder_input_ids": i.flip(0)} if name == "t5" else {})} for i in ids]
    data = draws(3, 2, 3, 32, 32) if name == "resnet" else data
    plan, one = cut_evenly(dense, data[0])
    other = sc.apply(plan, dense)
    order = list(refit_(copy.deepcopy(one), dense, plan, data[:1]))
    with torch.no_grad():
        assert len(order) > 1
        assert same_inputs(one, order, data[:2])
    assert refit_(one, dense, plan, data) == refit_(other, dense, plan, data, memory=0)
    assert_same(state_of(one), state_of(other))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(["linear", "relu", "relu_", "add_", "skip"]), min_size=2, max_size=8), st.integers(1, 3)
)
def test_any_chain_is_refitted_as_with_whole_passes(steps: list[str], batches: int) -> None:
    kinds = ["linear", *steps, "linear"]

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lines = nn.ModuleList(nn.Linear(6, 6) for k in kinds)
            self.relu, self.relu_, self.first = nn.ReLU(), nn.ReLU(inplace=True), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for kind, line in zip(kinds, self.lines, strict=True):
                if kind == "linear":
                    x = line(x)
                elif kind == "add_":
                    x = self.relu(x)
                    x += 1
                elif kind == "skip":
                    x = x + line(torch.relu(x))
                else:
                    x = getattr(self, kind)(x)
            return x

    (report, mine), (expected, theirs) = both(Chain, draws(batches, 20, 6, dtype=torch.float64))
    assert report == expected
    assert_same(mine, theirs)


def test_calls_grow_with_depth_not_with_its_square() -> None:
    torch.manual_seed(0)
    dense, data = Blocks(12, False), draws(2, 20, 6)
    plan, small = cut_evenly(dense, data[0])
    calls: Counter[str] = Counter()
    for name, m in small.named_modules():
        if isinstance(m, nn.Linear):
            m.forward = lambda x, m=m, name=name: calls.update([name]) or nn.functional.linear(x, m.weight, m.bias)  # type: ignore[assignment, func-returns-value]
    report = refit_(small, dense, plan, data)
    assert len(report) == 12
    # for the order, for other uses, to try both batches whole and stopping, and to refit: twice where one is changed
    assert max(calls.values()) <= 12
    assert all("forward" in m.__dict__ for m in small.modules() if isinstance(m, nn.Linear)), "not put back"
    assert "forward" not in small.norm.__dict__


def test_state_besides_outputs_is_told() -> None:
    torch.manual_seed(0)
    weights = ["second.2.weight", "third.0.weight", "third.2.weight"]
    with torch.no_grad():
        assert not same_inputs(Behind("pop").eval(), weights, [torch.randn(5, 6)])
        assert not same_inputs(Behind("need").eval(), weights, [torch.randn(5, 6)])
        assert not same_inputs(Behind("stays").eval(), weights, draws(2, 5, 6))
        assert same_inputs(Blocks(2, True), ["down.0.weight", "down.1.weight"], draws(2, 5, 6))


def test_forward_is_put_back_after_an_error() -> None:
    model = mlp(6, 8, 4)
    with pytest.raises(RuntimeError), Replay(model).on(0):
        model(torch.zeros(1, 5))
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_a_batch_that_comes_to_the_weights_in_another_order() -> None:
    class Order(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = mlp(6, 10, 6, seed=1), mlp(6, 10, 6, seed=2), mlp(6, 10, 6, seed=3)

        def forward(self, x: Tensor, turned: bool = False) -> Tensor:
            first, second = (self.b, self.a) if turned else (self.a, self.b)
            return self.c(second(torch.tanh(first(x))))

    torch.manual_seed(0)
    dense = Order().double()
    x, y, z = draws(3, 30, 6, dtype=torch.float64)
    data = [{"x": x}, {"x": y, "turned": True}, {"x": z, "turned": True}]
    inner = {f"{name}.0:neuron": np.arange(10) < 5 for name in "abc"}
    plan = sc.make_plan(groups_of(dense, x), inner)
    one, other = sc.apply(plan, dense), sc.apply(plan, dense)
    assert refit_(one, dense, plan, data) == refit_(other, dense, plan, data, memory=0)
    assert_same(state_of(one), state_of(other))
