import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from secateur.errors import DataError
from secateur.evidence import quality as q


def _two(seed, n=60, d=8, noise=0.5):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d))
    return a, a + noise * rng.normal(size=(n, d))


def test_cosine_against_sklearn_and_scipys_bootstrap():
    a, b = _two(0)
    each = np.diag(cosine_similarity(a, b))
    got = q.cosine(a, b)
    assert got.value == pytest.approx(each.mean(), abs=1e-14)
    oracle = stats.bootstrap((each,), np.mean, method="percentile", n_resamples=20000).confidence_interval
    assert got.low == pytest.approx(oracle.low, abs=3e-3)
    assert got.high == pytest.approx(oracle.high, abs=3e-3)
    assert got.n == 60


def test_cosine_of_a_matrix_with_itself_is_one():
    a, _ = _two(1)
    got = q.cosine(a, 3 * a)
    assert got.value == pytest.approx(1, abs=1e-12)
    assert got.high <= 1


def test_the_seed_decides_the_interval():
    a, b = _two(2)
    assert q.cosine(a, b, seed=1) == q.cosine(a, b, seed=1)
    assert q.cosine(a, b, seed=1) != q.cosine(a, b, seed=2)


def _pairs(a, rows):
    """Similarities of all pairs of a draw, an item's own copies left out."""
    sims = cosine_similarity(a)
    i, j = np.triu_indices(len(rows), 1)
    differ = rows[i] != rows[j]
    return sims[rows[i][differ], rows[j][differ]]


def test_pair_correlation_is_pearsons_over_the_upper_triangles():
    a, b = _two(3, n=25, noise=1.0)
    every = np.arange(25)
    assert q.pair_correlation(a, b).value == pytest.approx(
        stats.pearsonr(_pairs(a, every), _pairs(b, every))[0], abs=1e-12
    )


def test_pair_correlation_bootstrap_against_a_loop_over_drawn_items():
    a, b = _two(4, n=20, noise=1.0)
    rng = np.random.default_rng(7)
    counts = rng.multinomial(20, np.full(20, 1 / 20), size=300)
    draws = [np.repeat(np.arange(20), c) for c in counts]
    loop = [stats.pearsonr(_pairs(a, rows), _pairs(b, rows))[0] for rows in draws]
    got = q.pair_correlation(a, b, seed=7, resamples=300)
    assert (got.low, got.high) == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])), abs=1e-10)


def test_pair_correlation_does_not_see_a_rotation_or_another_width():
    a, _ = _two(5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    wide = np.hstack([a @ turn, np.zeros((60, 3))])
    assert q.pair_correlation(a, wide).value == pytest.approx(1, abs=1e-12)
    assert q.cosine(a, a @ turn).value < 0.9


@given(st.integers(0, 10**6), st.integers(3, 40), st.booleans())
def test_spearman_against_scipy_with_and_without_ties(seed, n, ties):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    y = rng.normal(size=n) + x
    x[0], x[1] = -9.0, 9.0
    got = q.spearman(x, y, resamples=50)
    assert got.value == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    assert -1 - 1e-12 <= got.low <= got.high <= 1 + 1e-12


def test_spearman_interval_against_scipys_bootstrap():
    x, y = (v[:, 0] for v in _two(6, n=80))
    oracle = stats.bootstrap(
        (x, y),
        lambda s, t: stats.spearmanr(s, t)[0],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=3000,
    ).confidence_interval
    got = q.spearman(x, y)
    assert (got.low, got.high) == pytest.approx((oracle.low, oracle.high), abs=0.02)


@given(st.integers(1, 200), st.data())
def test_accuracy_has_wilsons_interval(n, data):
    hits = data.draw(st.integers(0, n))
    got = q.accuracy(np.r_[np.ones(hits), np.zeros(n - hits)], np.ones(n))
    z, p = stats.norm.ppf(0.975), hits / n
    mid = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (got.value, got.n) == (hits / n, n)
    assert (got.low, got.high) == pytest.approx((mid - half, mid + half), abs=1e-9)


def test_accuracy_of_names_and_against_sklearn():
    assert q.accuracy(["cat", "dog"], ["cat", "cat"]).value == 0.5
    rng = np.random.default_rng(0)
    pred, true = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    assert q.accuracy(pred, true).value == accuracy_score(true, pred)


def test_agreement_by_hand():
    a = [[1, 2, 3], [3, 2, 1], [5, 5, 0], [0, 1, 0]]
    b = [[0, 0, 9], [1, 2, 3], [1, 0, 0], [0, 1, 0]]
    got = q.agreement(a, b)
    assert (got.value, got.n) == (0.75, 4)


def test_logit_kl_against_scipy_and_by_hand():
    a, b = _two(8, n=40, d=5)
    soft = [np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b)]
    each = stats.entropy(soft[0], soft[1], axis=1)
    got = q.logit_kl(a, b)
    assert got.value == pytest.approx(each.mean(), rel=1e-12)
    assert got.low < got.value < got.high
    by_hand = q.logit_kl(np.log([[0.5, 0.5]] * 2), np.log([[0.25, 0.75]] * 2))
    assert by_hand.value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-12)
    assert q.logit_kl(a, a + 1000).value == pytest.approx(0, abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(9)
    inside = 0
    for i in range(200):
        a = rng.normal(size=(50, 2))
        angle = rng.uniform(0, np.pi / 2, 50)  # mean cosine 2 / pi
        turn = np.stack([np.cos(angle), np.sin(angle)], 1)
        b = np.stack([a[:, 0] * turn[:, 0] - a[:, 1] * turn[:, 1], a[:, 0] * turn[:, 1] + a[:, 1] * turn[:, 0]], 1)
        f = q.cosine(a, b, seed=i, resamples=400)
        inside += f.low <= 2 / np.pi <= f.high
    assert 0.88 <= inside / 200 <= 0.99


def test_a_figure_cannot_be_changed():
    with pytest.raises(AttributeError):
        q.accuracy([1], [1]).value = 2


ONE = np.ones((3, 2))
NAN = np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: q.cosine(NAN, ONE), r"cosine: a holds 1 values that are not finite, the first at \(1, 0\)"),
        (lambda: q.cosine(ONE, ONE[:2]), r"b \(2, 2\)"),
        (lambda: q.cosine(ONE[:1], ONE[:1]), "at least 2"),
        (lambda: q.cosine(np.zeros((0, 2)), ONE), r"a has shape \(0, 2\)"),
        (lambda: q.cosine(ONE[0], ONE[0]), r"a has shape \(2,\)"),
        (lambda: q.cosine(np.diag([1.0, 0.0]), np.eye(2)), "row 1 is all zeros"),
        (lambda: q.cosine([["x"]], ONE), "not an array of numbers"),
        (lambda: q.pair_correlation(ONE, ONE[:2]), "3 items and b has 2"),
        (lambda: q.pair_correlation(ONE, np.eye(3)), "all similarities under a are 1"),
        (lambda: q.spearman([1, 2], [1, 2]), "3 or more"),
        (lambda: q.spearman([1, 1, 1], [1, 2, 3]), "all 3 scores are 1"),
        (lambda: q.spearman([1, np.inf, 1], [1, 2, 3]), "scores holds 1"),
        (lambda: q.accuracy([], []), "pred has shape"),
        (lambda: q.accuracy([1.0, np.nan], [1, 2]), "pred holds 1 NaN"),
        (lambda: q.accuracy([1], [1, 2]), "1 predictions for 2 labels"),
        (lambda: q.accuracy(ONE, [1, 1, 1]), "argmax logits first"),
        (lambda: q.agreement(ONE, ONE[:, :1]), "logits_b"),
        (lambda: q.logit_kl(ONE, NAN), "logits_small holds 1"),
    ],
)
def test_bad_input_is_named(call, names):
    with pytest.raises(DataError, match=names):
        call()
