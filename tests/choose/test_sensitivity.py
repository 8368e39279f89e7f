"""Measured curves against a loop over copies; the model and the file are as they should be."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.choose.patterns import nm
from secateur.choose.select import top
from secateur.choose.sensitivity import sensitivity
from secateur.choose.tables import by_sensitivity
from secateur.errors import ArgumentError, DataError, FormatError
from secateur.score.weights import prunable
from tiny import assert_same, mlp, state_of

X = torch.linspace(-1, 1, 40).reshape(5, 8)


class Loss:
    """Counts its calls, and may break off."""

    def __init__(self, model: nn.Module, last: int = 10**6) -> None:
        self.calls, self.last = 0, last
        with torch.no_grad():
            self.target = model(X)

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls > self.last:
            raise KeyboardInterrupt
        return float((model(X) - self.target).square().mean())


def test_curves_are_those_of_one_weight_at_a_time() -> None:
    model = mlp(8, 16, 12, 4)
    loss, before = Loss(model), state_of(model)
    curves = sensitivity(model, loss, prunable(model), sc.magnitude, [0.5, 0.9, 0.0])
    assert_same(state_of(model), before)
    assert loss.calls == 1 + 3 * 2
    for name, curve in curves.items():
        assert list(curve) == [0.0, 0.5, 0.9]
        for sparsity, value in curve.items():
            twin = copy.deepcopy(model)
            w = twin.get_parameter(name)
            w.data *= top(w.abs(), w.numel() - round(sparsity * w.numel()))
            with torch.no_grad():
                assert loss(twin) == value
    counts = by_sensitivity(curves)({n: p.abs() for n, p in prunable(model).items()}, 0.5)
    assert sum(counts.values()) == (8 * 16 + 16 * 12 + 12 * 4) // 2


def test_a_broken_run_goes_on_and_the_weight_is_put_back(tmp_path: Path) -> None:
    model, path = mlp(8, 16, 4), tmp_path / "curves.json"
    whole = sensitivity(model, Loss(model), prunable(model), sc.magnitude, [0.5, 0.9])
    before, loss = state_of(model), Loss(model, last=3)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, loss, prunable(model), sc.magnitude, [0.5, 0.9], path=path)
    assert_same(state_of(model), before)
    loss = Loss(model)
    assert sensitivity(model, loss, prunable(model), sc.magnitude, [0.5, 0.9], path=path) == whole
    assert loss.calls == 2
    assert sensitivity(model, loss, prunable(model), sc.magnitude, [0.9], path=str(path)) == {
        n: {s: v for s, v in c.items() if s != 0.5} for n, c in whole.items()
    }
    assert loss.calls == 2
    assert [p.name for p in tmp_path.iterdir()] == ["curves.json"]


def test_a_file_of_another_model_or_none_of_ours_is_refused(tmp_path: Path) -> None:
    model, path = mlp(8, 4), tmp_path / "curves.json"
    sensitivity(model, Loss(model), prunable(model), sc.magnitude, [0.5], path=path)
    with pytest.raises(FormatError, match="made with another pattern: 'unstructured', not '2:4'; give another path"):
        sensitivity(model, Loss(model), prunable(model), sc.magnitude, path=path, pattern=nm(2, 4))
    model[0].weight.data += 1
    with pytest.raises(FormatError, match="made with another model"):
        sensitivity(model, Loss(model), prunable(model), sc.magnitude, [0.5], path=path)
    for text in ("{", "[]", json.dumps({"curves": {"a": 3}})):
        path.write_text(text)
        with pytest.raises(FormatError, match="holds no sensitivity curves"):
            sensitivity(model, Loss(model), prunable(model), sc.magnitude, [0.5], path=path)


def test_a_pattern_of_one_density_has_one_sparsity() -> None:
    model = mlp(8, 4)
    curves = sensitivity(model, Loss(model), prunable(model), sc.magnitude, [0.2, 0.3], pattern=nm(1, 4))
    assert {n: list(c) for n, c in curves.items()} == {"0.weight": [0.0, 0.75]}


def test_losses_that_are_no_numbers_are_refused() -> None:
    model = mlp(8, 4)
    with pytest.raises(DataError, match="evaluate gave nan of the dense model"):
        sensitivity(model, lambda m: float("nan"), prunable(model), sc.magnitude)
    with pytest.raises(DataError, match="evaluate gave inf with 0.weight at sparsity 0.5"):
        sensitivity(model, lambda m: 0.0 if m[0].weight.all() else float("inf"), prunable(model), sc.magnitude, [0.5])  # type: ignore[index, union-attr]
    with pytest.raises(DataError, match="evaluate gave NoneType; expected one number"):
        sensitivity(model, lambda m: None, prunable(model), sc.magnitude)  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentError, match="fraction removed"):
        sensitivity(model, Loss(model), prunable(model), sc.magnitude, [1.0])
