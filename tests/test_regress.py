"""Regressors: kernels of known formula are found again, and nothing falls as work grows."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.batch import Batch, Request, SweepPoint
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.regress import Regressor, fit
from pytest_dooly.signature import Signature
from pytest_dooly.sweep import sweep
from pytest_dooly.work import FEATURES, Work, features_of
from tests.samples import (
    ADMISSION,
    ATTENTION,
    BATCHES,
    LIMITS,
    LINEAR,
    SAMPLER,
    STEP,
    TOKENS,
    fitted,
    measured,
    windowed,
)

REQUESTS = st.builds(Request, st.integers(1, 512), st.integers(0, 4096))
EVERY = tuple(FEATURES)


def roofline(point: SweepPoint) -> float:
    tokens = point.num_tokens or 0
    return max(200e-6, tokens * 10e-6) + 5e-6


def attention(point: SweepPoint) -> float:
    assert point.batch is not None
    return 40e-6 + sum(
        5e-6 + (r.query_len * (r.context_len + r.query_len / 2) * 12e-9 if r.query_len > 1 else r.seq_len * 50e-9)
        for r in point.batch.requests
    )


def test_a_memory_bound_then_compute_bound_kernel_is_found() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    for tokens in (1, 3, 12, 100, 300, 512):
        point = SweepPoint(num_tokens=tokens)
        assert regressor.predict_s([point])[0] == pytest.approx(roofline(point), rel=0.12)
    assert regressor.error is not None
    assert regressor.error < 0.1


def test_attention_of_unseen_mixtures_is_predicted_from_what_the_kernel_does() -> None:
    regressor = fitted(ATTENTION, attention, sweep(ATTENTION, LIMITS))
    draw = random.Random(7)
    for _ in range(50):
        pairs = [(1, draw.randrange(1, 900)) for _ in range(draw.randrange(1, 7))] + [(draw.randrange(2, 256), 0)]
        point = SweepPoint(batch=Batch.of(pairs))
        assert regressor.predict_s([point])[0] == pytest.approx(attention(point), rel=0.08)


def test_noise_is_averaged_out() -> None:
    draw = random.Random(3)
    outcomes = {p: measured(attention(p) * draw.gauss(1, 0.05)) for p in sweep(ATTENTION, LIMITS)}
    regressor = fit(ATTENTION, outcomes)
    errors = [abs(regressor.predict_s([point])[0] / attention(point) - 1) for point in outcomes]
    assert np.median(errors) < 0.03
    assert regressor.error is not None
    assert 0.02 < regressor.error < 0.08


@given(
    latencies=st.lists(st.floats(1e-6, 1.0), min_size=10, max_size=10),
    small=st.integers(1, 2000),
    more=st.integers(0, 5000),
)
def test_no_latency_is_negative_or_falls_with_tokens(latencies: list[float], small: int, more: int) -> None:
    regressor = fit(LINEAR, {point: measured(s) for point, s in zip(TOKENS, latencies, strict=True)})
    low, high = regressor.predict_s([SweepPoint(num_tokens=small), SweepPoint(num_tokens=small + more)])
    assert 0 <= low <= high * (1 + 1e-9)


@given(
    st.lists(REQUESTS, min_size=1, max_size=6),
    REQUESTS,
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([None, 64.0]),
)
def test_every_feature_grows_with_work(
    requests: list[Request], added: Request, grown: int, longer_context: bool, window: float | None
) -> None:
    base = Batch(tuple(requests))
    i = grown % len(requests)
    first = requests[i]
    longer = (
        Request(first.query_len, first.context_len + 7)
        if longer_context
        else Request(first.query_len + 7, first.context_len)
    )
    more = [Batch((*requests, added)), Batch((*requests[:i], longer, *requests[i + 1 :]))]
    rows = features_of(Work.of([SweepPoint(batch=batch) for batch in (base, *more)]), EVERY, window)
    assert (rows[1] >= rows[0]).all()
    assert (rows[2] >= rows[0]).all()


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 200))
def test_pairs_count_what_a_window_lets_attend(query_len: int, context_len: int, window: int) -> None:
    seen = [context_len + i for i in range(1, query_len + 1)]
    work = Work.of([SweepPoint(batch=Batch.uniform(1, query_len, context_len))])
    assert features_of(work, ("pairs",), None)[0, 0] == sum(seen)
    assert features_of(work, ("pairs",), float(window))[0, 0] == sum(min(length, window) for length in seen)


def test_a_window_bounds_what_a_decode_reads() -> None:
    def decode(point: SweepPoint) -> float:
        assert point.batch is not None
        return 1e-5 + 1e-7 * min(point.batch.requests[0].seq_len, 128)

    points = sweep(windowed(128), LIMITS)
    regressor = fitted(
        windowed(128), lambda p: 1e-5 + 1e-7 * min(p.batch.requests[0].seq_len if p.batch else 0, 128), points
    )
    near, far = (SweepPoint(batch=Batch.uniform(1, 1, context)) for context in (200, 1000))
    assert regressor.window == 128
    assert regressor.predict_s([near])[0] == pytest.approx(regressor.predict_s([far])[0])


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, ATTENTION, STEP, ADMISSION])
def test_a_regressor_is_json(signature: Signature) -> None:
    points = sweep(signature, LIMITS)
    regressor = fit(signature, {point: measured(1e-5 * (i + 1)) for i, point in enumerate(points)})
    again = Regressor.from_json(json.loads(json.dumps(regressor.to_json())))
    assert again == regressor
    assert (again.predict_s(points) == regressor.predict_s(points)).all()


def test_the_winner_has_the_smallest_held_out_error() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert len(regressor.candidates) > 3
    assert dict(regressor.candidates)[regressor.method] == regressor.error == min(dict(regressor.candidates).values())


def test_out_of_range_says_what_and_how_far() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert regressor.out_of_range(SweepPoint(num_tokens=512)) is None
    line = regressor.out_of_range(SweepPoint(num_tokens=4096))
    assert line is not None
    assert "4,096" in line
    assert "512" in line
    assert regressor.predict_s([SweepPoint(num_tokens=4096)])[0] >= regressor.predict_s([SweepPoint(num_tokens=512)])[0]


def test_beyond_the_range_the_last_slope_goes_on() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert regressor.predict_s([SweepPoint(num_tokens=2048)])[0] == pytest.approx(2048 * 10e-6, rel=0.1)


def test_no_point_is_refused() -> None:
    with pytest.raises(MissingMeasurements, match=r"linear-64x128-bf16 has no measurement"):
        fit(LINEAR, {})


@pytest.mark.parametrize("count", [1, 2])
def test_few_points_are_fitted_without_a_held_out_error(count: int) -> None:
    outcomes = {point: measured(1e-6 * (i + 1)) for i, point in enumerate(TOKENS[:count])}
    regressor = fit(LINEAR, outcomes)
    assert regressor.error is None
    assert regressor.candidates == ()
    assert regressor.predict_s(list(outcomes)) == pytest.approx([o.median_s for o in outcomes.values()])


def test_three_points_hold_one_out() -> None:
    regressor = fit(LINEAR, {point: measured(1e-6 * (i + 1)) for i, point in enumerate(TOKENS[:3])})
    assert regressor.error is not None
    assert math.isfinite(regressor.error)


def test_equal_work_at_every_point_is_a_constant() -> None:
    regressor = fitted(STEP, lambda _: 1e-4, BATCHES)
    assert regressor.predict_s(BATCHES) == pytest.approx([1e-4] * len(BATCHES), rel=1e-6)
