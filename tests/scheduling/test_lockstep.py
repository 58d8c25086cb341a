"""Engines that share experts step together: each serves its own requests, and nothing is lost between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.scheduling.clock import run
from pytest_dooly.scheduling.lockstep import Lockstep, scheduler_of
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions, Together, room_for_all
from tests.scheduling.schedulers import arrivals, drive
from tests.scheduling.schedulers import options as engine_options

LIMITS = Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=128)


def options(engines: int, limits: Limits = LIMITS) -> SchedulerOptions:
    return SchedulerOptions(limits, room_for_all(limits), async_scheduling=False, engines=engines)


class Longest:
    """A step takes a second for each token of the engine that has most."""

    def __init__(self) -> None:
        self.steps: list[Scheduled] = []

    def step_s(self, step: Scheduled) -> float:
        self.steps.append(step)
        engines = step.engines if isinstance(step, Together) else [step]
        return float(max(each.num_tokens for each in engines if each is not None))


def test_one_engine_is_scheduled_by_itself() -> None:
    assert isinstance(scheduler_of(options(1)), NativeScheduler)
    assert isinstance(scheduler_of(options(2)), Lockstep)


def test_requests_go_to_the_engine_with_the_fewest_the_next_in_turn_of_several() -> None:
    lockstep = Lockstep(options(3))
    for place in range(4):
        lockstep.add(place, TrafficRequest(0.0, 8, 4))
    step = lockstep.schedule()
    assert isinstance(step, Together)
    assert [list(each.requests) for each in step.engines if each is not None] == [[0, 3], [1], [2]]
    assert step.num_tokens == 32
    assert step.chunks == [(8, 0)] * 4
    assert lockstep.num_running == 4


def test_an_engine_without_requests_waits_for_the_others() -> None:
    times = Longest()
    requests = (TrafficRequest(0.0, 40, 2), TrafficRequest(0.0, 8, 1))
    simulated = run(Traffic(requests), scheduler_of(options(2)), times)
    assert simulated.first_s.tolist() == [40.0, 40.0]  # the short prompt's engine waits for the long one's
    assert simulated.last_s.tolist() == [41.0, 40.0]
    last = times.steps[-1]
    assert isinstance(last, Together)
    assert [each is None for each in last.engines] == [False, True]


@given(st.data(), st.integers(2, 4))
def test_nothing_is_lost_or_served_twice_whatever_runs_short(data: st.DataObject, engines: int) -> None:
    asked = data.draw(engine_options())
    coming = data.draw(arrivals(asked.limits.max_model_len))
    lockstep = Lockstep(replace(asked, engines=engines))
    said = drive(lockstep, asked, coming)
    tokens = Counter(place for _, sampling, _, _ in said for place in sampling)
    requests = [request for turn in sorted(coming) for request in coming[turn]]
    assert tokens == {place: request.output_len for place, request in enumerate(requests)}
    assert all(len(parts) <= engines * asked.limits.max_num_seqs for parts, *_ in said)
    assert lockstep.num_running == lockstep.num_waiting == lockstep.used_blocks == 0


@pytest.mark.parametrize("engines", [2, 4])
def test_equal_engines_take_the_steps_of_one(engines: int) -> None:
    """Of a wave of equal requests each engine has as many, so that all steps are those of one engine with its share."""
    one = run(Traffic((TrafficRequest(0.0, 16, 8),) * 3), scheduler_of(options(1)), Longest())
    all_ = run(Traffic((TrafficRequest(0.0, 16, 8),) * (3 * engines)), scheduler_of(options(engines)), Longest())
    assert sorted(all_.first_s) == sorted(one.first_s.tolist() * engines)
    assert sorted(all_.last_s) == sorted(one.last_s.tolist() * engines)
