"""Whole experts of mixture-of-experts models: what each of them is worth, which ones go, and the cut."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from secateur.choose.plan import make_plan
from secateur.errors import ArgumentError
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.rules import EXPERT_RULES
from secateur.graph.surgery import apply_
from secateur.llm.merging import Merge, merge_
from secateur.llm.routing import Bank, Routing, banks_of, routing
from secateur.types import Bools, Example, Floats, Plan

Score: TypeAlias = Callable[[Routing], Floats]
"""What each expert of a bank is worth, (experts,): the lowest go."""


def reap(seen: Routing) -> Floats:
    """Router-weighted expert activation: how much an expert adds to a token that is routed to it, on average.

    ``S_j = 1 / |X_j| * sum over x in X_j of g_j(x) * ||f_j(x)||_2``, with ``X_j`` the tokens routed to expert j and
    ``g_j`` the gate by which the model multiplies its output ``f_j`` (after any normalisation over the chosen); 0 where
    there is no such token. Lasby et al., 2025, arXiv:2510.13999.

    Example:
        >>> two = np.array([2.0, 0.0])
        >>> reap(Routing("mlp.experts", tokens=4, count=two, gates=two, norms=two, gated=np.array([3.0, 0.0])))
        array([1.5, 0. ])
    """
    return _mean(seen.gated, seen.count)


def activation_norm(seen: Routing) -> Floats:
    """Mean norm of an expert's output over its tokens, ``1 / |X_j| * sum of ||f_j(x)||_2``: `reap` without the gate."""
    return _mean(seen.norms, seen.count)


def frequency(seen: Routing) -> Floats:
    """The share of tokens that are routed to an expert: the baseline that needs no outputs."""
    return seen.count / seen.tokens


def random_experts(seed: int) -> Score:
    """A draw, another one in each layer: the baseline that a score must beat."""

    def score(seen: Routing) -> Floats:
        return np.random.default_rng([seed % 2**63, zlib.crc32(seen.path.encode())]).random(len(seen.count))

    return score


def _mean(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def kept_experts(bank: Bank, seen: Routing, remove: int, score: Score = reap) -> Bools:
    """Mask of the units of a bank that stay: the ``remove`` of lowest score go.

    Of equal scores the one goes that fewer tokens are routed to (one that is never chosen before one that adds
    nothing), then the later one. Where a router chooses among fixed sets of experts, a set's scores are added up.

    Raises:
        ArgumentError: fewer would be left than the router chooses for a token.
    """
    units, least = bank.group.units, bank.group.least
    if not 0 <= remove <= units - least:
        sets = "" if bank.members.shape[1] == 1 else f" sets of {bank.members.shape[1]}"
        raise ArgumentError(
            f"{seen.path} has {units}{sets} experts, of which {least} are chosen for each token: remove 0 to "
            f"{units - least} of them, got {remove}"
        )
    worth, tokens = (values[bank.members].sum(1) for values in (score(seen), seen.count))
    order = np.lexsort((-np.arange(units), tokens, worth))
    keep = np.ones(units, bool)
    keep[order[:remove]] = False
    return keep


@dataclass(frozen=True, eq=False)
class ExpertCut:
    """What was done to a model or a block: its plan, and a JSON-able row for each of its banks."""

    plan: Plan
    rows: tuple[dict[str, Any], ...]


def prune_experts_(
    module: nn.Module,
    example: Example,
    drive: Callable[[], object],
    remove: int,
    *,
    score: Score = reap,
    merge: Merge | None = None,
    prefix: str = "",
) -> ExpertCut:
    """Take the same number of experts out of every mixture in a model or a block, in place.

    The experts go with their rows of the router (and of its biases), so that it chooses among those that are left: the
    cut model computes what the whole one does whose router gives the removed ones a logit of minus infinity.

    Args:
        module: changed in place.
        example: what its ``forward`` takes, a few tokens: it is recorded on them.
        drive: runs the module over the calibration data, once.
        remove: experts that go, of each bank.
        score: `reap`, `activation_norm`, `frequency`, `random_experts(seed)`, or your own function of a `Routing`.
        merge: what becomes of those that go: None drops them, `merging(...)` adds them into those that stay.
        prefix: path of the module in the whole model, for the rows.

    Raises:
        CoupleError: there are no experts that can be cut. DataError: no data, or outputs that are not finite.
        ArgumentError: fewer would be left than are chosen for a token.

    Memory: the module, the recording, and the outputs of the chosen experts for one batch.

    Example:
        >>> import torch, transformers
        >>> config = transformers.MixtralConfig(
        ...     vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...     num_key_value_heads=2, num_local_experts=4)
        >>> model, x = transformers.MixtralForCausalLM(config).eval(), {"input_ids": torch.tensor([[1, 2, 3, 4]])}
        >>> cut = prune_experts_(model, x, lambda: model(**x), remove=1)
        >>> model.model.layers[0].mlp.experts.down_proj.shape[0], len(cut.rows[0]["kept"])
        (3, 3)
    """
    groups = couple(trace(module, example), rules=EXPERT_RULES)
    return prune_banks_(module, groups, drive, remove, score=score, merge=merge, prefix=prefix)


def prune_banks_(
    module: nn.Module,
    groups: Groups,
    drive: Callable[[], object],
    remove: int,
    *,
    score: Score = reap,
    merge: Merge | None = None,
    prefix: str = "",
) -> ExpertCut:
    """`prune_experts_` on what is coupled already, under `sc.EXPERT_RULES`."""
    banks = banks_of(module, groups)
    needs = merge.needs if merge is not None else {}
    seen = routing(module, banks, drive, prefix=prefix, **needs)
    keep: dict[str, Bools] = {}
    rows = []
    for bank in banks:
        mine = seen[bank.group.name]
        keep[bank.group.name] = kept_experts(bank, mine, remove, score)
        into = {} if merge is None else merge_(module, bank, groups, mine, keep[bank.group.name], merge)
        rows.append(_row(bank, mine, keep[bank.group.name], score, into))
    plan = make_plan(groups, keep, {"criterion": name_of(score), "removed_experts": remove})
    apply_(plan, module)
    return ExpertCut(plan, tuple(rows))


def _row(bank: Bank, seen: Routing, keep: Bools, score: Score, into: Mapping[int, int]) -> dict[str, Any]:
    return {
        "experts": seen.path,
        "before": bank.experts,
        "kept": bank.members[keep].reshape(-1).tolist(),
        "score": score(seen).tolist(),
        "routed": seen.count.astype(int).tolist(),
        "tokens": seen.tokens,
        "merged": {str(k): v for k, v in into.items()},
    }


def name_of(function: Callable[..., Any]) -> str:
    """What a score or a likeness goes by.

    Example:
        >>> name_of(reap), name_of(random_experts(0))
        ('reap', 'random_experts')
    """
    return str(getattr(function, "__qualname__", type(function).__name__)).partition(".")[0]
