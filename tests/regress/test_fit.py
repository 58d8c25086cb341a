"""Regressors: kernels of known formula are found again, and nothing falls as work grows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.regress.fit import fit, held_out_errors
from pytest_dooly.sweep.grid import refinements, sweep
from tests.samples import (
    ATTENTION,
    BATCHES,
    LIMITS,
    LINEAR,
    MIXTURE,
    STEP,
    TOKENS,
    fitted,
    measured,
    windowed,
)


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


def test_one_token_that_runs_in_one_thread_is_told_from_two_that_run_in_several() -> None:
    """silu_and_mul of 2,816 channels on two cores took 36 us for one token, 54 for two."""

    def threaded(point: SweepPoint) -> float:
        return 36e-6 if point.num_tokens == 1 else 53e-6 + (point.num_tokens or 0) * 0.5e-6

    regressor = fitted(LINEAR, threaded, TOKENS)
    points = [SweepPoint(num_tokens=tokens) for tokens in (1, 2, 3, 8, 100, 512)]
    assert regressor.predict_s(points) == pytest.approx([threaded(point) for point in points], rel=0.02)


def test_a_smallest_size_within_the_scatter_of_the_others_is_not_set_apart() -> None:
    draw = random.Random(5)
    outcomes = {point: measured((50e-6 + (point.num_tokens or 0) * 1e-6) * draw.gauss(1, 0.05)) for point in TOKENS}
    first = SweepPoint(num_tokens=1)
    expected_s = fit(LINEAR, outcomes).predict_s([first])[0]
    outcomes[first] = measured(0.9 * expected_s)
    assert fit(LINEAR, outcomes).predict_s([first])[0] == pytest.approx(expected_s, rel=0.05)


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
@example(  # whose least is expected to take no time at all
    latencies=[0.012, 0.757, 0.0277, 0.146, 0.543, 0.316, 6.1e-05, 0.268, 0.493, 0.885], small=493, more=54
)
def test_no_latency_is_negative_or_falls_with_tokens(latencies: list[float], small: int, more: int) -> None:
    regressor = fit(LINEAR, {point: measured(s) for point, s in zip(TOKENS, latencies, strict=True)})
    low, high = regressor.predict_s([SweepPoint(num_tokens=small), SweepPoint(num_tokens=small + more)])
    assert 0 <= low <= high * (1 + 1e-9)


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


def test_the_winner_is_the_simplest_of_those_that_noise_alone_sets_apart() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert len(regressor.candidates) > 3
    assert dict(regressor.candidates)[regressor.method] == regressor.error
    draw = random.Random(2)
    noisy = {p: measured((20e-6 + 1e-6 * (p.num_tokens or 0)) * draw.gauss(1, 0.04)) for p in TOKENS}
    assert fit(LINEAR, noisy).method == "size, affine"


def test_an_outlier_does_not_bend_the_fit() -> None:
    points = sweep(ATTENTION, LIMITS) + refinements(ATTENTION, LIMITS)
    outcomes = {point: measured(attention(point)) for point in points}
    clean = fit(ATTENTION, outcomes)
    for i, factor in zip(range(2, len(points), 6), (6.0, 0.2, 25.0, 4.0, 9.0, 3.0), strict=False):
        outcomes[points[i]] = measured(attention(points[i]) * factor)
    bent = fit(ATTENTION, outcomes)
    assert bent.num_points == len(points)
    changes = bent.predict_s(points) / clean.predict_s(points) - 1
    assert max(abs(changes)) < 0.02


def test_a_measurement_that_spreads_counts_less() -> None:
    def off(iqr_share: float) -> float:
        outcomes = {p: measured(50e-6 + 1e-6 * (p.num_tokens or 0)) for p in TOKENS}
        wrong = outcomes[TOKENS[5]].median_s * 1.15
        outcomes[TOKENS[5]] = Measurement(9, wrong, wrong, wrong, wrong * iqr_share)
        regressor = fit(LINEAR, outcomes)
        return float(abs(regressor.predict_s([TOKENS[5]])[0] / (wrong / 1.15) - 1))

    assert off(0.5) < off(0.0)


@pytest.mark.parametrize(("signature", "truth"), [(LINEAR, roofline), (ATTENTION, attention)])
def test_held_out_errors_find_the_point_that_does_not_fit(
    signature: Signature, truth: Callable[[SweepPoint], float]
) -> None:
    points = list(sweep(signature, LIMITS))
    outcomes = {point: measured(truth(point)) for point in points}
    odd = points[len(points) // 2]
    outcomes[odd] = measured(truth(odd) * 1.6)
    errors = held_out_errors(signature, outcomes)
    assert max(errors, key=errors.__getitem__) == odd
    assert errors[odd] == pytest.approx(0.6 / 1.6, abs=0.1)
    assert len(errors) == len(points) - 2  # the extremes are always in the fit
    assert min(outcomes, key=lambda p: outcomes[p].median_s) not in errors


def test_held_out_errors_average_to_the_regressor_s_own() -> None:
    outcomes = {point: measured(roofline(point)) for point in TOKENS}
    errors = held_out_errors(LINEAR, outcomes)
    assert np.mean(list(errors.values())) == pytest.approx(fit(LINEAR, outcomes).error)
    assert held_out_errors(LINEAR, dict(list(outcomes.items())[:2])) == {}


def experts(point: SweepPoint) -> float:
    """Weights are read once an activated expert; the busiest expert's product is what the others wait for."""
    assert point.routing is not None
    return 20e-6 + 15e-6 * point.routing.activated + 2e-6 * point.routing.busiest


def test_a_mixture_of_experts_is_predicted_from_its_routing() -> None:
    regressor = fitted(MIXTURE, experts, sweep(MIXTURE, LIMITS))
    for tokens, activated, busiest in ((3, 5, 2), (100, 8, 31), (300, 7, 250), (40, 3, 38)):
        point = SweepPoint(num_tokens=tokens, routing=Routing(activated, busiest))
        assert regressor.predict_s([point])[0] == pytest.approx(experts(point), rel=0.05)
        work = Work.of_sizes([tokens], activated=[activated], busiest=[busiest])
        assert regressor.predict_s(work) == regressor.predict_s([point])


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=30, max_size=30),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 700)), min_size=1, max_size=5),
    st.tuples(st.integers(1, 300), st.integers(0, 700)),
)
def test_no_latency_is_negative_or_falls_with_requests(
    latencies: list[float], requests: list[tuple[int, int]], added: tuple[int, int]
) -> None:
    regressor = fit(ATTENTION, {p: measured(s) for p, s in zip(sweep(ATTENTION, LIMITS), latencies, strict=False)})
    points = [SweepPoint(batch=Batch.of(pairs)) for pairs in (requests, [*requests, added])]
    low, high = regressor.predict_s(points)
    assert 0 <= low <= high * (1 + 1e-9)


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
