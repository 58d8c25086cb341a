"""Traffic against a server: what is sent, what is found out beforehand, and what comes of it."""

from __future__ import annotations

from typing import Self

import numpy as np
import pytest

from pytest_dooly.core.replay import Replay
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.prediction.validation import Verdict
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.simulation.loads import PlannedLoad, planned
from pytest_dooly.validate_traffic import between, validate_traffic
from tests.simulation.test_loads import LAW, OPTIONS, Times, simulated


def simulate(traffic: Traffic, server: Server) -> Simulated:
    return run(traffic, NativeScheduler(OPTIONS), Times(), server)


class Simulator:
    """A server that takes as long as is simulated, and a little more in every other replay."""

    def __init__(self, server_s: float, slower: float = 0.0, failing: int = 0) -> None:
        self.options: SchedulerOptions = OPTIONS
        self.sent: list[Traffic] = []
        self._server_s, self._slower, self._failing = server_s, slower, failing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def replay(self, traffic: Traffic) -> Replay:
        self.sent.append(traffic)
        served, factor = simulate(traffic, between(self._server_s)), 1 + self._slower * (len(self.sent) % 2)
        prompts, outputs = (
            np.array([getattr(r, name) for r in traffic.requests]) for name in ("prompt_len", "output_len")
        )
        gone = np.arange(len(traffic.requests)) < self._failing
        ttft_s, latency_s = (np.where(gone, np.nan, factor * each) for each in (served.ttft_s, served.latency_s))
        cached, errors = int(served.cached_tokens.sum()), ("gone",) * self._failing
        in_engine_s = float(served.ttft_s.mean()) - self._server_s
        return Replay(traffic, served.sent_s, ttft_s, latency_s, prompts, outputs, cached, in_engine_s, errors)


@pytest.fixture(scope="module")
def loads() -> list[PlannedLoad]:
    return planned(LAW, simulated, 4, seconds=10)


def test_what_the_server_adds_is_found_on_requests_of_its_own(loads: list[PlannedLoad]) -> None:
    server = Simulator(0.004)
    validation = validate_traffic(server, simulate, loads)
    assert validation.server_s == pytest.approx(0.004)
    assert validation.calibrated
    assert validation.verdict() is Verdict.MEETS
    assert max(abs(row.error) for row in validation.rows) < 1e-9
    first, *others = server.sent
    assert first.concurrency == 1
    assert all(first is not load.traffic for load in loads)
    # Each load once before any again, in an order of the round's own.
    places = [[load.traffic for load in loads].index(traffic) for traffic in others]
    assert sorted(places[:6]) == sorted(places[6:]) == list(range(6))
    assert places[:6] != places[6:]
    for load in validation.loads:
        assert load.predicted_cached == load.measured_cached
        assert (load.predicted_cached > 0) is load.shared


def test_it_may_be_named(loads: list[PlannedLoad]) -> None:
    validation = validate_traffic(Simulator(0.1), simulate, loads, server_s=0.0)
    assert (validation.server_s, validation.calibrated) == (0.0, False)
    assert all(row.error < 0 for row in validation.of("ttft", "mean"))
    assert validation.verdict() is Verdict.MISSES


def test_noise_is_what_repeats_differ_by(loads: list[PlannedLoad]) -> None:
    said: list[str] = []
    validation = validate_traffic(Simulator(0.0, slower=0.1), simulate, loads[:1], repeats=3, progress=said.append)
    # Rounds take 1, 1.1 and 1: the two alike are 5 % off the middle of the others.
    assert [row.noise for row in validation.rows] == pytest.approx([0.05] * len(validation.rows))
    assert [line.partition(":")[0] for line in said] == ["warm-up", *(f"round {i} of 3" for i in (1, 2, 3))]


def test_failures_are_counted_and_leave_the_others(loads: list[PlannedLoad]) -> None:
    validation = validate_traffic(Simulator(0.0, failing=2), simulate, loads[:1])
    assert validation.loads[0].failed == 4
    assert validation.verdict() is Verdict.MISSES
    assert all(np.isfinite(row.measured_s) for row in validation.rows)
