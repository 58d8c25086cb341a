"""Bounds hold beside what a simulation comes to."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.scheduling.clock import Server, run
from pytest_dooly.scheduling.lockstep import scheduler_of
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions, Together
from pytest_dooly.searching.bounds import most_rate, unloaded
from pytest_dooly.searching.goodput import Curve
from pytest_dooly.searching.objective import Objective
from pytest_dooly.simulation.deployment import Deployment
from tests.searching.samples import traffic

SERVER = Server.adding(0.01, async_scheduling=True, tokenise_s=1e-5)

OPTIONS = SchedulerOptions(Limits(max_num_tokens=64, max_num_seqs=8, max_model_len=512), 400, block_size=4)


class Linear:
    """A step takes 1 ms, 0.1 ms a token, 0.01 ms a hundred tokens in the cache; of engines the slowest decides."""

    def step_s(self, step: Scheduled) -> float:
        if isinstance(step, Together):
            return max(self.step_s(each) for each in step.engines if each is not None)
        context = step.decode_tokens + sum(context_len for _, context_len in step.chunks)
        return 1e-3 + 1e-4 * step.num_tokens + 1e-7 * context


lengths = st.tuples(st.integers(1, 200), st.integers(1, 40), st.integers(0, 3))


@given(st.lists(lengths, min_size=1, max_size=8), st.floats(0.0, 2.0), st.booleans())
def test_no_request_is_faster_than_alone(asked: list[tuple[int, int, int]], gap_s: float, caching: bool) -> None:
    """Whatever others have asked before."""
    requests = [
        TrafficRequest(place * gap_s, 8 + prompt, output, ((group, 8), (100 + place, prompt)))
        for place, (prompt, output, group) in enumerate(asked)
    ]
    options = SchedulerOptions(OPTIONS.limits, 400, block_size=4, prefix_caching=caching)
    load = run(Traffic(requests), scheduler_of(options), Linear(), SERVER)
    alone = unloaded(load.traffic, Linear(), options, SERVER)
    assert (alone["ttft"] <= load.ttft_s * 1.001).all()
    assert (np.nan_to_num(alone["tpot"]) <= np.nan_to_num(load.tpot_s) * 1.001).all()
    assert (alone["e2el"] <= load.latency_s * 1.001).all()


@pytest.mark.parametrize("engines", [1, 4])
def test_alone_is_what_a_simulation_says_of_requests_that_meet_none(engines: int) -> None:
    sparse, options = traffic(8, 200, 20).stretched(100.0), dataclasses.replace(OPTIONS, engines=engines)
    load = run(sparse, scheduler_of(options), Linear(), dataclasses.replace(SERVER, async_scheduling=False))
    alone = unloaded(sparse, Linear(), options, SERVER)
    assert alone["ttft"] == pytest.approx(load.ttft_s, rel=1e-3)
    assert alone["tpot"] == pytest.approx(load.tpot_s, rel=1e-2)


@pytest.mark.parametrize("slo", ["tpot_mean:20ms", "tpot_mean:4ms", "e2el_mean:200ms"])
@pytest.mark.parametrize(("prompt_len", "output_len", "engines"), [(16, 32, 1), (200, 8, 1), (200, 8, 4)])
def test_no_rate_beyond_the_bound_is_kept_up_with(slo: str, prompt_len: int, output_len: int, engines: int) -> None:
    """Engines that step together keep up with less than each alone: prompts of one are waited for by all."""
    of, objective = traffic(200 * engines, prompt_len, output_len), Objective.parse(slo)
    options = dataclasses.replace(OPTIONS, engines=engines)
    tpot_s = next((each.bound_s for each in objective.bounds if each.latency == "tpot"), math.inf)
    bound = most_rate(of, Linear(), options, tpot_s)

    def simulate(rate: float):  # type: ignore[no-untyped-def]
        (only,) = Deployment(Linear(), options, Server()).simulate(of.stretched(of.offered_rate / rate))
        return only

    met = Curve(simulate, objective).highest(bound, (1.0,), 0.03).met
    assert met is not None
    assert 0.25 * bound < met.served < 1.1 * bound
