"""Units that may change places can: over every net, the function is the same in whatever order they come."""

from __future__ import annotations

import copy
from typing import Any

import attention_nets
import nets
import numpy as np
import torch
import traps
from torch import Tensor

import secateur as sc
from secateur.calling import run, tensors_of
from secateur.choose.permute import permute_
from secateur.errors import PlanError

CASES = {**nets.CASES, **attention_nets.CASES, **traps.CASES}


def double(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: double(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(double, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_every_group_of_every_net_that_may_be_moved_keeps_the_function() -> None:
    moved = 0
    for name, case in CASES.items():
        torch.manual_seed(0)
        model, example = case.make().double().eval(), double(case.example())
        with torch.no_grad():
            for t in [*model.parameters(), *model.buffers()]:
                if t.is_floating_point():
                    t.add_(torch.rand_like(t), alpha=0.3)
        try:
            groups = sc.couple(sc.trace(model, example))
        except sc.CoupleError:
            continue
        with torch.no_grad():
            before = tensors_of(run(model, example))
        rng = np.random.default_rng(0)
        for group in groups:
            twin = copy.deepcopy(model)
            try:
                permute_(twin, groups, {group.name: rng.permutation(group.units)})
            except PlanError as error:
                assert "cannot change places" in str(error)  # noqa: PT017
                continue
            moved += 1
            with torch.no_grad():
                after = tensors_of(run(twin, example))
            for a, b in zip(after, before, strict=True):
                assert not a.is_floating_point() or float((a - b).abs().max()) <= 1e-12 * float(b.abs().max()), (
                    name,
                    group.name,
                )
    assert moved > 60
