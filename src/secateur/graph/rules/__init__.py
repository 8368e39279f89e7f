"""What each ATen op does to ids: a table from op name to rule, one file an op family.

A rule is ``(axes, call) -> ids of each output``: a list with one id vector (or None) a dimension of the only
output, or a list of such lists for several outputs. It may tie, pin, label and count work on the way. An op that is
in no table freezes what it touches and is reported; ops that torch tags as pointwise need no entry.

Adding one is a function in a file of your own::

    def my_rule(axes, call):
        return axes[call["self"]]

    groups = sc.couple(graph, rules={**sc.RULES, "mylib::op": my_rule})
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from secateur.graph.axes import Axes
from secateur.graph.recorded import Call
from secateur.graph.rules import (
    attention,
    contraction,
    convolution,
    experts,
    index,
    norm,
    pointwise,
    recurrent,
    reduction,
    shape,
    space,
)

Rule: TypeAlias = Callable[[Axes, Call], Any]

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **pointwise.RULES,
        **shape.RULES,
        **space.RULES,
        **index.RULES,
        **contraction.RULES,
        **convolution.RULES,
        **norm.RULES,
        **reduction.RULES,
        **attention.RULES,
        **recurrent.RULES,
    }
)

RESIDUAL_RULES: Mapping[str, Rule] = MappingProxyType({**RULES, norm.RESIDUAL: pointwise.same})
"""`RULES` that let norms run over a cut axis: residual width becomes a unit; ask for it by passing this table."""

EXPERT_RULES: Mapping[str, Rule] = MappingProxyType({**RULES, **experts.RULES})
"""`RULES` that let routers choose among the experts that are kept: whole experts of a mixture become units.

``{**sc.RESIDUAL_RULES, **sc.EXPERT_RULES}``, in this order, cuts both.
"""
