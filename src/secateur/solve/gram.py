"""What a linear layer is fed, as its moments: all that one-shot solvers need to know of the calibration data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateur.errors import ArgumentError, DataError

log = logging.getLogger("secateur")

T = TypeVar("T")

PANEL = 512
"""Columns of a second moment that one product makes, from the diagonal on: nearly half of the work is saved."""

PRECISE = 1024
"""Up to so many inputs a factor is found in float64, where that costs little; above, in the moment's own type."""

LIMIT = 1.0
"""A damping that leaves the second moment singular is multiplied by ten, up to this."""


@dataclass(frozen=True, eq=False)
class Gram:
    """Moments of the inputs ``x`` of a linear layer; layers that share an input share one, and what is made of it.

    Attributes:
        second: ``H = E x xᵀ``, (d, d), float32 or float64.
        mean: ``E x``, (d,). rows: how many inputs they are the mean of.
        cross: ``C = E x_dense xᵀ``, (d, d), or None. With it the outputs to reproduce are ``W x_dense``, those of the
            dense model, on the inputs ``x`` of the pruned one; without it, ``W x``.
        held: moments of calibration data that was kept aside, to choose by, or None.
        name: of the layer, for messages.

    Raises:
        DataError: no rows, or moments that are not finite.
        ArgumentError: shapes that do not fit each other.

    Example:
        >>> gram = Gram.of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> gram.second, gram.mean, gram.rows, gram.dead
        (tensor([[5., 0.],
                [0., 0.]]), tensor([2., 0.]), 2, tensor([False,  True]))
    """

    second: Tensor
    mean: Tensor
    rows: int
    cross: Tensor | None = None
    held: Gram | None = None
    name: str = ""
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        d = len(self.mean)
        moments = (self.second, self.cross, None if self.held is None else self.held.second)
        shapes = [tuple(t.shape) for t in moments if t is not None]
        if any(shape != (d, d) for shape in shapes):
            raise ArgumentError(f"moments of {d} inputs have shape ({d}, {d}); got {shapes}{self._of()}")
        if self.rows < 1:
            raise DataError(f"no calibration token reached the inputs{self._of()}: give more text, or leave it dense")
        for moment in (self.second, self.mean, self.cross):
            if moment is not None and not bool(moment.isfinite().all()):
                bad = (~moment.isfinite()).reshape(-1, d).any(0)
                raise DataError(
                    f"{int(bad.sum())} of the {d} inputs{self._of()} are NaN or inf on the calibration data (the first "
                    f"is {int(bad.int().argmax())}): look for NaN in the weights before it, or run the model in float32"
                )

    @classmethod
    def of(cls, x: Tensor, dense: Tensor | None = None, **more: Any) -> Gram:
        """Of inputs (..., d) that are all there; ``dense``: the dense model's at the same places."""
        sums = GramSum.zeros(x.shape[-1], torch.float64 if x.dtype == torch.float64 else torch.float32, x.device)
        return sums.add_(x, dense).gram(**more)

    def _of(self) -> str:
        return f" of {self.name}" if self.name else ""

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns; the second time under the same key, what it returned the first time."""
        if key not in self._made:
            self._made[key] = make()
        value: T = self._made[key]
        return value

    @property
    def square(self) -> Tensor:
        """``E x_j²``, (d,): the diagonal."""
        return self.second.diagonal()

    @property
    def dead(self) -> Tensor:
        """Inputs that are zero on all calibration data, bool (d,)."""
        return self.second.diagonal() <= 0

    @property
    def scale(self) -> float:
        """Mean of the diagonal over the inputs that are not dead; 1 where all are."""
        diagonal = self.second.diagonal().double()
        return float(diagonal.sum() / (diagonal > 0).sum()) if bool((diagonal > 0).any()) else 1.0

    def damped(self, damping: float) -> Tensor:
        """``H + damping * scale * I``; a dead input has ``scale`` on the diagonal as well."""
        out = self.second.clone()
        out.diagonal().add_(self.dead * self.scale + damping * self.scale)
        return out

    def factor(self, damping: float = 0.01) -> Tensor:
        """Upper ``U`` with ``UᵀU = (H + damping * scale * I)⁻¹``, found once for each damping.

        A damping that leaves the matrix singular is raised tenfold, up to 1, and the log says so.
        Time: d³ multiplications; memory: three matrices.

        Raises:
            DataError: it stays singular.

        Example:
            >>> Gram.of(torch.eye(2) * 2).factor(1.0)
            tensor([[0.5000, 0.0000],
                    [0.0000, 0.5000]])
        """
        return self.once(("factor", damping), lambda: self._factor(damping))

    def _factor(self, damping: float) -> Tensor:
        tried = damping
        while True:
            # H = R Rᵀ with R upper is a Cholesky factor seen from the other end, and U = R⁻¹: no inverse of H is made
            seen = precise(self.damped(tried)).flip(0, 1)
            lower, info = torch.linalg.cholesky_ex(seen)
            del seen
            if not int(info):
                upper = invert_upper_(lower.flip(0, 1))
                if bool(upper.isfinite().all()):
                    return upper.to(self.second.dtype)
            if tried > LIMIT / 10:
                break
            log.warning("second moment%s is singular with damping %g: trying ten times as much", self._of(), tried)
            tried = 10 * tried or 1e-6
        raise DataError(
            f"the second moment of the inputs{self._of()} ({len(self.mean)} inputs, {self.rows} rows) stays singular "
            f"with damping {tried:g}: give more calibration text, or a damping of 0.01 or more"
        )

    def target(self, weight: Tensor, damping: float = 0.01) -> Tensor:
        """The weight to prune in the metric of ``H``: itself, or with `cross` the one that best undoes earlier errors.

        ``W_t = W + W (C - H) (H + λI)⁻¹`` minimises ``E ||W x_dense - W_t x||² + λ ||W_t - W||²``, and for any ``V``
        that loss is ``tr (V - W_t)(H + λI)(V - W_t)ᵀ`` plus a constant, ``λ = damping * scale``.

        Args:
            weight: (outputs, d). damping: as of `factor`.
        """
        if self.cross is None:
            return weight
        upper = self.factor(damping).to(weight.dtype)
        return weight + (weight @ (self.cross - self.second).to(weight.dtype)) @ upper.T @ upper

    def moved(self, weight: Tensor) -> Tensor:
        """``E y xᵀ`` of the outputs ``y`` to reproduce: ``W C``, or ``W H`` without `cross`."""
        return weight @ (self.second if self.cross is None else self.cross).to(weight.dtype)

    def loss(self, weight: Tensor, dense: Tensor) -> float:
        """``E ||W x - y||²`` for the outputs ``y`` to reproduce, less the same of the dense weight.

        Without `cross` it is ``tr (W - W_dense) H (W - W_dense)ᵀ``.

        Example:
            >>> Gram.of(torch.eye(2)).loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
            2.0
        """
        change = (weight - dense).double()
        out = (change * (change @ self.second.double())).sum()
        if self.cross is not None:
            out -= 2 * (change * (dense.double() @ (self.cross - self.second).double())).sum()
        return float(out)


@dataclass(eq=False)
class GramSum:
    """Running sums of inputs, as `Gram` wants them: add batches, merge those of other processes, save and go on.

    The products are float32 (float64 for float64 sums) and only those from the diagonal on. Sums are float32 by
    default: half of float64's memory, and with products over hundreds of rows a relative error of about 1e-6.

    Attributes:
        second: sum of ``x xᵀ``, its upper triangle by panels, (d, d). total: sum of ``x``, (d,). rows: int64, ().
        cross: sum of ``x_dense xᵀ``, or None until one is given.
    """

    second: Tensor
    total: Tensor
    rows: Tensor
    cross: Tensor | None = None

    @classmethod
    def zeros(
        cls, d: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", cross: bool = False
    ) -> GramSum:
        """Nothing added yet; ``cross`` where the dense model's inputs will be given as well."""
        square = lambda: torch.zeros(d, d, dtype=dtype, device=device)  # noqa: E731
        total = torch.zeros(d, dtype=dtype, device=device)
        rows = torch.zeros((), dtype=torch.int64, device=device)
        return cls(square(), total, rows, square() if cross else None)

    def add_(self, x: Tensor, dense: Tensor | None = None) -> GramSum:
        """Add inputs (..., d) of any float type; ``dense``: the dense model's at the same places, all times or never.

        Raises:
            ArgumentError: the dense inputs are given for some batches only, or have another shape.

        Example:
            >>> GramSum.zeros(1).add_(torch.ones(3, 1)).add_(torch.zeros(1, 1)).gram().second
            tensor([[0.7500]])
        """
        rows = x.detach().reshape(-1, x.shape[-1]).to(self.second.dtype)
        if dense is not None and self.cross is None and not int(self.rows):
            self.cross = torch.zeros_like(self.second)
        if (dense is None) != (self.cross is None) or (dense is not None and dense.shape != x.shape):
            raise ArgumentError("the dense model's inputs belong to every batch, in the shape of the pruned one's")
        d = rows.shape[1]
        columns = rows.T.contiguous()  # so that panels lie together
        for at in range(0, d, PANEL):
            self.second[at : at + PANEL, at:].addmm_(columns[at : at + PANEL], columns[at:].T)
        self.total += rows.sum(0)
        self.rows += len(rows)
        if dense is not None and self.cross is not None:
            self.cross.addmm_(dense.detach().reshape(-1, d).to(self.second.dtype).T, rows)
        return self

    def merge_(self, other: GramSum) -> GramSum:
        """Add the sums of another part of the data."""
        if (self.cross is None) != (other.cross is None):
            raise ArgumentError("one of two sums knows the dense model's inputs, the other does not")
        for name, mine in self.tensors().items():
            mine += other.tensors()[name].to(mine.device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The sums themselves, to be saved, or reduced over processes in place; ``GramSum(**tensors)`` goes on."""
        parts = {"second": self.second, "total": self.total, "rows": self.rows}
        return parts if self.cross is None else parts | {"cross": self.cross}

    def gram(self, **more: Any) -> Gram:
        """The means; ``more``: further attributes of `Gram`.

        Raises:
            DataError: nothing was added, or what was is not finite.
        """
        n = int(self.rows)
        second = self.second / max(n, 1)
        for at in range(0, len(second), PANEL):
            rest = at + PANEL
            second[rest:, at:rest] = second[at:rest, rest:].T
            corner = second[at:rest, at:rest].triu()
            second[at:rest, at:rest] = corner + corner.triu(1).T
        return Gram(second, self.total / max(n, 1), n, None if self.cross is None else self.cross / max(n, 1), **more)


def precise(matrix: Tensor) -> Tensor:
    """In float64 where that costs little."""
    return matrix.double() if len(matrix) <= PRECISE else matrix


def invert_upper_(r: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix in place, by halves: products where a plain solve would see a full matrix.

    Example:
        >>> invert_upper_(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
        tensor([[ 0.5000, -0.5000],
                [ 0.0000,  1.0000]])
    """
    d = len(r)
    if d <= 128:
        return r.copy_(torch.linalg.solve_triangular(r, torch.eye(d, dtype=r.dtype, device=r.device), upper=True))
    half = d // 2
    first, last = invert_upper_(r[:half, :half]), invert_upper_(r[half:, half:])
    r[:half, half:] = -(first @ r[:half, half:]) @ last
    return r
