"""Replicas and routers, and how many KV blocks a device has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.device import Device
from pytest_dooly.core.scheduling import SchedulerOptions
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.published.footprint import working_bytes
from pytest_dooly.simulation.deployment import Deployment, kv_blocks
from pytest_dooly.simulation.simulate import joined
from tests.samples import served, uses
from tests.traced import DEVICE, attention, linear

OPTIONS = SchedulerOptions(Limits(64, 4, 128), 100, prefix_caching=False)


class Linear:
    """A second for each token."""

    def latency_s(self, num_decodes: int, decode_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        return float(num_decodes + sum(query_len for query_len, _ in chunks))


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


def test_blocks_are_what_the_weights_leave() -> None:
    """10 GB, 92 % of it taken, less what a step takes; 2 MB of weights; 32 layers of 8 heads of 128 in bf16."""
    model = served(uses(linear(1024, 1024)), uses(attention(32, 8, 128), 32))
    block_bytes = 16 * 32 * 2 * 8 * 128 * 2
    assert kv_blocks(model, DEVICE) == int((9.2e9 - working_bytes(model) - 2 * 1024 * 1024) / block_bytes)
    assert kv_blocks(model, DEVICE, share=0.5) == int((5e9 - working_bytes(model) - 2 * 1024 * 1024) / block_bytes)


def test_weights_that_do_not_fit_are_refused() -> None:
    small = Device("tiny", "Tiny GPU", 1, 1e8, 1e12, 1e14, 1e11)
    with pytest.raises(ConfigurationError, match=r"does not fit on tiny: 0.0 GB of weights .* use more ranks"):
        kv_blocks(served(uses(linear(64, 64)), uses(attention(32, 8, 128))), small)
    with pytest.raises(ConfigurationError, match="keeps no keys and values: name the number of KV blocks"):
        kv_blocks(served(uses(linear(64, 64))), DEVICE)
