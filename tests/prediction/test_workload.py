"""TTFT and TPOT of workloads, added up from their steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.routing import RoutingDistribution
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from tests.prediction.test_step import MODEL, mixture
from tests.samples import (
    LIMITS,
    model_and_regressors,
)
from tests.scheduling.schedulers import served as steps_of

TIMES = StepTimes(*model_and_regressors())


def test_a_request_s_clock_starts_when_it_arrives() -> None:
    """Two requests one after the other are one request twice: nothing waits."""
    model, regressors = model_and_regressors()
    once = predict_workload(StepTimes(model, regressors), Workload(100, 8, 1))
    twice = predict_workload(StepTimes(model, regressors), Workload(100, 8, 1, num_reqs=2))
    assert twice.duration_s == pytest.approx(2 * once.duration_s)
    assert twice.ttft_s == pytest.approx(once.ttft_s)
    assert twice.tpot_s == pytest.approx(once.tpot_s)
    assert twice.num_steps == 2 * once.num_steps


@given(st.integers(1, 900), st.integers(1, 40), st.integers(1, 12))
def test_a_workload_takes_as_long_as_its_steps(prompt_len: int, output_len: int, concurrency: int) -> None:
    workload = Workload(prompt_len, output_len, concurrency)
    steps, simulated = steps_of(workload, LIMITS)
    ends_s = np.cumsum([predict_step(*MODEL, step.batch).latency_s for step in steps])
    first_s, last_s = (ends_s[ends.astype(int) - 1].mean() for ends in (simulated.first_s, simulated.last_s))
    prediction = predict_workload(TIMES, workload)
    assert prediction.num_steps == len(steps)
    waited_s = 50e-6 * (concurrency + 1) / 2  # for the admissions, on average
    assert prediction.ttft_s == pytest.approx(first_s + waited_s, rel=0.01)
    assert (prediction.tpot_s or 0) * (output_len - 1) == pytest.approx(last_s - first_s, rel=0.01)


def test_requests_that_follow_disturb_those_that_decode() -> None:
    together, following = (predict_workload(TIMES, Workload(400, 32, 4, num_reqs)) for num_reqs in (None, 40))
    assert together.tpot_s is not None
    assert following.tpot_s is not None
    assert following.tpot_s > 1.5 * together.tpot_s  # three prompts of others in a request's life, not half as many
    assert following.ttft_s < 0.7 * together.ttft_s  # most arrive where one seat is free


def test_skewed_routing_changes_a_workload() -> None:
    model, regressors = mixture()
    uniform, trained, skewed = (
        predict_workload(StepTimes(model, regressors, routing=RoutingDistribution.parse(text)), Workload(100, 4, 2))
        for text in ("uniform", "trained", "zipf:2")
    )
    assert trained == predict_workload(StepTimes(model, regressors), Workload(100, 4, 2))
    assert uniform.ttft_s < trained.ttft_s < skewed.ttft_s
    assert skewed.ttft_s > uniform.ttft_s  # a prompt reaches every expert, and waits for the busiest
    assert skewed.tpot_s is not None
    assert uniform.tpot_s is not None
    assert skewed.tpot_s < uniform.tpot_s  # a decode reaches fewer experts


def test_a_request_longer_than_the_model_allows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"1000 \+ 25 tokens exceed max_model_len 1024"):
        predict_workload(TIMES, Workload(1000, 25, 1))


def test_ttft_and_tpot_add_up() -> None:
    model, regressors = model_and_regressors()
    prediction = predict_workload(StepTimes(model, regressors), Workload(100, 3, 2))
    prefill = 3 * 200 * 10e-6 + 2 * 2e-6 + 2 * 2e-6 + 100e-6
    decode = 3 * 2 * 10e-6 + 2 * 2e-6 + 2 * 2e-6 + 100e-6
    admissions = (2 * 50e-6 + 1 * 50e-6) / 2  # the first request waits for both admissions, the second for its own
    assert prediction.num_steps == 3
    assert prediction.ttft_s == pytest.approx(admissions + prefill, rel=1e-2)
    assert prediction.tpot_s == pytest.approx(decode, rel=2e-2)


def test_one_token_has_no_tpot() -> None:
    model, regressors = model_and_regressors()
    assert predict_workload(StepTimes(model, regressors), Workload(100, 1, 1)).tpot_s is None


def test_out_of_range_is_told_once_for_each_operation() -> None:
    model, regressors = model_and_regressors()
    prediction = predict_workload(StepTimes(model, regressors), Workload(900, 20, 8))
    assert [line.partition(":")[0] for line in prediction.out_of_range] == [
        "attention-4h2kv16-bf16",
        "step",
        "admission",
    ][: len(prediction.out_of_range)]
    step = predict_step(model, regressors, Batch.uniform(1, 2000))
    assert any(line.startswith("linear-64x128-bf16: ") for line in step.out_of_range)
