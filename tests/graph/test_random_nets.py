"""The oracle on networks nobody wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import images, sequences
from torch import Tensor, nn

import secateur as sc

slow = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@dataclass(frozen=True)
class Cut:
    """How much of what is cut at random: ``every`` group or those that are offered at first, with norms or without."""

    sparsity: float
    seed: int
    every: bool
    residual: bool


cuts = st.builds(Cut, st.sampled_from([0.3, 0.6, 0.9]), st.integers(0, 99), st.booleans(), st.booleans())


def holds(model: nn.Module, example: Tensor, other: Tensor, cut: Cut) -> None:
    """Whatever can be cut can be cut exactly; what cannot says so before anything happens."""
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    rules = sc.RESIDUAL_RULES if cut.residual else sc.RULES
    try:
        groups = sc.couple(sc.trace(model, example), rules, every=cut.every)
    except sc.CoupleError as error:
        assert "nothing in this model can be cut" in str(error)  # noqa: PT017
        return
    assert groups.unknown == ()
    try:
        plan = sc.random_plan(groups, cut.sparsity, cut.seed)
    except sc.SecateurError as error:
        assert "would come out otherwise" in str(error) or "together remove all" in str(error)  # noqa: PT017
        return
    small = sc.apply(plan, model)
    report = sc.verify(model, plan, small, other)  # of other sizes than what was recorded
    assert all(row.ok is not False for row in report if "control" not in row.what), report.rows
    assert report.max_error <= 1e-10
    assert sum(p.numel() for p in small.parameters()) == groups.params(plan.keep)


@settings(slow, max_examples=400)
@given(sequences, cuts)
def test_random_sequence_models(model: nn.Module, cut: Cut) -> None:
    holds(model, torch.randn(2, 5, 4), torch.randn(3, 7, 4), cut)


@settings(slow, max_examples=150)
@given(images, cuts)
def test_random_image_models(model: nn.Module, cut: Cut) -> None:
    holds(model, torch.randn(2, 3, 6, 6), torch.randn(3, 3, 6, 6), cut)
