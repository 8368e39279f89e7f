"""How close a pruned model comes to the dense one, or to labels: one figure each, with a 95 % interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import DataError
from secateur.types import Floats

RESAMPLES = 2000
_LEVEL = (2.5, 97.5)
_CHUNK = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class Figure:
    """A quality figure with its 95 % confidence interval.

    Attributes:
        value: the figure over all items. low, high: the interval. n: how many items it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def cosine(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """Mean cosine between the rows of two matrices: ``mean_i <a_i, b_i> / (|a_i| |b_i|)``.

    Args:
        a: shape (n, d), such as the dense model's embeddings.
        b: the same shape, the pruned model's.
        seed: of the bootstrap over rows (percentile interval; Efron and Tibshirani 1993, chapter 13).
        resamples: how many bootstrap draws.

    Raises:
        DataError: on fewer than 2 rows, other shapes, values that are not finite, or a row of zeros.

    Example:
        >>> cosine([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]]).value
        0.5
    """
    x, y = _pair("cosine", a, b)
    unit_x, unit_y = _unit_rows("cosine: a", x), _unit_rows("cosine: b", y)
    return _mean_figure(np.clip((unit_x * unit_y).sum(axis=1), -1.0, 1.0), seed, resamples)


def pair_correlation(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """Pearson correlation of all pairwise cosine similarities under ``a`` with those under ``b``.

    With ``A_ij = cos(a_i, a_j)`` and ``B`` likewise, correlates the upper triangles (``i < j``). It asks
    whether the pruned model calls the same items alike, whatever rotation its space has. The interval draws
    items, not pairs (pairs that share an item depend on each other); no item is paired with its own copy.

    Args:
        a: shape (n, d).
        b: shape (n, e); e may differ from d.
        seed: of the bootstrap over items.
        resamples: how many bootstrap draws.

    Raises:
        DataError: on fewer than 3 items, other shapes, values that are not finite, a row of zeros, or
            similarities that are all the same.

    Example:
        >>> eye = np.eye(4) + np.arange(16).reshape(4, 4)
        >>> round(pair_correlation(eye, 2 * eye, resamples=50).value, 6)
        1.0
    """
    x, y = _matrix("pair_correlation: a", a), _matrix("pair_correlation: b", b)
    n = len(x)
    if len(y) != n or n < 3:
        raise DataError(f"pair_correlation: a has {n} items and b has {len(y)}; give the same items, 3 or more")
    unit_x, unit_y = _unit_rows("pair_correlation: a", x), _unit_rows("pair_correlation: b", y)
    upper = np.triu_indices(n, 1)
    pairs = []
    for name, unit in (("a", unit_x), ("b", unit_y)):
        flat = (unit @ unit.T)[upper]
        if np.ptp(flat) < 1e-12:
            raise DataError(f"pair_correlation: all similarities under {name} are {flat[0]:.6g}: nothing to correlate")
        full = np.zeros((n, n))
        full[upper] = flat - flat.mean()  # centred first: the weighted sums below then lose no digits
        pairs.append(full + full.T)
    ones = np.ones((1, n))
    value = float(_weighted_pearson(pairs[0], pairs[1], ones)[0])
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    return Figure(value, *_interval(_weighted_pearson(pairs[0], pairs[1], counts)), n)


def spearman(scores: npt.ArrayLike, human: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """Spearman rank correlation of a model's scores with human judgements, ties at their mean rank.

    Args:
        scores: shape (n,).
        human: shape (n,).
        seed: of the bootstrap over items.
        resamples: how many bootstrap draws.

    Raises:
        DataError: on fewer than 3 items, other shapes, values that are not finite, or all values equal.

    Example:
        >>> round(spearman([0.1, 0.4, 0.2, 0.9], [1, 3, 2, 4], resamples=50).value, 6)
        1.0
    """
    from scipy import stats  # slow to import

    x, y = _vector("spearman: scores", scores), _vector("spearman: human", human)
    n = len(x)
    if len(y) != n or n < 3:
        raise DataError(f"spearman: {n} scores and {len(y)} human judgements; give the same items, 3 or more")
    for name, v in (("scores", x), ("human", y)):
        if np.ptp(v) == 0:
            raise DataError(f"spearman: all {n} {name} are {v[0]:.6g}: ranks need values that differ")

    def of(rows: npt.NDArray[np.int64]) -> Floats:
        ranks_x, ranks_y = stats.rankdata(x[rows], axis=1), stats.rankdata(y[rows], axis=1)
        cx, cy = ranks_x - ranks_x.mean(axis=1, keepdims=True), ranks_y - ranks_y.mean(axis=1, keepdims=True)
        return _divide((cx * cy).sum(axis=1), np.sqrt((cx**2).sum(axis=1) * (cy**2).sum(axis=1)))

    value = float(of(np.arange(n)[None])[0])
    return Figure(value, *_interval(_resample(of, n, seed, resamples)), n)


def accuracy(pred: npt.ArrayLike, labels: npt.ArrayLike) -> Figure:
    """Fraction of predictions equal to their labels, with the Wilson interval (Wilson 1927).

    Args:
        pred: predicted classes, shape (n,), of any type.
        labels: true classes, shape (n,).

    Raises:
        DataError: on no items, other shapes, or NaN.

    Example:
        >>> f = accuracy([1, 2, 3, 3], [1, 2, 3, 4])
        >>> f.value, round(f.low, 3), round(f.high, 3)
        (0.75, 0.301, 0.954)
    """
    p, t = _classes("accuracy: pred", pred), _classes("accuracy: labels", labels)
    if len(p) != len(t):
        raise DataError(f"accuracy: {len(p)} predictions for {len(t)} labels; give one prediction a label")
    return _wilson(int((p == t).sum()), len(p))


def agreement(logits_a: npt.ArrayLike, logits_b: npt.ArrayLike) -> Figure:
    """Fraction of items on which two models name the same first class, with the Wilson interval.

    Args:
        logits_a: shape (n, classes); a tie goes to the lower class.
        logits_b: the same shape.

    Raises:
        DataError: on no items, other shapes, or values that are not finite.

    Example:
        >>> agreement([[1.0, 2.0], [3.0, 0.0]], [[0.0, 5.0], [0.0, 1.0]]).value
        0.5
    """
    x, y = _pair("agreement", logits_a, logits_b, least=1)
    return _wilson(int((x.argmax(axis=1) == y.argmax(axis=1)).sum()), len(x))


def logit_kl(
    logits_dense: npt.ArrayLike, logits_small: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """Mean Kullback-Leibler divergence of the pruned model's classes from the dense one's, nats.

    ``mean_i sum_c p_ic (log p_ic - log q_ic)``, ``p = softmax(dense)``, ``q = softmax(small)``; 0 if equal.

    Args:
        logits_dense: shape (n, classes).
        logits_small: the same shape.
        seed: of the bootstrap over items.
        resamples: how many bootstrap draws.

    Raises:
        DataError: on fewer than 2 items, other shapes, or values that are not finite.

    Example:
        >>> logit_kl([[0.0, 0.0], [1.0, 2.0]], [[5.0, 5.0], [1.0, 2.0]]).value
        0.0
    """
    x, y = _pair("logit_kl", logits_dense, logits_small)
    from scipy import special  # slow to import

    log_p, log_q = special.log_softmax(x, axis=1), special.log_softmax(y, axis=1)
    each = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return _mean_figure(np.maximum(each, 0.0), seed, resamples)  # rounding can give -1e-17


def _array(name: str, x: npt.ArrayLike, shape: str, ndim: int) -> Floats:
    try:
        out = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"{name} is not an array of numbers of shape {shape}: {e}") from e
    if out.ndim != ndim or out.size == 0:
        raise DataError(f"{name} has shape {out.shape}, expected {shape} with at least one item")
    bad = int((~np.isfinite(out)).sum())
    if bad:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(out))[0])
        raise DataError(
            f"{name} holds {bad} values that are not finite, the first at {where}: check the model's outputs"
        )
    return out


def _matrix(name: str, x: npt.ArrayLike) -> Floats:
    return _array(name, x, "(items, features)", 2)


def _vector(name: str, x: npt.ArrayLike) -> Floats:
    return _array(name, x, "(items,)", 1)


def _classes(name: str, x: npt.ArrayLike) -> npt.NDArray[Any]:
    out = np.asarray(x)
    if out.ndim != 1 or out.size == 0:
        raise DataError(f"{name} has shape {out.shape}, expected (items,) with at least one item; argmax logits first")
    if out.dtype.kind == "f" and np.isnan(out).any():
        raise DataError(f"{name} holds {int(np.isnan(out).sum())} NaN: give a class for every item")
    return out


def _pair(what: str, a: npt.ArrayLike, b: npt.ArrayLike, least: int = 2) -> tuple[Floats, Floats]:
    names = {"logit_kl": ("logits_dense", "logits_small"), "agreement": ("logits_a", "logits_b")}.get(what, ("a", "b"))
    x, y = _matrix(f"{what}: {names[0]}", a), _matrix(f"{what}: {names[1]}", b)
    if x.shape != y.shape:
        raise DataError(f"{what}: {names[0]} has shape {x.shape} and {names[1]} {y.shape}; give the same items to both")
    if len(x) < least:
        raise DataError(f"{what}: {len(x)} item gives no interval; give at least {least}")
    return x, y


def _unit_rows(name: str, x: Floats) -> Floats:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    zero = np.flatnonzero(norms[:, 0] == 0)
    if zero.size:
        raise DataError(f"{name}: row {int(zero[0])} is all zeros ({zero.size} such rows): it has no direction")
    out: Floats = x / norms
    return out


def _divide(top: Floats, bottom: Floats) -> Floats:
    """Quotient, NaN where a draw holds nothing but copies of one value."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _weighted_pearson(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Correlation over pairs weighted ``c_i c_j``, for each row ``c``; ``a``, ``b`` have zero diagonals."""

    def total(m: Floats) -> Floats:
        out: Floats = ((counts @ m) * counts).sum(axis=1)
        return out

    weight = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
    mean_a, mean_b = _divide(total(a), weight), _divide(total(b), weight)
    cov = _divide(total(a * b), weight) - mean_a * mean_b
    var_a, var_b = _divide(total(a * a), weight) - mean_a**2, _divide(total(b * b), weight) - mean_b**2
    floor = 1e-12 * max(float(np.abs(a).max()), 1e-300) ** 2, 1e-12 * max(float(np.abs(b).max()), 1e-300) ** 2
    usable = (var_a > floor[0]) & (var_b > floor[1])  # a draw of two items has one pair: no spread, only rounding
    product = np.where(usable, var_a * var_b, 0.0)
    return np.clip(_divide(cov, np.sqrt(product)), -1.0, 1.0)


def _resample(of: Callable[[npt.NDArray[np.int64]], Floats], n: int, seed: int, resamples: int) -> Floats:
    """``of`` on ``resamples`` draws of n items with replacement, in chunks that fit in memory."""
    rng = np.random.default_rng(seed)
    step = max(1, min(resamples, _CHUNK // n))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([of(rng.integers(n, size=(size, n))) for size in sizes])


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, _LEVEL)
    return float(low), float(high)


def _mean_figure(each: Floats, seed: int, resamples: int) -> Figure:
    draws = _resample(lambda rows: each[rows].mean(axis=1), len(each), seed, resamples)
    return Figure(float(each.mean()), *_interval(draws), len(each))


def _wilson(hits: int, n: int) -> Figure:
    from scipy import stats  # slow to import

    interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Figure(hits / n, float(interval.low), float(interval.high), n)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(100, 8))
    near = dense + 0.3 * rng.normal(size=dense.shape)
    for figure in (cosine, pair_correlation, agreement, logit_kl):
        print(f"{figure.__name__:>16}  {figure(dense, near)}")
