"""The summary says what vLLM's benchmark would say of the same requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Simulated, StepRecord
from pytest_dooly.simulation.summary import Slo, overloaded, summary


def simulated(ttft_s: list[float], tpot_s: list[float], *, output_len: int = 11, every_s: float = 1.0) -> Simulated:
    sent_s = every_s * np.arange(len(ttft_s), dtype=np.float64)
    first_s = sent_s + np.array(ttft_s)
    requests = [TrafficRequest(at, 100, output_len) for at in sent_s.tolist()]
    nothing = np.zeros(len(ttft_s), dtype=np.int64)
    steps = [StepRecord(float(i), 1.0, 1, 1 + i, 1, 0, 1, 0) for i in range(4)]
    last_s = first_s + (output_len - 1) * np.array(tpot_s)
    return Simulated(Traffic(requests), sent_s, sent_s, first_s, last_s, nothing + 25, nothing, steps)


def test_means_percentiles_and_rates() -> None:
    document = summary(simulated([0.1, 0.2, 0.3, 0.4], [0.01, 0.01, 0.02, 0.04]))
    assert document["completed"] == 4
    assert document["duration"] == pytest.approx(3 + 0.4 + 0.4)
    assert document["total_input_tokens"] == 400
    assert document["total_output_tokens"] == 44
    assert document["request_throughput"] == pytest.approx(4 / 3.8)
    assert document["output_throughput"] == pytest.approx(44 / 3.8)
    assert document["mean_ttft_ms"] == pytest.approx(250)
    assert document["median_ttft_ms"] == document["p50_ttft_ms"] == pytest.approx(250)
    assert document["p99_ttft_ms"] == pytest.approx(397)
    assert document["mean_tpot_ms"] == pytest.approx(20)
    assert document["mean_e2el_ms"] == pytest.approx(450)
    assert document["prefix_cache_hit_rate"] == 0.25
    assert document["request_goodput"] is None


def test_intervals_count_as_often_as_tokens_come_after_them() -> None:
    document = summary(simulated([0.1, 0.1], [0.01, 0.01]))
    assert document["mean_itl_ms"] == document["p99_itl_ms"] == pytest.approx(1000)


def test_goodput_counts_those_that_meet_every_bound() -> None:
    of = simulated([0.1, 0.2, 0.3, 0.4], [0.01, 0.01, 0.02, 0.04])
    assert summary(of, slo=Slo(ttft_s=0.25))["request_goodput"] == pytest.approx(2 / 3.8)
    assert summary(of, slo=Slo.parse("ttft:400ms,tpot:30ms"))["request_goodput"] == pytest.approx(3 / 3.8)
    assert summary(of, slo=Slo.parse("e2el:0.25s"))["request_goodput"] == pytest.approx(1 / 3.8)


def test_a_stage_s_intervals_count_by_its_own_tokens_and_its_rate_is_told() -> None:
    of = simulated([0.1, 0.1], [0.01, 0.01])
    steps = [StepRecord(0.0, 1.0, 2, 2, 2, 0, 1, 0), StepRecord(1.0, 1.0, 2, 2, 2, 0, 1, 0)]
    steps += [StepRecord(2.0, 3.0, 2, 2, 2, 0, 1, 0)]
    requests = [dataclasses.replace(r, stage=i) for i, r in enumerate(of.traffic.requests)]
    traffic = Traffic(requests, rates=(2.0, float("inf")))
    staged = dataclasses.replace(of, traffic=traffic, steps=steps, stage_decodes=[[2, 0], [2, 0], [0, 2]])
    first, second = (summary(staged, stage=stage) for stage in (0, 1))
    assert (first["mean_itl_ms"], second["mean_itl_ms"]) == (pytest.approx(1000), pytest.approx(3000))
    assert (first["request_rate"], second["request_rate"], summary(staged)["request_rate"]) == (2.0, "inf", None)
    assert summary(dataclasses.replace(of, traffic=Traffic(requests[:1] * 2, rates=(3.0,))))["request_rate"] == 3.0


def test_a_bound_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="bounds ttft twice: name one bound of each"):
        Slo.parse("ttft:1s,ttft:2s")


def test_one_token_each_has_no_tpot_and_misses_none() -> None:
    document = summary(simulated([0.1, 0.2], [0.0, 0.0], output_len=1), slo=Slo(tpot_s=1e-9))
    assert document["mean_tpot_ms"] is None
    assert document["request_goodput"] == pytest.approx(2 / 1.2)


@pytest.mark.parametrize("text", ["", "ttft", "ttft:", "ttft:fast", "ttft:-1ms", "latency:3s", "ttft:inf", "ttft:300"])
def test_a_bound_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="of the SLO: write it as ttft:300ms,tpot:40ms,e2el:10s"):
        Slo.parse(text)


def test_statistics_are_for_a_search() -> None:
    with pytest.raises(ConfigurationError, match="it bounds each request, where dooly search bounds statistics"):
        Slo.parse("ttft_p99:500ms")


def test_a_load_beyond_capacity_is_told_with_what_is_served() -> None:
    """Ten arrive in a second, five are served: 200 in the 40 seconds until the last has its token."""
    growing = simulated([0.05 + 0.1 * place for place in range(200)], [0.0] * 200, every_s=0.1)
    assert overloaded(growing) == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("number", [20, 60, 200])
def test_a_steady_load_is_none_however_its_waits_scatter(seed: int, number: int) -> None:
    draw = np.random.default_rng(seed)
    assert overloaded(simulated(draw.gamma(4.0, 0.02, number).tolist(), [0.01] * number, every_s=0.1)) is None


def test_of_few_requests_and_of_a_single_moment_nothing_is_said() -> None:
    assert overloaded(simulated([0.1 * place for place in range(10)], [0.01] * 10)) is None
    assert overloaded(simulated([0.1 * place for place in range(100)], [0.01] * 100, every_s=0.0)) is None


def test_idle_time_is_nobody_s_interval() -> None:
    at_work = simulated([0.1, 0.1], [0.01, 0.01])
    later = [StepRecord(100.0, 1.0, 1, 5, 1, 0, 1, 0), StepRecord(101.0, 3.0, 1, 5, 1, 0, 1, 0)]
    document = summary(dataclasses.replace(at_work, steps=[*at_work.steps[:1], *later]))
    assert document["mean_itl_ms"] == pytest.approx(3000)
