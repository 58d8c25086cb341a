"""Ways to serve a workload, each with what it rests on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.comparison import candidate
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_served
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.published.footprint import ENGINE_SHARE, cache_room, footprint, working_bytes
from tests.samples import ADMISSION, STEP, served, uses
from tests.traced import DEVICE, NORM, attention, linear

SIGNATURES = (linear(1024, 1024), attention(8, 2, 64), NORM, STEP, ADMISSION)
MODEL = served(*map(uses, SIGNATURES))
FOUNDED = {
    each.key: Foundation(
        Estimate(each, DEVICE),
        Basis("published", 9, ("there",), 0.1) if each is SIGNATURES[0] else Basis("estimate", 0, (), None),
    )
    for each in SIGNATURES
}
MODELS = {key: each.model for key, each in FOUNDED.items()}


def test_a_candidate_is_the_workload_and_the_shares_of_a_decode_step_in_its_middle() -> None:
    workload = Workload(prompt_len=128, output_len=64, concurrency=4)
    found = candidate(MODEL, FOUNDED, DEVICE, workload, ranks=2)
    assert found.prediction == predict_served(StepTimes(MODEL, MODELS, overlapped=True), workload, DEVICE)
    assert found.tokens_per_s == pytest.approx(4 * 64 / found.prediction.duration_s)
    step = predict_step(MODEL, MODELS, Batch.uniform(4, 1, 160))
    linear_s = next(each.latency_s for each in step.operations if each.label == SIGNATURES[0].label)
    hosts_s = next(each.latency_s for each in step.operations if each.label == STEP.label)
    assert found.shares.by_kind["published"] == pytest.approx(linear_s / (step.latency_s - hosts_s))
    assert found.shares.error == pytest.approx(0.1)


def test_requests_wait_for_kv_blocks_where_the_longest_request_of_the_model_finds_no_room() -> None:
    """What a workload does not ask for is no reason to give it all blocks there could be."""
    workload, times = Workload(128, 64, 8), StepTimes(MODEL, MODELS, overlapped=True)
    weights_bytes = footprint(MODEL, DEVICE, num_reqs=1, seq_len=0).weights_bytes
    left_bytes = 30 * 16 * 2 * 2 * 64 * 2  # of two requests, not of one of max_model_len
    small = replace(DEVICE, memory_bytes=(weights_bytes + working_bytes(MODEL) + left_bytes) / ENGINE_SHARE)
    assert cache_room(MODEL, small).num_blocks * 16 < MODEL.limits.max_model_len
    assert predict_served(times, workload, small).ttft_s > 2 * predict_served(times, workload, DEVICE).ttft_s


def test_more_requests_than_seats_decode_as_many_as_there_are_seats() -> None:
    few, many = (candidate(MODEL, FOUNDED, DEVICE, Workload(128, 64, concurrency)) for concurrency in (8, 800))
    assert many.shares == few.shares  # of 8 seats
    assert many.footprint == few.footprint == footprint(MODEL, DEVICE, num_reqs=8, seq_len=192)


def test_a_candidate_as_json() -> None:
    found = candidate(MODEL, FOUNDED, DEVICE, Workload(128, 1, 2), ranks=2)
    document = json.loads(json.dumps(found.to_json()))
    assert document == {
        "model": "small",
        "device": "toy",
        "tp": 2,
        "dp": 1,
        "ttft_s": found.prediction.ttft_s,
        "ttft_interval_s": [found.ttft_interval.low_s, found.ttft_interval.high_s],
        "tpot_s": None,
        "tpot_interval_s": None,
        "tokens_per_s": found.tokens_per_s,
        "shares": dict(found.shares.by_kind),
        "stand_in": None,
        "expected_error": found.shares.error,
        "out_of_range": [],
        "memory": {
            "weights_bytes": found.footprint.weights_bytes,
            "cache_bytes": found.footprint.cache_bytes,
            "usable_bytes": ENGINE_SHARE * DEVICE.memory_bytes,
            "fits": True,
        },
    }


def test_a_request_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="exceed max_model_len 1024"):
        candidate(MODEL, FOUNDED, DEVICE, Workload(1000, 64, 1))
