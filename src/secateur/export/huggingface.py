"""A folder that transformers loads by itself: for cuts that a configuration can say."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from secateur.atomic import new_folder
from secateur.calling import run, tensors_of
from secateur.errors import ArgumentError, FormatError
from secateur.export.prepare import first_line, need, snapshot
from secateur.types import Example, Plan

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Path_: TypeAlias = tuple[str | int, ...]
Changes: TypeAlias = frozenset[tuple[Path_, int]]
"""Where in a configuration -> the new int."""

ROUNDING = 1e-5
"""Largest relative difference of outputs that counts as none: kernels may add up in another order."""

BUILDS = 2000
"""Most configurations tried."""


def save_pretrained(
    folder: Path | str, model: nn.Module, plan: Plan, example: Example | None = None, *, overwrite: bool = False
) -> Path:
    """Write a cut transformers model so that plain ``from_pretrained`` loads it, without secateur.

    A configuration has one number for all layers, so every layer must have lost equally many: with
    ``sc.uniform``, or limits that say so. Ints of the configuration are changed in the proportions of the plan until
    the class that it builds has the shapes of the model; what was written is loaded again and must compute the same on
    the example. Heads can go where the configuration has the width of a head beside their number.

    Args:
        folder: new or empty, unless ``overwrite``.
        model: the cut model, of a transformers class.
        plan: what cut it.
        example: what its ``forward`` takes; None: the ``dummy_inputs`` of its class.
        overwrite: replace a folder that is in use.

    Raises:
        FormatError: no configuration says this cut; names the first tensor that does not fit. Or the folder is in use.
        ArgumentError: the model is no transformers model, or does not run on the example.
        TargetError: transformers is missing.

    Memory: the model twice. Time: a construction of the class without weights for each int that is tried.

    Example:
        >>> import tempfile, torch, secateur as sc, transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
        >>> net, x = transformers.BertModel(config).eval(), {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, x), ignore=["*:head*"]), 0.5, seed=0)
        >>> small = sc.apply(plan, net)
        >>> folder = save_pretrained(tempfile.mkdtemp() + "/small", small, plan, x)
        >>> transformers.AutoModel.from_pretrained(folder).config.intermediate_size
        6
    """
    need("huggingface", "transformers")
    if not hasattr(getattr(model, "config", None), "to_dict") or not hasattr(type(model), "from_pretrained"):
        raise ArgumentError(
            f"{type(model).__name__} is no transformers model (no config, no from_pretrained): use sc.save and sc.load"
        )
    expected, inputs = _outputs(model, example)
    wanted = _shapes(model)
    search, closest = _Search(model, plan), float("inf")
    with new_folder(Path(folder), overwrite) as temporary:
        for config in search.configs(wanted):
            _write(temporary, model, config)
            found = tensors_of(run(snapshot(_loaded(temporary, model)), inputs))
            closest = min(closest, error := _difference(expected, found))
            if error <= ROUNDING:
                return Path(folder)
        raise FormatError(_refusal(model, search, wanted, closest))


def configurations(model: nn.Module, plan: Plan) -> Iterator[Any]:
    """Configurations of transformers that build the shapes of a cut model, those with the fewest changes first.

    Args:
        model: the cut model; parameters on the meta device will do. plan: what cut it.
    """
    yield from _Search(model, plan).configs(_shapes(model))


def _outputs(model: nn.Module, example: Example | None) -> tuple[list[Tensor], Example]:
    given: Any = getattr(model, "dummy_inputs", None) if example is None else example
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        if example is None:
            given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}
        with torch.no_grad(), _quiet():
            return tensors_of(run(snapshot(model), given)), given
    except Exception as error:
        said = "its own dummy_inputs" if example is None else "the example"
        raise ArgumentError(
            f"{type(model).__name__} does not run on {said}: {first_line(error)}; give save_pretrained an example of "
            "what its forward takes, on the model's device"
        ) from error


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over the largest output."""
    worst = 0.0
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return float("inf")
    for a, b in zip(expected, found, strict=True):
        if a.numel() and not torch.equal(a, b):
            a, b = a.double(), b.double()
            worst = max(worst, ((a - b).abs().max() / a.abs().max()).nan_to_num(float("inf")).item())
    return worst


def _shapes(model: nn.Module) -> Shapes:
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


class _Search:
    """Configurations that build the shapes of a model, found by changing ints one by one."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.config, self.plan = model, model.config, plan
        self.built = 0
        self.nearest: Shapes = {}  # shapes of the configuration that missed the fewest axes
        self.missed: int | None = None

    def configs(self, wanted: Shapes) -> Iterator[Any]:
        """Those that fit, those with the fewest changes first."""
        start = self._explicit()
        choices, seen, queue, doubtful = self._choices(), {start}, [start], []
        while queue:
            changes = queue.pop(0)
            wrong = self._wrong(changes, wanted)
            if wrong is None:
                continue
            if not wrong:
                changes = changes if self._wrong(changes - start, wanted) else changes - start
                if _floats(self._build(changes)) == _floats(self.model):
                    yield self._with(changes)
                else:  # another scale, mostly: more heads that are narrower have the same shapes
                    doubtful.append(changes)
                continue
            better: list[tuple[int, Changes]] = []
            failing: list[tuple[Path_, int]] = []
            for choice in choices:
                more = changes | {choice}
                if more in seen or any(choice[0] == path for path, _ in changes):
                    continue
                seen.add(more)
                left = self._wrong(more, wanted)
                if left is None:
                    failing.append(choice)  # may fit together with another: as many heads as key heads, or more
                elif left < wrong:
                    better.append((len(left), more))
            queue += [more for _, more in sorted(better, key=lambda found: found[0])]
            if changes == start:  # an int that helped nowhere at first will not later, unless nothing could be built
                useful = {choice for _, more in better for choice in more} | set(failing)
                choices = [c for c in choices if c in useful]
        yield from map(self._with, doubtful)

    def _explicit(self) -> Changes:
        """The width of a head where the configuration leaves it to follow from the number of heads."""
        held = [getattr(m, "head_dim", None) for m in self.model.modules()]
        widths = {n for n in held if isinstance(n, int)}
        if len(widths) != 1 or getattr(self.config, "head_dim", None) is not None:
            return frozenset()
        return frozenset({(("head_dim",), widths.pop())})

    def _choices(self) -> list[tuple[Path_, int]]:
        """Every int of the configuration, in the proportions that the plan cuts by; and what it leaves open."""
        kept = [(int(m.sum()), int(m.size)) for m in (*self.plan.axes.values(), *self.plan.keep.values())]
        ratios = sorted({Fraction(*pair) for pair in kept if pair[0] < pair[1]})
        said = (*self.plan.attributes.values(), *self.plan.sizes.values())
        sizes = {n for n, _ in kept} | {new for _, new in said if isinstance(new, int)}
        found: list[tuple[Path_, int]] = []
        for path, value in _leaves(self.config):
            if value is None:
                found += [(path, n) for n in sorted(sizes)]
            else:
                new = {int(value * r) for r in ratios if (value * r).denominator == 1}
                new |= {n for old, n in said if old == value and isinstance(n, int)}
                found += [(path, n) for n in sorted(new, reverse=True) if n > 0]
        return found

    def _wrong(self, changes: Changes, wanted: Shapes) -> set[tuple[str, int]] | None:
        """Axes of tensors that do not come out; None if the class refuses the configuration.

        Axes, since what is right of one axis alone counts: one int of the configuration changes one of a matrix.
        """
        self.built += 1
        if self.built > BUILDS:
            return None
        try:
            shapes = _shapes(self._build(changes))
        except Exception:  # configurations refuse what does not divide, each in its own way
            return None
        wrong = {miss for n in wanted.keys() | shapes.keys() for miss in _misses(n, wanted.get(n), shapes.get(n))}
        if self.missed is None or len(wrong) < self.missed:
            self.missed, self.nearest = len(wrong), shapes
        return wrong

    def _build(self, changes: Changes) -> nn.Module:
        config = self._with(changes)
        type(config).from_dict(config.to_dict())  # what is set may pass where what is read is refused
        with torch.device("meta"):
            built: nn.Module = type(self.model)(config)
        return built

    def _with(self, changes: Changes) -> Any:
        config = copy.deepcopy(self.config)
        for path, value in changes:
            holder: Any = config
            for key in path[:-1]:
                holder = holder[key] if isinstance(key, int) else getattr(holder, key)
            last: Any = path[-1]
            if isinstance(last, int):
                holder[last] = value
            else:
                setattr(holder, last, value)
        return config


def _misses(name: str, wanted: tuple[int, ...] | None, found: tuple[int, ...] | None) -> list[tuple[str, int]]:
    """Axes that differ; -1 where there is no such tensor, or one of another rank."""
    if wanted is None or found is None or len(wanted) != len(found):
        return [(name, -1)]
    return [(name, dim) for dim, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]]


def _floats(model: nn.Module) -> dict[tuple[str, str], float]:
    """Numbers that the modules hold as attributes."""
    named = model.named_modules()
    return {(path, k): v for path, m in named for k, v in vars(m).items() if isinstance(v, float)}


def _leaves(config: Any, prefix: Path_ = ()) -> Iterator[tuple[Path_, int | None]]:
    """Ints of a configuration and of those in it; None where a size is left to the class."""
    items = enumerate(config) if isinstance(config, list) else vars(config).items()
    for key, value in items:
        path = (*prefix, key)
        if isinstance(key, str) and key.startswith("_"):
            continue
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 1):
            yield path, value
        elif isinstance(value, list) or hasattr(value, "to_dict"):
            yield from _leaves(value, path)


def _write(folder: Path, model: Any, config: Any) -> None:
    """Weights, configuration and what belongs to them, as transformers writes them."""
    for old in folder.iterdir():
        old.unlink()
    with torch.device("meta"):
        built: Any = type(model)(config)
    built.load_state_dict(model.state_dict(), assign=True)
    built.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        built.generation_config = model.generation_config
    with _quiet():
        built.save_pretrained(folder)


def _loaded(folder: Path, model: Any) -> nn.Module:
    with _quiet():
        loaded = type(model).from_pretrained(
            str(folder), dtype=model.dtype, attn_implementation=getattr(model.config, "_attn_implementation", None)
        )
    moved: nn.Module = loaded.to(model.device)
    return moved


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice: the folder is written, read and run in passing."""
    (transformers,) = need("huggingface", "transformers")
    log = transformers.utils.logging
    shown, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if shown:
            log.enable_progress_bar()


def _refusal(model: nn.Module, search: _Search, wanted: Mapping[str, tuple[int, ...]], closest: float) -> str:
    name = type(model).__name__
    advice = "Use sc.save and sc.load, which keep any cut"
    if closest < float("inf"):
        return (
            f"{name} cannot be saved for from_pretrained: a configuration has these shapes, but what it builds "
            f"computes something else (relative difference {closest:.1g}): what follows from sizes there, such as the "
            f"scale of heads, stays as it was in a cut. Cut heads whole (ignore=['*:head_dim']). {advice}"
        )
    first = next((n for n in wanted if search.nearest.get(n) != wanted[n]), "?")
    return (
        f"{name} cannot be saved for from_pretrained: no configuration gives {first} the shape {wanted.get(first)}; "
        f"the nearest gives {search.nearest.get(first)}. One configuration speaks for all layers: every layer must "
        f"lose equally many, and heads can go only where it has the width of a head for itself. {advice}"
    )
