"""Plans that drop whole layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from secateur.errors import PlanError
from secateur.graph.depth import Layer, Survey, layers, numbers_in, survey, trouble_without
from secateur.graph.dropping import by_container
from secateur.types import Example, Plan


def drop_layers(model: nn.Module, example: Example, paths: Iterable[str | Layer], plan: Plan | None = None) -> Plan:
    """A plan that takes whole layers out of a model: children of an ``nn.ModuleList`` or ``nn.Sequential``.

    The layers behind them take their numbers, and what counts or numbers layers is set to fit: attributes that the
    forward pass reads, lists with an entry a layer, positions that the layers hold, and the counts of a config. That
    the model without them computes what it does with the identity in the place of each is tried on a copy first.

    Args:
        model: the whole model; left as it was.
        example: what its ``forward`` takes.
        paths: which to drop, from `sc.layers` or by path: ``["encoder.layer.3", "encoder.layer.8"]``.
        plan: a plan that cuts widths of the same model, to be carried out in one with this.

    Raises:
        PlanError: there is no such layer; the model needs one of them, says why; nothing would be left of a list.
        TraceError: the model does not run on the example.

    Time: about three passes, and one for every number that may be a count of layers.

    Example:
        >>> import torch, secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> plan = drop_layers(net, torch.randn(3, 4), ["1"])
        >>> [tuple(p.shape) for p in sc.apply(plan, net).parameters() if p.dim() == 2]
        [(8, 4), (8, 8), (2, 8)]
    """
    asked = [paths] if isinstance(paths, (str, Layer)) else list(paths)
    wanted = {path if isinstance(path, str) else path.path for path in asked}
    seen = survey(model, example)
    _check(model, example, wanted, seen)
    gone = tuple(path for path, _ in model.named_modules() if path in wanted)
    changes = numbers_in(model, example, seen, gone)
    problem = trouble_without(model, example, gone, changes)
    if problem:
        raise PlanError(
            f"{_words(gone)} cannot be dropped{' together' * (len(gone) > 1)}: {problem}. {_possible(model, example)}"
        )
    if plan is None:
        return Plan({}, {}, changes, {}, {}, {"criterion": "drop_layers"}, layers=gone)
    _check_both(plan, gone)
    for at, change in changes.items():
        if plan.attributes.get(at, change) != change:
            raise PlanError(
                f"the plan sets {'.'.join(filter(None, at))} to {plan.attributes[at][1]}, and without {_words(gone)} "
                f"it would be {change[1]}: drop layers first, apply, and make the other plan for what is left"
            )
    return replace(plan, attributes={**plan.attributes, **changes}, layers=gone)


def _check(model: nn.Module, example: Example, wanted: set[str], seen: Survey) -> None:
    """What one pass shows of the layers that are to go."""
    if not wanted:
        raise PlanError("no layers are given to drop: give paths, such as those of sc.layers(model, example)")
    known = {path for paths in seen.containers.values() for path in paths}
    for path in sorted(wanted):
        if path not in known:
            raise PlanError(
                f"{path!r} is not a child of an nn.ModuleList or nn.Sequential of {type(model).__name__}. "
                f"{_possible(model, example)}"
            )
        if path in seen.fixed:
            raise PlanError(f"{path} cannot be dropped: it {seen.fixed[path]}. {_possible(model, example)}")
        outer = next((other for other in wanted if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise PlanError(f"{path} goes with {outer} already: name one of them")
    for container in by_container(wanted):
        if wanted.issuperset(seen.containers[container]):
            raise PlanError(f"nothing would be left of {container or 'the model'}: keep one of its layers")


def _check_both(plan: Plan, gone: tuple[str, ...]) -> None:
    if plan.layers:
        raise PlanError(f"the plan drops {_words(plan.layers)} already: give all layers at once")
    for module, *_ in plan.sizes:
        inside = [path for path in gone if path.startswith(f"{module}.".lstrip("."))]
        if inside:
            raise PlanError(
                f"the plan replaces sizes in the code of {module or 'the model'} by their places in its forward pass, "
                f"and those shift without {_words(inside)}: drop layers first, apply, and make the other plan for "
                "what is left"
            )


def _possible(model: nn.Module, example: Example) -> str:
    found = [layer.path for layer in layers(model, example)]
    return f"Layers that can be, each by itself: {_words(found)}" if found else "No layer of this model can be"


def _words(paths: Iterable[str]) -> str:
    return ", ".join(paths)
