"""Forward passes over the same data, again and again, that compute only what can have changed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import modules_of, tensors_of
from secateur.score.capture import version


@dataclass(frozen=True, eq=False)
class _Given:
    """What a call of a module gave, and how often each tensor of it had been written to by then."""

    output: Any
    versions: list[int]

    def fresh(self) -> bool:
        """Whether nothing was written over it since."""
        return _versions(self.output) == self.versions


@dataclass(eq=False)
class _Call:
    """A call of a module that has not returned: where in the pass it is, and what it has called so far."""

    path: str
    calls: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Replay:
    """Passes over a batch in which modules that returned before a change give what they gave.

    A pass runs up to a place, calls ``changes()`` there, and a weight that is used there is changed afterwards: modules
    that had returned by then cannot give anything else in the next pass. So passes that stop at one weight after the
    other take one pass together.

    A call is computed again where its output was written over since, where it writes over its inputs, or where it gives
    something besides tensors and plain values. What modules hand on besides their outputs is not seen: a model that
    does so is told by `same_inputs`, as `secateur.solve.refit.refit_` does.

    Memory: an output of each module that is in no other that returned, a batch.
    """

    model: nn.Module
    memory: dict[int, dict[str, _Given]] = field(default_factory=dict)
    _open: bool = False

    @contextlib.contextmanager
    def on(self, number: int) -> Iterator[None]:
        """Run the model on one of the batches inside of this, with nothing changed in what it computed before."""
        known, stack = self.memory.setdefault(number, {}), [_Call("")]
        modules = {name: m for name, m in modules_of(self.model).items() if not isinstance(m, torch.jit.ScriptModule)}
        own = {name: m.__dict__["forward"] for name, m in modules.items() if "forward" in m.__dict__}
        self._open = True
        try:
            for name, m in modules.items():
                m.__dict__["forward"] = self._remembering(name, m.forward, known, stack)
            yield
        finally:
            self._open = False
            for name, m in modules.items():
                m.__dict__.pop("forward", None)
                if name in own:
                    m.__dict__["forward"] = own[name]

    def changes(self) -> None:
        """What returns from here on in this pass will not be the same in the next."""
        self._open = False

    def _remembering(
        self, name: str, forward: Callable[..., Any], known: dict[str, _Given], stack: list[_Call]
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = stack[-1]
            outer.calls[name] += 1
            path = f"{outer.path}/{name}:{outer.calls[name]}"
            if (given := known.get(path)) is not None and given.fresh():
                return given.output
            taken = _versions((args, kwargs))
            stack.append(_Call(path))
            try:
                output = forward(*args, **kwargs)
            finally:
                stack.pop()
            if self._open and _plain(output) and _versions((args, kwargs)) == taken:
                for inner in [p for p in known if p.startswith(f"{path}/")]:
                    del known[inner]
                known[path] = _Given(output, _versions(output))
            return output

        return run


def _versions(values: Any) -> list[int]:
    return [version(t) for t in tensors_of(values)]


def _plain(values: Any) -> bool:
    """Tensors whose changes can be told, and plain values, in containers of any depth."""
    if isinstance(values, Tensor):
        return not values.is_inference()
    if isinstance(values, Mapping):
        return all(map(_plain, values.values()))
    if isinstance(values, (tuple, list)):
        return all(map(_plain, values))
    return values is None or isinstance(values, (bool, int, float, str))
