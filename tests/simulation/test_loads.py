"""Loads: three shares of the capacity, with and without sharing, the same requests but for what they share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.simulation.arrivals import AT_ONCE
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.loads import SHARES, capacity, planned, without_sharing
from pytest_dooly.simulation.summary import overloaded
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic

LAW = SyntheticTraffic(AT_ONCE, PromptAndOutput(Lengths.fixed(16), Lengths.fixed(8)), SharedPrefix(2, 4, 64))
OPTIONS = SchedulerOptions(Limits(64, 4, 128), 64, async_scheduling=False)


class Times:
    """A millisecond for each token of a step."""

    def step_s(self, step: Scheduled) -> float:
        return 1e-3 * step.num_tokens


def simulated(traffic: Traffic) -> Simulated:
    return run(traffic, NativeScheduler(OPTIONS), Times())


def test_capacity_is_what_is_sustained_and_sharing_raises_it() -> None:
    apart = capacity(LAW, lambda traffic: simulated(without_sharing(traffic)), 4, seed=0)
    assert apart == pytest.approx(1 / (1e-3 * (16 + 64 + 7)), rel=0.1)  # each request's tokens, one after the other
    assert capacity(LAW, simulated, 4, seed=0) > 1.5 * apart


def test_loads_are_shares_of_the_capacity_that_do_not_overload() -> None:
    loads = planned(LAW, simulated, 4, seconds=20)
    assert [load.shared for load in loads] == [True] * 3 + [False] * 3
    assert [load.rate / load.capacity for load in loads] == pytest.approx(2 * SHARES)
    assert [len(load.traffic.requests) for load in loads] == [round(load.rate * 20) for load in loads]
    for load in loads:
        assert load.traffic.requests[-1].arrival_s == pytest.approx(20, rel=0.02)
        if load.rate < 0.8 * load.capacity:  # just below it, bursts of a short run look like a queue that grows
            assert overloaded(simulated(load.traffic)) is None
        assert any(request.segments for request in load.traffic.requests) is load.shared


def test_rates_may_be_named_and_sharing_changes_nothing_else() -> None:
    shared, apart = planned(LAW, simulated, 4, rates=(2.0,), seconds=1, seed=7)
    assert (shared.rate, apart.rate, len(shared.traffic.requests)) == (2.0, 2.0, 10)
    assert apart.traffic == without_sharing(shared.traffic)
    assert shared.traffic != apart.traffic
    (other, _) = planned(LAW, simulated, 4, rates=(2.0,), seconds=1, seed=8)
    assert other.traffic != shared.traffic


def test_loads_need_a_prefix() -> None:
    with pytest.raises(ConfigurationError, match="need a shared prefix"):
        planned(replace(LAW, prefix=None), simulated, 4, seconds=1)
