"""The rate that is kept up with, on an engine whose capacity is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.sustained import full_rate, sustainable_rate
from pytest_dooly.simulation.synthetic import SyntheticTraffic

OPTIONS = SchedulerOptions(Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=128), 100)


class Steady:
    """A step takes a second: of requests of one token, 4 a second."""

    def step_s(self, step: Scheduled) -> float:
        return 1.0


class Tried:
    """What a traffic comes to at other rates, and how often that was asked."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic, self.rates = traffic, list[float]()

    def __call__(self, factor: float = 1.0) -> Simulated:
        traffic = self.traffic.stretched(factor)
        self.rates.append(traffic.offered_rate)
        return run(traffic, NativeScheduler(OPTIONS), Steady())


def traffic(rate: float, arrivals: str = "constant") -> Traffic:
    lengths = PromptAndOutput(Lengths.parse("16"), Lengths.parse("1"))
    return SyntheticTraffic(Arrivals.parse(str(rate), arrivals), lengths).draw(num_requests=400)


@pytest.mark.parametrize("rate", [4.5, 8.0, 400.0])
def test_the_rate_lies_just_below_capacity_however_high_the_load(rate: float) -> None:
    tried = Tried(traffic(rate))
    found = sustainable_rate(tried(), tried)
    assert found == pytest.approx(4, rel=0.05)
    assert len(tried.rates) <= 9


def test_bursts_are_kept_up_with_at_a_lower_rate() -> None:
    tried = Tried(traffic(8.0, "poisson"))
    found = sustainable_rate(tried(), tried)
    assert found is not None
    assert 2 < found < 4.1


def test_engines_that_share_experts_have_a_room_each() -> None:
    """Four of them in lockstep serve four times as many a step, in as many seats."""
    lengths = PromptAndOutput(Lengths.parse("8"), Lengths.parse("4"))
    load = SyntheticTraffic(Arrivals.parse("1", "constant"), lengths).draw(num_requests=400)
    alone = full_rate(Deployment(Steady(), OPTIONS), load)
    together = full_rate(Deployment(Steady(), replace(OPTIONS, engines=4)), load)
    assert together == pytest.approx(4 * alone, rel=0.15)


def test_a_load_that_is_kept_up_with_is_not_searched() -> None:
    tried = Tried(traffic(3.0))
    assert sustainable_rate(tried(), tried) is None
    assert len(tried.rates) == 1
    at_once = Tried(Traffic([TrafficRequest(0.0, 16, 1)] * 40))
    assert sustainable_rate(at_once(), at_once) is None


def test_stretched_traffic_has_the_same_requests_at_other_times() -> None:
    of = Traffic([TrafficRequest(2.0, 9, 1), TrafficRequest(0.5, 7, 1, follows=0)], rates=(4.0,))
    slower = of.stretched(2.0)
    assert [request.arrival_s for request in slower.requests] == [4.0, 0.5]  # a pause between turns stays
    assert (slower.rates, of.offered_rate, slower.offered_rate) == ((2.0,), 1.0, 0.5)
    assert (
        slower.mean_len
        == of.mean_len
        == round(sum(each.prompt_len + each.output_len / 2 for each in of.requests) / len(of.requests))
    )


def test_repeated_traffic_goes_on_at_its_rate_with_prompts_of_others() -> None:
    first = TrafficRequest(1.0, 9, 1, segments=((0, 4), (7, 5)), output=3)
    of = Traffic([first, TrafficRequest(0.5, 7, 1, segments=((0, 4), (3, 3)), follows=0), TrafficRequest(3.0, 8, 2)])
    twice = of.repeated(2)
    assert twice.requests[:3] == of.requests
    assert twice.offered_rate == of.offered_rate == 1.0
    assert [(request.arrival_s, request.follows) for request in twice.requests[3:]] == [(4, None), (0.5, 3), (6, None)]
    again, turn, alone = twice.requests[3:]
    assert not {identity for identity, _ in again.segments} & {0, 3, 7}
    assert again.segments[0] == turn.segments[0]  # what they have in common they still have
    assert turn.segments[1][0] == again.output not in (0, 3, 7)
    assert (alone.segments, alone.output) == ((), None)


@pytest.mark.parametrize(("output_len", "replicas", "rate"), [(1, 1, 4.0), (16, 1, 0.25), (16, 3, 0.75)])
def test_with_room_for_no_more_as_many_are_served_as_seats_allow(output_len: int, replicas: int, rate: float) -> None:
    lengths = PromptAndOutput(Lengths.parse("16"), Lengths.parse(str(output_len)))
    few = SyntheticTraffic(Arrivals.parse("1"), lengths).draw(num_requests=6)
    deployment = Deployment(Steady(), OPTIONS, Server(async_scheduling=False), replicas)
    assert full_rate(deployment, few) == pytest.approx(rate, rel=0.1)


def test_a_run_that_is_mostly_its_beginning_sustains_no_more_than_there_is_room_for() -> None:
    lengths = PromptAndOutput(Lengths.parse("16"), Lengths.parse("60"))
    tried = Tried(SyntheticTraffic(Arrivals.parse("8", "constant"), lengths).draw(num_requests=24))
    capacity = full_rate(Deployment(Steady(), OPTIONS), tried.traffic)
    assert capacity == pytest.approx(4 / 60, rel=0.1)
    found = sustainable_rate(tried(), tried, capacity)
    assert found is not None
    assert found <= capacity
