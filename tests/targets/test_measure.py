"""Timing: order, counts and the collector on fake artefacts; significance on made-up timings."""

import gc
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import TargetError
from secateur.targets import measure as timing
from secateur.targets.eager import eager, with_threads
from secateur.targets.measure import Speedup, compare, measure, measure_models
from secateur.types import Artefact, Measurement


def artefact(run, **facts) -> Artefact:
    return Artefact(run=run, call=lambda example: [], **facts)


def taken(seconds, target="eager", threads=1, batch=1) -> Measurement:
    return Measurement(target, np.asarray(seconds, dtype=np.float64), threads, batch)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only artefacts move, so that timings are known."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def spend(*seconds):
        turn = [0]

        def run():
            now[0] += seconds[turn[0] % len(seconds)]
            turn[0] += 1

        return run

    return spend


def test_rounds_are_interleaved_and_rotated():
    order = []
    measure(
        [artefact(lambda n=n: (order.append(n), time.sleep(1e-3))) for n in "ABC"],
        repeats=4,
        warmup=2,
        min_seconds=0,
    )
    assert "".join(order[:6]) == "AABBCC"
    assert "".join(order[6:18]) == "ABC" + "BCA" + "CAB" + "ABC"


def test_timings_are_those_of_the_artefacts(clock):
    a, b = measure([artefact(clock(0.25)), artefact(clock(0.5))], repeats=6, warmup=3)
    assert a.seconds.tolist() == [0.25] * 6
    assert b.seconds.tolist() == [0.5] * 6
    assert (a.median, b.p95, a.spread, a.note) == (0.25, 0.5, 0, "")


def test_facts_of_the_artefact_are_stated(clock):
    made = artefact(clock(1.0), target="t", threads=3, batch=8, nbytes=99, peak=lambda: 7)
    (plain,) = measure([made], repeats=1)
    (full,) = measure([made], repeats=1, peak=True)
    assert (plain.target, plain.threads, plain.batch, plain.nbytes, plain.peak_bytes) == ("t", 3, 8, 99, None)
    assert full.peak_bytes == 7
    assert measure([artefact(clock(1.0))], repeats=1, peak=True)[0].peak_bytes is None


def test_garbage_collector_is_off_and_put_back():
    seen = []
    measure([artefact(lambda: seen.append(gc.isenabled()))], repeats=3, warmup=0, min_seconds=0)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure([artefact(lambda: 1 / 0)], repeats=1, warmup=0)
    assert gc.isenabled()


def test_quick_artefacts_get_more_rounds(clock):
    (m,) = measure([artefact(clock(2.0**-10))], repeats=10, min_seconds=0.1)
    assert m.seconds.size == 110
    (m,) = measure([artefact(clock(1e-9))], repeats=10, min_seconds=0.1)
    assert m.seconds.size == 10 * timing.MAX_BLOCKS


def test_disturbed_runs_get_more_rounds_up_to_a_limit_and_say_so(clock):
    steady, wild = measure([artefact(clock(1.0)), artefact(clock(0.5, 1.0, 2.0))], repeats=6)
    assert steady.seconds.size == wild.seconds.size == 6 * timing.EXTRA_BLOCKS
    assert steady.note == ""
    assert "disturbed" in wild.note
    assert "over 24 rounds" in wild.note


def test_no_extra_rounds_after_the_time_limit(clock):
    (m,) = measure([artefact(clock(10.0, 20.0, 40.0))], repeats=6)
    assert m.seconds.size == 6, "what was asked is taken, however long it lasts"


@pytest.mark.parametrize(("count", "repeats", "warmup"), [(0, 5, 1), (1, 0, 1), (1, 5, -1)])
def test_nothing_to_measure_is_refused(count, repeats, warmup):
    with pytest.raises(TargetError, match="at least one artefact"):
        measure([artefact(lambda: None)] * count, repeats=repeats, warmup=warmup)


def test_models_are_built_on_the_targets_threads_and_told_apart():
    wide, narrow = (nn.Sequential(nn.Linear(512, n), nn.ReLU(), nn.Linear(n, 512)) for n in (2048, 64))
    a, b = measure_models(eager, [wide, narrow], torch.randn(16, 512), repeats=10)
    assert (a.target, a.threads, a.batch, a.seconds.size) == ("eager", 1, 16, b.seconds.size)
    assert compare(a, b).ratio < 0.5
    (m,) = measure_models(with_threads(eager, 2), [nn.Identity()], torch.ones(1), repeats=1)
    assert m.threads == 2


def test_clear_gain_is_put_in_words():
    rng = np.random.default_rng(0)
    noise = 1 + 0.02 * rng.standard_normal(50)
    s = compare(taken(noise), taken(0.5 * noise))
    assert s.significant
    assert s.words() == "2.00x faster (2.00-2.00)", "noise that both share drops out"
    assert compare(taken(0.5 * noise), taken(noise)).words() == "2.00x slower (2.00-2.00)"


times = st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_words_never_claim_what_the_timings_do_not_show(data):
    a = data.draw(times)
    b = data.draw(st.lists(st.floats(1e-6, 10.0), min_size=len(a), max_size=len(a)))
    dense, pruned = taken(a), taken(b)
    s = compare(dense, pruned, resamples=200)
    assert s.low <= s.ratio <= s.high
    assert s.ratio == pytest.approx(np.median(b) / np.median(a))
    noise = max(dense.spread, pruned.spread)
    gain = s.high < 1 and 1 / s.ratio - 1 > max(noise, 0.01) and len(a) >= 10
    loss = s.low > 1 and s.ratio - 1 > max(noise, 0.01) and len(a) >= 10
    assert ("faster" in s.words()) == gain
    assert ("slower" in s.words()) == loss
    assert ("no gain measurable" in s.words()) == (not gain and not loss) == (not s.significant)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rounds=st.integers(1, 120),
    noise=st.floats(0.01, 0.5),
    shift=st.floats(0.0, 0.5),
)
def test_one_model_against_itself_is_no_gain(seed, rounds, noise, shift):
    """Even where one build is slower for good, by up to half the noise of a timing."""
    rng = np.random.default_rng(seed)
    a, b = np.exp(noise * rng.standard_normal((2, rounds)))
    s = compare(taken(a), taken(b / (1 + 0.5 * shift * noise)), resamples=300)
    if s.significant:  # chance: the medians of two samples of a few rounds; never from many
        assert rounds < 80


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0.001, 0.1), gain=st.floats(1.5, 10))
def test_gain_well_beyond_the_noise_is_found(seed, noise, gain):
    rng = np.random.default_rng(seed)
    a, b = np.exp(noise * rng.standard_normal((2, 50)))
    s = compare(taken(a), taken(b / gain))
    assert s.significant
    assert s.words().endswith(")")
    assert "faster" in s.words()


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        a, b = np.exp(0.05 * rng.standard_normal((2, 50)))
        s = compare(taken(a), taken(0.8 * b), resamples=300)
        hits += s.low <= 0.8 <= s.high
    assert 0.88 <= hits / 200 <= 0.995


def test_comparison_is_repeatable_and_seeded():
    rng = np.random.default_rng(2)
    a, b = taken(rng.uniform(1, 2, 50)), taken(rng.uniform(1, 2, 50))
    assert compare(a, b) == compare(a, b)
    assert compare(a, b, seed=1) != compare(a, b)


def test_few_rounds_say_nothing():
    s = compare(taken([1.0] * 3), taken([0.5] * 3))
    assert not s.significant
    assert s.words() == "no gain measurable: 3 rounds are too few to tell, take 10 or more"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (taken([1.0] * 9), "10 rounds against 9"),
        (taken([1.0] * 10, target="onnxruntime"), "target of the dense model is 'eager'"),
        (taken([1.0] * 10, threads=2), "threads of the dense model is 1, of the pruned one 2"),
        (taken([1.0] * 10, batch=2), "batch of"),
    ],
)
def test_timings_of_different_runs_are_not_compared(other, message):
    with pytest.raises(TargetError, match=message):
        compare(taken([1.0] * 10), other)


def test_change_below_the_floor_is_no_gain_however_sure():
    assert Speedup(0.995, 0.994, 0.996, 10_000).words() == (
        "no gain measurable: 1.01x (1.00-1.01) is less than the noise of one timing, 1%"
    )
