"""Replicas and routers, and how many KV blocks a device has room for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import joined

OPTIONS = SchedulerOptions(Limits(64, 4, 128), 100, prefix_caching=False)


class Linear:
    """A second for each token."""

    def step_s(self, step: Scheduled) -> float:
        return float(step.num_tokens)


def deployed(replicas: int, **changes: object) -> Deployment:
    return replace(Deployment(Linear(), OPTIONS), replicas=replicas, **changes)  # type: ignore[arg-type]


def latency_s(deployment: Deployment, traffic: Traffic) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return joined(deployment.simulate(traffic)).latency_s


arriving = st.lists(st.tuples(st.floats(0, 300), st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=20).map(
    lambda rows: Traffic([TrafficRequest(at, prompt, output) for at, prompt, output in sorted(rows)])
)


@given(arriving, st.sampled_from(["round_robin", "least_outstanding", "prefix"]), st.integers(1, 4))
def test_every_replica_s_requests_together_are_all(traffic: Traffic, router: str, replicas: int) -> None:
    together = joined(deployed(replicas, router=router).simulate(traffic))
    assert sorted(together.traffic.requests, key=id) == sorted(traffic.requests, key=id)
    assert not np.isnan(together.last_s).any()


@given(arriving)
def test_a_replica_for_each_request_serves_it_as_if_it_were_alone(traffic: Traffic) -> None:
    alone = [request.prompt_len + request.output_len - 1 for request in traffic.requests]
    apart = joined(deployed(len(traffic.requests)).simulate(traffic))
    order = {id(request): latency for request, latency in zip(apart.traffic.requests, apart.latency_s, strict=True)}
    assert [order[id(request)] for request in traffic.requests] == pytest.approx(alone)
    assert latency_s(deployed(1), traffic).mean() >= apart.latency_s.mean() - 1e-9


def test_equal_beginnings_go_to_the_same_replica() -> None:
    requests = [TrafficRequest(float(i), 20, 2, ((i % 3, 20),)) for i in range(30)]
    parts = deployed(2, router="prefix").simulate(Traffic(requests))
    homes = [{request.segments[0][0] for request in part.traffic.requests} for part in parts]
    assert not homes[0] & homes[1]


def test_a_short_beginning_that_all_share_does_not_bring_all_to_one_replica() -> None:
    requests = [TrafficRequest(0.0, 20, 2, ((99, 4), (i, 16))) for i in range(30)]
    parts = deployed(3, router="prefix").simulate(Traffic(requests))
    assert [len(part.sent_s) for part in parts] == [10, 10, 10]


@pytest.mark.parametrize("router", ["least_outstanding", "prefix"])
def test_a_router_asks_for_no_step_that_an_engine_cannot_take(router: str) -> None:
    """Requests that wait for a seat are none of a step's."""
    most = []

    class Watched(Linear):
        def step_s(self, step: Scheduled) -> float:
            most.append(step.num_decodes)
            return super().step_s(step)

    requests = [TrafficRequest(0.0, 20, 8) for _ in range(40)]
    parts = replace(deployed(2, router=router), times=Watched()).simulate(Traffic(requests))
    assert [len(part.sent_s) for part in parts] == [20, 20]
    assert max(most) == OPTIONS.limits.max_num_seqs


def test_a_replica_with_far_more_under_way_is_passed_over() -> None:
    requests = [TrafficRequest(0.0, 20, 2, ((7, 20),)) for _ in range(300)]
    parts = deployed(2, router="prefix").simulate(Traffic(requests))
    first, second = (len(part.sent_s) for part in parts)
    assert abs(first - second) <= 66  # of 300 at once the second gets what lies beyond, and is a home from then on
    assert first + second == 300
    few = deployed(2, router="prefix").simulate(Traffic(requests[:60]))
    assert [len(part.sent_s) for part in few] == [60]


def test_steps_name_their_engine_and_count_their_stages() -> None:
    requests = [TrafficRequest(float(i), 4, 3, stage=i // 3) for i in range(6)]
    together = joined(deployed(3).simulate(Traffic(requests, rates=(1.0, 1.0))))
    assert list(dict.fromkeys(step.engine for step in together.steps)) == [0, 1, 2]
    assert [sum(counts) for counts in together.stage_decodes] == [step.num_decodes for step in together.steps]
    assert np.sum(together.stage_decodes, axis=0).tolist() == [6, 6]  # two decodes of each of three requests
    assert together.traffic.rates == (1.0, 1.0)


def test_a_closed_loop_takes_one_replica() -> None:
    with pytest.raises(ConfigurationError, match="several replicas take open arrivals alone"):
        deployed(2).simulate(Traffic([TrafficRequest(0.0, 5, 5)], concurrency=1))


def test_wrong_deployments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one replica, got 0"):
        deployed(0)
    with pytest.raises(ConfigurationError, match="unknown router 'luck': name one of round_robin"):
        deployed(1, router="luck")
