"""Where a model takes statistics over an axis that is cut, and what is kept of it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from secateur.graph.couple import Groups
from secateur.graph.recorded import Call
from secateur.graph.resize import CHOICES, STATISTICS
from secateur.graph.rules._table import dims_of
from secateur.types import Bools

Masks: TypeAlias = Mapping[tuple[str, int], Mapping[int, Bools]]
"""(torch function, which call of it in the pass) -> dim -> bool, True where the axis is kept."""


def kept_in(groups: Groups, cut: Mapping[tuple[str, int], Bools]) -> Masks:
    """What is kept under the statistics of a recording when these axes are cut.

    Args:
        groups: of a recording of the model, by rules that let statistics run over a cut axis.
        cut: (tensor, dim) -> bool, True keeps; a plan's ``axes``.
    """
    axes, root = groups._axes, groups._solution.root
    gone = np.zeros(axes.n, bool)
    for (name, dim), keep in cut.items():
        ids = axes.ids[groups.graph.tensors[name].index][dim]
        if ids is not None:
            gone[root[ids[~keep]]] = True
    for cells, rows, columns in axes.cells:  # a row goes when all of its cells do
        for part in (rows, columns):
            whole = np.ones(axes.n, bool)
            np.logical_and.at(whole, root[part], gone[root[cells]])
            gone[root[part]] |= whole[root[part]]
    masks: dict[tuple[str, int], dict[int, Bools]] = {}
    for call in groups.graph.calls:
        if call.turn is not None and call.api in STATISTICS and call.inputs:
            for d in _dims(call):
                axis = axes[call.inputs[0]][d]
                if axis is not None and gone[root[axis]].any():
                    masks.setdefault((call.api, call.turn), {})[d] = ~gone[root[axis]]
    return masks


_CHOOSES = CHOICES | {"_softmax", "_log_softmax", "_safe_softmax"}


def _dims(call: Call) -> list[int]:
    """The dims of its input that a call takes statistics over."""
    n = call.inputs[0].ndim
    if "normalized_shape" in call.args:
        return list(range(n - len(call["normalized_shape"]), n))
    if call.api in CHOICES:
        return dims_of(call.args.get("dim"), n) if call.op.removeprefix("aten::") in _CHOOSES else []
    if call.op == "aten::native_group_norm":
        return [1]
    if call.api == "batch_norm":
        return [d for d in range(n) if d != 1] if call.args.get("training") else []
    return dims_of(call.args.get("dim"), n) if call.op.split("::")[1] in STATISTICS else []
