"""Validation: errors, noise floors, order of the runs, and when it passes."""

from __future__ import annotations

import json

import pytest

from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import RequestTiming
from pytest_dooly.prediction.draw import Replacement, grid
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.validation import Accuracy, Validation, ValidationRow, Verdict
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.validate import noise_floor, validate
from tests.samples import LIMITS, model_and_regressors


def row(ttft: float, tpot: float | None, noise: float = 0.01) -> ValidationRow:
    known = None if tpot is None else noise
    return ValidationRow(
        Workload(8, 8, 1), 1 + ttft, 1.0, noise, None if tpot is None else 2 * (1 + tpot), tpot and 2.0, known
    )


def test_errors_are_signed_and_medians_absolute() -> None:
    validation = Validation((row(-0.10, 0.2), row(0.02, -0.1), row(0.04, None)))
    assert [round(r.ttft_error, 6) for r in validation.rows] == [-0.10, 0.02, 0.04]
    assert validation.rows[2].tpot_error is None
    assert validation.ttft.median == pytest.approx(0.04)
    assert validation.ttft.mape == pytest.approx(0.16 / 3)
    assert validation.tpot is not None
    assert validation.tpot.median == pytest.approx(0.15)
    assert (validation.ttft.count, validation.tpot.count) == (3, 2)


@pytest.mark.parametrize(
    ("ttft", "tpot", "noise", "verdict"),
    [
        (0.04, 0.07, 0.01, Verdict.MEETS),
        (0.06, 0.07, 0.01, Verdict.MISSES),
        (0.04, 0.09, 0.01, Verdict.MISSES),
        (0.11, 0.11, 0.10, Verdict.MEETS),
        (0.13, 0.11, 0.10, Verdict.MISSES),
        (0.04, 0.07, 2.50, Verdict.MEETS),
        (0.30, 0.07, 2.50, Verdict.UNDECIDED),
        (0.04, 0.27, 0.25, Verdict.UNDECIDED),
        (0.30, 0.31, 0.25, Verdict.MISSES),
        (0.04, None, 0.01, Verdict.MEETS),
    ],
)
def test_it_meets_the_target_or_is_near_the_noise(
    ttft: float, tpot: float | None, noise: float, verdict: Verdict
) -> None:
    assert Validation((row(ttft, tpot, noise),)).verdict() is verdict


def test_means_decide_not_medians() -> None:
    one_far_off = Validation((row(0.0, None), row(0.0, None), row(0.3, None)))
    assert one_far_off.ttft.median == pytest.approx(0)
    assert one_far_off.verdict() is Verdict.MISSES
    one_noisy = Validation((row(0.1, None, 0.0), row(0.1, None, 0.0), row(0.1, None, 0.3)))
    assert one_noisy.ttft.noise == 0
    assert one_noisy.ttft.mean_noise == pytest.approx(0.1)
    assert one_noisy.verdict() is Verdict.MEETS


def test_the_interval_holds_the_mean_narrows_with_workloads_and_is_the_same_each_time() -> None:
    errors = [0.01, -0.02, 0.04, -0.09]
    few, many = (Accuracy.of(errors * times, [0.01] * 4 * times) for times in (1, 16))
    assert min(map(abs, errors)) <= few.low < few.mape < few.high <= max(map(abs, errors))
    assert many.mape == pytest.approx(few.mape)
    # A mean's spread falls with the root of the number it is of.
    assert many.high - many.low == pytest.approx((few.high - few.low) / 4, rel=0.15)
    assert Accuracy.of(errors, [0.01] * 4) == few
    assert Accuracy.of([0.05], [0.01]).low == Accuracy.of([0.05], [0.01]).high == pytest.approx(0.05)


def test_it_comes_back_from_json_and_earlier_findings_are_read() -> None:
    replaced = Replacement(Workload(2048, 128, 32), Workload(300, 20, 9))
    validation = Validation((row(0.1, 0.2), row(0.1, None)), (replaced,), (0.01, -0.02))
    document = json.loads(json.dumps(validation.to_json()))
    assert Validation.from_json(document) == validation
    assert Validation.from_json({"rows": document["rows"]}) == Validation(validation.rows)


def test_the_noise_floor_predicts_each_repeat_by_the_others() -> None:
    assert noise_floor([1.0, 1.0, 1.0]) == 0
    assert noise_floor([1.0, 1.25]) == pytest.approx((0.25 + 0.2) / 2)
    assert noise_floor([1.0, 1.1, 1.2, 5.0]) > noise_floor([1.0, 1.1, 1.2, 1.3]) > 0


class ExactSession:
    """An engine that takes just as long as predicted, on every other run twice as long."""

    def __init__(self) -> None:
        self.asked: list[Workload] = []
        self.model, self.regressors = model_and_regressors()
        self.times = StepTimes(self.model, self.regressors)

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        self.asked.append(workload)
        predicted = predict_workload(self.times, workload)
        return (RequestTiming(predicted.ttft_s, predicted.tpot_s),) * workload.total_reqs


def test_workloads_are_interleaved_and_an_exact_engine_has_no_error() -> None:
    session = ExactSession()
    workloads = grid(LIMITS, [16, 64, 256], [1, 4], [1, 8])
    said: list[str] = []
    validation = validate(session, session.model, session.regressors, workloads, repeats=3, progress=said.append)  # type: ignore[arg-type]
    assert [r.workload for r in validation.rows] == list(workloads)
    rounds = [session.asked[i : i + len(workloads)] for i in range(0, len(session.asked), len(workloads))]
    assert len(rounds) == 4
    assert all(set(each) == set(workloads) for each in rounds)
    assert len({tuple(map(str, each)) for each in rounds}) > 1
    assert said == ["warm-up", "round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert validation.ttft.mape == pytest.approx(0, abs=1e-9)
    assert validation.verdict() is Verdict.MEETS
    assert all((r.tpot_error is None) == (r.workload.output_len == 1) for r in validation.rows)


def test_a_slow_engine_is_an_error() -> None:
    class Slow(ExactSession):
        def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
            timings = super().generate(workload)
            return tuple(RequestTiming(2 * t.ttft_s, t.tpot_s and 2 * t.tpot_s) for t in timings)

    session = Slow()
    validation = validate(session, session.model, session.regressors, [Workload(16, 4, 1)], repeats=2)  # type: ignore[arg-type]
    assert validation.rows[0].ttft_error == pytest.approx(-0.5)
    assert validation.verdict() is Verdict.MISSES


def test_a_slow_round_is_drift_and_no_error_of_the_median() -> None:
    class Drifting(ExactSession):
        def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
            slow = 1.25 if len(self.asked) // 2 == 3 else 1.0
            timings = super().generate(workload)
            return tuple(RequestTiming(slow * t.ttft_s, t.tpot_s and slow * t.tpot_s) for t in timings)

    session = Drifting()
    workloads = [Workload(16, 4, 1), Workload(64, 1, 2)]
    validation = validate(session, session.model, session.regressors, workloads, repeats=3)  # type: ignore[arg-type]
    assert validation.drift == pytest.approx((0, 0.25))
    assert validation.ttft.mape == pytest.approx(0, abs=1e-9)
