"""The virtual clock, with steps whose time a test can add up by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions

LIMITS = Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=128)


class Steady:
    """A decode takes a second, a prompt ten more, however long."""

    def step_s(self, step: Scheduled) -> float:
        return 1.0 + 10.0 * len(step.chunks)


def served(
    traffic: Traffic, server: Server | None = None, *, async_scheduling: bool = True, blocks: int = 100
) -> Simulated:
    options = SchedulerOptions(LIMITS, blocks, async_scheduling=async_scheduling)
    server = server or Server(async_scheduling=async_scheduling)
    return run(traffic, NativeScheduler(options), Steady(), server)


def test_one_request_takes_its_prompt_and_its_decodes() -> None:
    simulated = served(Traffic([TrafficRequest(5.0, 20, 4)]))
    assert simulated.sent_s.tolist() == [5.0]
    assert simulated.ttft_s.tolist() == [11.0]
    assert simulated.latency_s.tolist() == [14.0]
    assert simulated.tpot_s.tolist() == [1.0]
    assert [(step.num_tokens, step.num_decodes) for step in simulated.steps] == [(20, 0), (1, 1), (1, 1), (1, 1)]


def test_what_server_and_client_add_is_in_the_first_token_and_not_between_them() -> None:
    simulated = served(Traffic([TrafficRequest(0.0, 20, 4)]), Server(0.25, 0.5))
    assert simulated.ttft_s.tolist() == [11.75]
    assert simulated.tpot_s.tolist() == [1.0]


def test_a_server_of_one_process_takes_requests_in_one_after_the_other() -> None:
    traffic = Traffic([*[TrafficRequest(0.0, 20, 1)] * 3, TrafficRequest(100.0, 20, 1)])
    # All are read by 6 s and handed on at 8, 10 and 12: the first is alone in its step, the others share the next.
    assert served(traffic, Server(4.0, 0.5, in_turn=True)).ttft_s.tolist() == [19.5, 40.5, 40.5, 15.5]
    # Had they come together, all would have shared one.
    assert served(traffic, Server(4.0, 0.5)).ttft_s.tolist() == [35.5, 35.5, 35.5, 15.5]


def test_processes_of_a_server_are_dealt_requests_in_turn() -> None:
    """The second one has one to read by 2 s and hands it on at 4, the first two by 4 and at 6 and 8."""
    traffic = Traffic([*[TrafficRequest(0.0, 20, 1)] * 3, TrafficRequest(100.0, 20, 1)])
    simulated = served(traffic, Server(4.0, 0.5, in_turn=True, processes=2))
    assert simulated.arrived_s is not None
    assert simulated.arrived_s.tolist() == [6.0, 4.0, 8.0, 104.0]
    assert simulated.scheduled_s.tolist() == [15.0, 4.0, 15.0, 104.0]  # the first step takes eleven seconds


def test_the_longer_a_prompt_the_longer_it_is_tokenised() -> None:
    apart = Traffic([TrafficRequest(0.0, 20, 1), TrafficRequest(100.0, 10, 1)])
    longer_s = served(apart, Server(1.0, tokenise_s=0.1)).ttft_s - served(apart).ttft_s
    assert longer_s == pytest.approx([3.0, 2.0])
    # Of two that come at once the first waits until both are read, the second for the first one too.
    together = Traffic([TrafficRequest(0.0, 20, 1), TrafficRequest(0.0, 40, 1)])
    in_turn = served(together, Server(1.0, tokenise_s=1.0, in_turn=True))
    assert in_turn.scheduled_s == pytest.approx([(21.0 + 41.0) / 2 + 21.0 / 2, 21.0 + 41.0])


def test_a_request_that_comes_later_is_read_after_those_before_it() -> None:
    traffic = Traffic([*[TrafficRequest(0.0, 20, 1)] * 2, TrafficRequest(0.1, 20, 1)])
    simulated = served(traffic, Server(20.0, in_turn=True))
    assert simulated.scheduled_s.tolist() == [30.0, 41.0, 60.0]  # the first one's step takes eleven seconds


@pytest.mark.parametrize("server_s", [0.0, 0.008])
def test_what_a_server_adds_is_what_a_lone_request_takes_longer(server_s: float) -> None:
    server = Server.adding(server_s, async_scheduling=True)
    alone = served(Traffic([TrafficRequest(0.0, 20, 4)]), server)
    assert alone.ttft_s[0] == pytest.approx(11.0 + server_s)
    assert alone.latency_s[0] == pytest.approx(14.0 + server_s)


@pytest.mark.parametrize(("async_scheduling", "first_s"), [(True, 24.0), (False, 23.0)])
def test_a_request_joins_the_step_after_those_that_are_made_already(async_scheduling: bool, first_s: float) -> None:
    """It comes within a decode from 11 to 12 s; with the next one made already it joins at 13 s, else at 12."""
    traffic = Traffic([TrafficRequest(0.0, 20, 9), TrafficRequest(11.5, 20, 1)])
    simulated = served(traffic, async_scheduling=async_scheduling)
    assert simulated.first_s[1] == first_s
    assert simulated.scheduled_s.tolist() == [0.0, 12.0]


def test_a_closed_loop_sends_when_another_ends() -> None:
    traffic = Traffic([TrafficRequest(0.0, 20, 2)] * 3, concurrency=1)
    simulated = served(traffic, Server(token_s=0.5))
    assert simulated.sent_s.tolist() == [0.0, 12.5, 25.0]
    assert simulated.latency_s.tolist() == [12.5] * 3


def test_a_later_turn_waits_for_the_end_and_for_its_person() -> None:
    traffic = Traffic([TrafficRequest(0.0, 20, 2), TrafficRequest(3.0, 20, 2, follows=0)])
    assert served(traffic).sent_s.tolist() == [0.0, 15.0]


def test_one_token_has_no_time_per_token() -> None:
    assert np.isnan(served(Traffic([TrafficRequest(0.0, 20, 1)])).tpot_s).all()


requests = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=25).map(
    lambda rows: [TrafficRequest(at, prompt, output) for at, prompt, output in sorted(rows)]
)


@given(requests, st.none() | st.integers(1, 5), st.booleans())
def test_time_runs_on_and_everybody_is_served(
    arriving: list[TrafficRequest], concurrency: int | None, async_scheduling: bool
) -> None:
    traffic = Traffic(arriving, concurrency)
    simulated = served(traffic, async_scheduling=async_scheduling, blocks=12)
    assert (simulated.sent_s >= [request.arrival_s for request in arriving]).all()
    assert (simulated.first_s > simulated.sent_s).all()
    assert (simulated.last_s >= simulated.first_s).all()
    ends_s = [step.begin_s + step.latency_s for step in simulated.steps]
    assert all(step.begin_s >= end_s for step, end_s in zip(simulated.steps[1:], ends_s, strict=False))
    assert simulated.last_s.max() == pytest.approx(ends_s[-1])
    if concurrency is not None:
        under_way = (simulated.sent_s[:, None] >= simulated.sent_s) & (simulated.sent_s[:, None] < simulated.last_s)
        assert under_way.sum(axis=1).max() <= concurrency
    again = served(traffic, async_scheduling=async_scheduling, blocks=12)
    assert (again.last_s == simulated.last_s).all()
