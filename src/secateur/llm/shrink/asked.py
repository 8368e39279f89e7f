"""What is asked of a language model that is to be shrunk: its budgets, and how it is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from secateur.errors import ArgumentError
from secateur.graph.surgery import apply
from secateur.llm.shrink.hollow import kv_cache, macs, params
from secateur.llm.shrink.ladder import counts
from secateur.llm.shrink.options import Choice, Menu, Price, mixed, ranked, uniform
from secateur.llm.shrink.prices import Anatomy, Timed, priced
from secateur.llm.shrink.result import configuration
from secateur.llm.shrink.units import Family
from secateur.score.criteria import obs
from secateur.solve.sums import DAMPINGS, checked_dampings
from secateur.types import Criterion, Ints, Plan, Target

log = logging.getLogger("secateur")

TRIED = 10
"""Numbers of channels tried for one that a configuration can say: such as a multiple of the number of heads."""

Asked: TypeAlias = Callable[[Anatomy, Mapping[str, Ints], Path], Price]
"""``(anatomy, counts offered by family, a folder for notes) -> the price and its limit``; what is timed is noted."""
Allocate: TypeAlias = Callable[[Menu, Sequence[Price]], Choice]
"""``(menu, budgets) -> what is kept``: `mixed`, `uniform` or `ranked`."""


def of_params(fraction: float) -> Asked:
    """At most this part of the parameters, shared ones counted once."""
    return lambda a, offered, notes: priced(a, offered, "params", "", params, lambda dense: fraction * dense)


def of_macs(fraction: float, tokens: int = 512) -> Asked:
    """At most this part of the multiply-accumulates of a prompt of so many tokens."""
    return lambda a, offered, notes: priced(a, offered, "macs", "MAC", macs(tokens), lambda dense: fraction * dense)


def of_kv(fraction: float, tokens: int = 1024) -> Asked:
    """At most this part of the bytes of keys and values kept of so many tokens, in float32."""
    return lambda a, offered, notes: priced(a, offered, "kv", "B", kv_cache(tokens), lambda dense: fraction * dense)


def of_prefill(fraction: float, target: Target, tokens: int = 512) -> Asked:
    """At most this part of the time that a prompt of so many tokens takes on a target."""
    return Timed("prefill", fraction, tokens, target)


def of_decode(fraction: float, target: Target) -> Asked:
    """At most this part of the time that one more token takes on a target."""
    return Timed("decode", fraction, 1, target)


@dataclass(frozen=True)
class Shrinking:
    """How a language model is shrunk.

    Attributes:
        criterion: ranks units within their family: ``sc.obs``, `fluctuation` (FLAP), ``sc.magnitude``, ``sc.taylor``.
        stats: what a criterion of the whole model needs: ``sc.calibrate(model, batches, sc.taylor)``; else None.
        kinds: of groups that are cut. layers: whether blocks may go whole.
        allocate: `mixed`; `uniform`, where plain ``from_pretrained`` is to load the result; `ranked` (FLAP), by
            which no block goes whole.
        plain: only what a configuration can say is cut, for ``from_pretrained``; other kinds stay. Goes with `uniform`.
        multiples: kind -> kept counts are multiples of it; 8 for ``neuron`` and ``width`` by default.
        damping: of the least squares on dense inputs; None: what stays makes up for means alone (FLAP).
        ridge: of the refit in the cut model, towards the former; of several each weight takes what does best on batches
            kept aside. None leaves it out.
        residual: how much of what the residual stream has lost so far the refit makes up for, 0 to 1.
        heal: whether blocks that lose nothing are refitted too, behind those that do.
        greedy: whether blocks go one after another, each time that without which perplexity is least (SLEB), and
            nothing else with them: with no kinds.
        width: how many channels of the residual stream stay, or what part of them if at most 1; None: all. They go in
            the whole model at once, before the budgets choose among the rest.
        levels: parts of a family that are cut to measure their effects. probes: tokens that these are measured on;
            of fewer than 16 times as many calibration tokens fewer are taken, but 512 where there are.
    """

    criterion: Criterion = obs
    stats: Any = None
    kinds: Sequence[str] = ("head", "neuron")
    layers: bool = True
    allocate: Allocate = mixed
    plain: bool = False
    multiples: Mapping[str, int] = field(default_factory=dict)
    damping: float | None = 1e-2
    ridge: float | Sequence[float] | None = DAMPINGS
    residual: float = 1.0
    heal: bool = True
    greedy: bool = False
    width: float | None = None
    levels: Sequence[float] = (0.25, 0.6)
    probes: int = 1024

    @property
    def weighs(self) -> bool:
        """Whether what goes depends on what cuts cost the predictions, which is dear to measure."""
        if self.greedy or not (self.kinds or self.layers):
            return False
        by_count = self.allocate is uniform and len(self.kinds) == 1 and not self.layers
        return not (by_count or self.allocate is ranked)

    def survey(self) -> dict[str, Any]:
        """What the dense pass depends on."""
        kinds = [*self.kinds, *(["plain"] if self.plain else []), *(["layer"] if self.layers else [])]
        return {
            "criterion": self.criterion.name, "kinds": kinds, "damping": self.damping, "levels": list(self.levels),
            "probes": self.probes, "weighs": self.weighs, "narrower": self.width is not None,
        }  # fmt: skip

    def told(self) -> dict[str, Any]:
        """As it stands in files."""
        how = {"allocation": self.allocate.__name__, "multiples": dict(self.multiples)}
        ridge = None if self.ridge is None else list(checked_dampings(self.ridge))
        refit = {"ridge": ridge, "residual": self.residual, "heal": self.heal}
        return {**self.survey(), **how, **refit, "width": self.width, "greedy": self.greedy}

    def cut(self, anatomy: Anatomy) -> list[Family]:
        """The families that may lose units."""
        kinds = [k for k in self.kinds if not self.plain or sayable(anatomy, k, self.multiples.get(k, 1))]
        if left := sorted({*self.kinds} - {*kinds}):
            log.warning("no configuration of %s says fewer units of %s: all stay", anatomy.name, ", ".join(left))
        return [f for f in anatomy.families if f.kind in kinds]

    def offered(self, families: Sequence[Family]) -> dict[str, Ints]:
        """Kept counts to choose from, by family."""
        found = {}
        for f in families:
            step = self._step(f.kind)
            step = int(np.lcm(step if f.units > step else 1, f.group.multiple))
            found[f.name] = counts(f.units, step, max(f.group.least, 1))
        return found

    def narrowed(self, anatomy: Anatomy) -> Anatomy:
        """An anatomy of as many channels as are asked for: which they are, the survey tells; prices need their number.

        Of a part of the channels, the most up to it stay that a configuration can say.

        Raises:
            ArgumentError: more than there are, or none.
        """
        stream, asked = anatomy.stream, self.width
        if stream is None or asked is None:
            return anatomy
        step = int(np.lcm(self._step("width"), stream.multiple)) if asked <= 1 else stream.multiple
        found = int(asked * stream.units) // step * step if asked <= 1 else int(asked)
        if found != asked > 1 or found % step or not max(stream.least, 1) <= found < stream.units:
            raise ArgumentError(
                f"width is how many of the {stream.units} channels of the residual stream stay, a multiple of {step}, "
                f"or a part of them that is one; got {asked:g}: give {step} to {(stream.units - 1) // step * step}"
            )
        fewer = range(found, max(found - TRIED * step, 0), -step)
        made = (anatomy.narrowed(np.arange(stream.units) < n) for n in fewer)
        said = next((a for a in made if _said(a, a.cut({}))), None)
        asked_for = anatomy.narrowed(np.arange(stream.units) < found)
        left = 0 if said is None or said.channels is None else int(said.channels.sum())
        if said is not None and (asked <= 1 or left == found):
            return said
        near = f"; {left} channels it can say" if left else ""
        words = f"no configuration of {anatomy.name} says a residual stream of {found} channels{near}"
        if self.plain:
            raise ArgumentError(f"{words}: plain from_pretrained would not load the result")
        log.warning("%s: sc.load will load the result, plain from_pretrained will not", words)
        return asked_for

    def _step(self, kind: str) -> int:
        return {"neuron": 8, "width": 8, **self.multiples}.get(kind, 1)


def _said(anatomy: Anatomy, plan: Plan) -> bool:
    return configuration(apply(plan, anatomy.skeleton), plan) is not None


def sayable(anatomy: Anatomy, kind: str, step: int = 1) -> bool:
    """Whether a configuration of transformers can say that every block has fewer units of a kind."""
    families = [f for f in anatomy.families if f.kind == kind and f.units > step]
    plan = anatomy.cut({f.name: np.arange(f.units) < f.units - int(np.lcm(step, f.group.multiple)) for f in families})
    return _said(anatomy, plan)
