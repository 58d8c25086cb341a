"""Intervals around a simulation's statistics: what a queue makes of steps that take longer."""

from __future__ import annotations

import math

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.prediction.interval import Figure
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions, room_for_all
from pytest_dooly.simulation.simulate import Simulation
from pytest_dooly.simulation.within import Within, within

LIMITS = Limits(max_num_tokens=64, max_num_seqs=1, max_model_len=64)
OPTIONS = SchedulerOptions(LIMITS, room_for_all(LIMITS), async_scheduling=False)

STEP_S, WIDTH = 0.01, math.log(1.2)


class Steps:
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def step_s(self, step: Scheduled) -> float:
        return self._step_s


def served(traffic: Traffic, step_s: float = STEP_S) -> Simulated:
    return run(traffic, NativeScheduler(OPTIONS), Steps(step_s), Server())


def found(traffic: Traffic, *, ttft: float = 0.0) -> Within:
    simulation = Simulation(served(traffic), again=lambda factor: served(traffic.stretched(factor)))
    return within(simulation, {"ttft": ttft, "tpot": WIDTH})


def arriving(gap_s: float, number: int = 60) -> Traffic:
    """One request at a time is served, in ten steps."""
    return Traffic([TrafficRequest(place * gap_s, 8, 10) for place in range(number)])


def test_both_ends_are_what_steps_at_both_ends_of_their_interval_come_to() -> None:
    traffic = arriving(0.09)
    ends = found(traffic)
    for step_s, of in ((STEP_S * 1.2, ends.high_ms), (STEP_S / 1.2, ends.low_ms)):
        assert of["mean_ttft_ms"] == pytest.approx(1e3 * served(traffic, step_s).ttft_s.mean())
        assert of["mean_e2el_ms"] == pytest.approx(1e3 * served(traffic, step_s).latency_s.mean())


def test_near_capacity_a_queue_takes_much_longer_than_steps_do() -> None:
    near = found(arriving(0.101))
    assert near.may_overload
    assert near.high_ms["p99_ttft_ms"] > 10 * 1e3 * served(arriving(0.101)).ttft_s.max()
    assert near.high_ms["mean_tpot_ms"] == pytest.approx(1.2 * 1e3 * STEP_S)
    far = found(arriving(0.5))
    assert not far.may_overload
    assert far.high_ms["p99_ttft_ms"] == pytest.approx(1.2 * 1e3 * STEP_S)


def test_a_run_too_short_for_a_queue_to_show_is_judged_by_what_is_served_at_most() -> None:
    traffic = arriving(0.101, 12)
    assert not found(traffic).may_overload
    simulation = Simulation(served(traffic), again=lambda f: served(traffic.stretched(f)), most=lambda: 10.0)
    assert within(simulation, {"ttft": 0.0, "tpot": WIDTH}).may_overload
    plenty = Simulation(simulation.simulated, again=simulation.again, most=lambda: 20.0)
    assert not within(plenty, {"ttft": 0.0, "tpot": WIDTH}).may_overload


def test_a_bound_of_the_client_that_never_binds_changes_nothing() -> None:
    traffic = arriving(0.101)
    bounded = Traffic(traffic.requests, concurrency=1000)
    assert found(bounded).high_ms == found(traffic).high_ms


def test_what_is_known_of_ttft_itself_holds_too() -> None:
    wide = found(arriving(0.5), ttft=math.log(3))
    assert wide.high_ms["mean_ttft_ms"] == pytest.approx(3 * 1e3 * STEP_S)
    assert wide.low_ms["mean_ttft_ms"] == pytest.approx(1e3 * STEP_S / 3)


@pytest.mark.parametrize(
    "traffic",
    [Traffic([TrafficRequest(0.0, 8, 10)] * 5), Traffic([TrafficRequest(0.0, 8, 10)] * 5, concurrency=2)],
    ids=["at once", "closed loop"],
)
def test_clients_that_wait_for_the_server_need_no_further_simulation(traffic: Traffic) -> None:
    simulation = Simulation(served(traffic), again=None)
    ends = within(simulation, {"ttft": WIDTH, "tpot": WIDTH})
    assert found(traffic, ttft=WIDTH) == ends
    assert ends.high_ms["mean_ttft_ms"] == pytest.approx(1.2 * 1e3 * served(traffic).ttft_s.mean())


def test_a_request_s_time_is_as_unsure_as_what_it_consists_of() -> None:
    """Of one token it is its TTFT, of many it is mostly its TPOT."""
    widths: dict[Figure, float] = {"ttft": math.log(2), "tpot": math.log(1.1)}
    of_one, of_many = (
        within(Simulation(served(Traffic([TrafficRequest(0.0, 8, tokens)]))), widths) for tokens in (1, 50)
    )
    assert of_one.high_ms["mean_e2el_ms"] == pytest.approx(of_one.high_ms["mean_ttft_ms"])
    alone_ms = 1e3 * served(Traffic([TrafficRequest(0.0, 8, 50)])).latency_s.mean()
    assert of_many.high_ms["mean_e2el_ms"] == pytest.approx(1.1 * alone_ms, rel=0.02)


def test_keys_stand_beside_those_of_the_summary_and_none_where_there_is_no_tpot() -> None:
    document = found(Traffic([TrafficRequest(0.0, 8, 1)])).document()
    assert {"mean_ttft_low_ms", "p99_e2el_high_ms"} <= document.keys()
    assert not any("tpot" in key for key in document)
