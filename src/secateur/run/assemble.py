"""From the text of a run file to the functions and values that it names."""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from secateur.choose.costs import macs, nbytes, params
from secateur.choose.effect import by_effect
from secateur.choose.measured import measured
from secateur.errors import ArgumentError
from secateur.evidence.running_cost import Running
from secateur.evidence.running_cost import running as running_of
from secateur.run.data import held_out
from secateur.run.names import nearest, resolve
from secateur.run.pipeline import Quality
from secateur.run.runfile import BudgetText, Cutting, RecoverText, RunFile
from secateur.targets.eager import with_threads
from secateur.targets.energy import counter_for, device_of, energy
from secateur.targets.latency import latency
from secateur.targets.remote import remote
from secateur.train.recovery import Recovery
from secateur.types import Batches, Budget, Cost, Criterion, Example, Limits, Target

T = TypeVar("T")

ALLOCATIONS = ("uniform", "global_", "knapsack", "measured")
NORMALIZATIONS = ("unnormalized", "by_mean", "by_max", "by_cost", "by_effect")
BY_OUTPUTS = (measured, by_effect)
"""Those that are made for a model, which they run on some data."""
SEEN = 2
"""Batches of the data that these look at, at most."""


def criterion(name: str, seed: int = 0) -> Criterion:
    """The criterion of that name; a function that makes one is called, with the seed where it takes one.

    Raises:
        ArgumentError: no such name, or it is something else.
    """
    found = resolve(name, {**_public(Criterion), **_returning(Criterion)}, "criterion")
    if callable(found):
        try:
            takes_seed = "seed" in inspect.signature(found).parameters
            found = found(seed=seed) if takes_seed else found()
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"criterion {name} is not one, nor a function that makes one: {error}") from error
    return _a(Criterion, name, found, "criterion")


def target(name: str, threads: int) -> Target:
    """The target of that name, with so many threads; ``name@host:port`` is that one on another machine.

    Raises:
        ArgumentError: no such name, or it is something else.
        TargetError: the other machine cannot be reached, refuses the token, or does not serve it.
    """
    name, at, address = name.partition("@")
    found = with_threads(_a(Target, name, resolve(name, targets(), "target"), "target"), threads)
    return remote(address, found) if at else found


def targets() -> dict[str, Target]:
    """Secateur's own targets, by public name."""
    return _public(Target)


def allocation(name: str) -> Any:
    """The allocation of that name.

    Raises:
        ArgumentError: no such name.
    """
    return resolve(name, _named(ALLOCATIONS), "allocation")


def normalization(name: str) -> Any:
    """The normalization of that name.

    Raises:
        ArgumentError: no such name.
    """
    return resolve(name, _named(NORMALIZATIONS), "normalization")


def on_outputs(
    named: Sequence[Any], model: nn.Module, data: Batches | None, criterion: Criterion
) -> tuple[list[Any], Batches | None]:
    """Allocations and normalizations, those that go by outputs made for the model; and what is left to calibrate on.

    Those look at the first batches, which a criterion that fits statistics does not see then.
    """
    if data is None or not any(f in BY_OUTPUTS for f in named):
        return list(named), data
    seen, rest = held_out(data, SEEN) if criterion.stat is not None else (list(itertools.islice(data, SEEN)), data)
    return [f(model, seen) if f in BY_OUTPUTS else f for f in named], rest


def limits(run: Cutting) -> Limits:
    """What every allocation must respect."""
    return Limits(
        run.multiple,
        run.minimum,
        run.max_sparsity,
        dict(run.per_group),
        {str(k): v for k, v in run.by_kind.items()},
    )


def budget(
    text: BudgetText | Sequence[BudgetText], model: nn.Module, example: Example, on: Target | None
) -> Budget | list[Budget]:
    """The budget on a model, or each of several; a latency and an energy are measured here, once.

    Raises:
        ArgumentError: a latency or energy budget without a target. TargetError: the target refuses the model.
        BudgetError: an energy budget where joules can only be estimated.
    """
    if isinstance(text, BudgetText):
        return _limited(text, cost_of(text.cost, model, example, on))
    costs = {t.cost: cost_of(t.cost, model, example, on) for t in text}
    return [_limited(t, costs[t.cost]) for t in text]


def cost_of(name: str, model: nn.Module, example: Example, on: Target | None) -> Cost:
    """The cost of that name; a latency and an energy are measured here.

    Raises:
        ArgumentError: one that is measured, without a target. TargetError: the target refuses the model.
    """
    if name == "latency":
        if on is None:
            raise ArgumentError("a latency budget is measured on a target: add --target onnxruntime or eager")
        return latency(model, example, on)
    if name == "energy":
        if on is None:
            raise ArgumentError("an energy budget is measured on a target: add --target onnxruntime or eager")
        return energy(model, example, on, counter_for(model))
    if name == "macs":
        return macs(model, example)
    return params(model) if name == "params" else nbytes(model)


def _limited(text: BudgetText, cost: Cost) -> Budget:
    if text.fraction is not None:
        return Budget.of_dense(cost, text.fraction)
    assert text.limit is not None
    return Budget(cost, text.limit)


def running(run: RunFile, model: nn.Module) -> Running | None:
    """What the report is to say about energy, CO2 and price; None for nothing.

    Raises:
        ArgumentError: no such country. TargetError: there is no source of joules.
    """
    return running_of(device_of(model), run.energy, run.watts, run.country, run.price_per_hour, run.price_per_kwh)


def quality(spec: str) -> Quality:
    """The function ``module:name`` that judges a model.

    Raises:
        ArgumentError: no such name, or it is not a function.
    """
    judge: Quality = resolve(spec, {}, "quality")
    if not callable(judge):
        raise ArgumentError(f"quality {spec} is {type(judge).__name__}, expected a function of the model")
    return judge


def recoveries(
    stages: Sequence[RecoverText], data: Batches | None, seed: int = 0, work: Path | None = None
) -> list[Recovery]:
    """The stages of recovery, in order.

    A function that returns a `Recovery` is called with the arguments given; ``batches``, ``seed`` and
    ``checkpoint`` are filled in where it takes them. Text for an argument that is a function names one.

    Raises:
        ArgumentError: no such name or argument (says the nearest), or a stage needs data and there is none.
    """
    return [_recovery(stage, i, data, seed, work) for i, stage in enumerate(stages)]


def _recovery(stage: RecoverText, number: int, data: Batches | None, seed: int, work: Path | None) -> Recovery:
    found = resolve(stage.name, _returning(Recovery), "recovery")
    if isinstance(found, Recovery):
        if stage.args or stage.call:
            raise ArgumentError(f"recovery {stage.name} takes no arguments, got {stage.written()}")
        return found
    if not callable(found):
        raise ArgumentError(f"recovery {stage.name} is {type(found).__name__}, expected a function or a Recovery")
    parameters = inspect.signature(found).parameters
    any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    args = dict(stage.args)
    for key in args:
        if key not in parameters and not any_key:
            raise ArgumentError(f"recovery {stage.name} has no argument {key!r}: {nearest(key, parameters)}")
    if stage.call is not None:
        args = {next(iter(parameters)): stage.call, **args}
    args = {k: _value(found, k, v) for k, v in args.items()}
    if "batches" in parameters and "batches" not in args:
        if data is None:
            raise ArgumentError(f"recovery {stage.name} needs data: add --data")
        args["batches"] = data
    if "seed" in parameters:
        args.setdefault("seed", seed)
    if "checkpoint" in parameters and work is not None:
        args.setdefault("checkpoint", work / f"{number}-{stage.name.replace(':', '.')}")
    try:
        made = found(**args)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"recovery {stage.name}: {error}") from error
    return _a(Recovery, stage.name, made, "recovery")


def _value(function: Callable[..., Any], key: str, value: Any) -> Any:
    """Text where a function is expected names that function; all else stays."""
    if not isinstance(value, str) or not _takes_function(function, key):
        return value
    return resolve(value, {k: v for k, v in _everything().items() if callable(v)}, f"function for {key}")


def _takes_function(function: Callable[..., Any], key: str) -> bool:
    try:
        hint = typing.get_type_hints(function).get(key)
    except NameError:
        return False
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return str not in options and any(o is Callable or typing.get_origin(o) is Callable for o in options)


def _everything() -> dict[str, Any]:
    """Secateur's public names."""
    import secateur

    return {k: v for k, v in vars(secateur).items() if not k.startswith("_") and not inspect.ismodule(v)}


def _public(kind: type) -> dict[str, Any]:
    return {k: v for k, v in _everything().items() if isinstance(v, kind)}


def _named(names: Sequence[str]) -> dict[str, Any]:
    everything = _everything()
    return {k: everything[k] for k in names if k in everything}


def _returning(kind: type) -> Mapping[str, Any]:
    """Public functions whose annotated result is ``kind``."""
    found = {}
    for name, value in _everything().items():
        returns = getattr(value, "__annotations__", {}).get("return")
        if isinstance(value, types.FunctionType) and returns in (kind, kind.__name__):
            found[name] = value
    return found


def _a(kind: type[T], name: str, value: Any, what: str) -> T:
    if not isinstance(value, kind):
        raise ArgumentError(f"{what} {name} is {type(value).__name__}, expected a secateur {kind.__name__}")
    return value
