"""The oracle on networks nobody wrote."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import images, sequences
from torch import Tensor, nn

import secateur as sc

slow = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
cuts = st.tuples(st.sampled_from([0.2, 0.4, 0.6, 0.9]), st.integers(0, 99))


def holds(model: nn.Module, example: Tensor, cut: tuple[float, int]) -> None:
    """Whatever can be cut can be cut exactly; what cannot says so before anything happens."""
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    try:
        groups = sc.couple(sc.trace(model, example))
    except sc.CoupleError as error:
        assert "nothing in this model can be cut" in str(error)  # noqa: PT017
        return
    assert groups.unknown == ()
    try:
        plan = sc.random_plan(groups, *cut)
    except sc.SecateurError as error:
        assert "would come out otherwise" in str(error) or "together remove all" in str(error)  # noqa: PT017
        return
    small = sc.apply(plan, model)
    report = sc.verify(model, plan, small, example)
    assert all(row.ok is not False for row in report if "control" not in row.what), report.rows
    assert report.max_error <= 1e-10
    assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)


@slow
@given(sequences, cuts)
def test_random_sequence_models(model: nn.Module, cut: tuple[float, int]) -> None:
    holds(model, torch.randn(2, 5, 4), cut)


@slow
@given(images, cuts)
def test_random_image_models(model: nn.Module, cut: tuple[float, int]) -> None:
    holds(model, torch.randn(2, 3, 6, 6), cut)
