"""What limits a load is told from its steps, on engines of which it is known."""

from __future__ import annotations

import pytest

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.device import device_named
from pytest_dooly.core.routing import UNIFORM
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.scheduling.clock import Server, run
from pytest_dooly.scheduling.lockstep import scheduler_of
from pytest_dooly.scheduling.scheduler import Decodes, Scheduled, SchedulerOptions, Together
from pytest_dooly.searching.limit import Limit, Watched, causes_of_step, limit_of
from tests.samples import served, uses
from tests.searching.samples import MODEL, traffic
from tests.traced import attention, collective, linear

OF_STEP = {"weight reads": 0.75, "collectives": 0.25}


class Chunky:
    """A decode step takes 1 ms, any chunk 3 ms more."""

    def step_s(self, step: Scheduled) -> float:
        return 1e-3 + (3e-3 if step.chunks else 0.0)


def limited(
    of: Traffic,
    bound: str,
    *,
    seqs: int = 64,
    blocks: int = 5000,
    tokens: int = 256,
    engines: int = 1,
    server_s: float = 2e-3,
) -> Limit:
    options = SchedulerOptions(Limits(tokens, seqs, 512), blocks, block_size=4, async_scheduling=False, engines=engines)
    watched = Watched(Chunky())
    server = Server.adding(server_s, async_scheduling=False)
    load = run(of, scheduler_of(options), watched, server)
    return limit_of(load, watched, options, bound, rate=1.0, ratio=1.1, server=server, of_step=OF_STEP)


def shares(limit: Limit) -> dict[str, float]:
    found = {cause.name: cause.share for cause in limit.causes}
    assert sum(found.values()) == pytest.approx(1)
    assert [cause.share for cause in limit.causes] == sorted(found.values(), reverse=True)
    return found


def test_decodes_beside_prompts_take_the_prompts_time_too() -> None:
    """Every second step of the first request has a chunk beside it: 3 of 5 ms."""
    requests = [TrafficRequest(0.0, 8, 100), *(TrafficRequest(5e-3 * place, 8, 1) for place in range(1, 60))]
    found = shares(limited(Traffic(requests), "tpot_p99"))
    assert 0.3 < found["prefill interference"] < 0.6
    rest = 1 - found["prefill interference"]
    assert found["weight reads"] == pytest.approx(0.75 * rest)
    assert found["collectives"] == pytest.approx(0.25 * rest)


def test_a_load_of_decodes_alone_is_that_of_its_step() -> None:
    found = shares(limited(traffic(3, 8, 200).stretched(1e-4), "tpot_p99"))
    assert found["weight reads"] == pytest.approx(0.75, abs=0.02)


def test_decodes_alone_are_each_engine_s() -> None:
    decodes = [Decodes([(0, 0)] * number, 0, 10 * number) for number in (3, 1)]
    steps = [Scheduled([], [], [], [], decodes=each) for each in decodes]
    steps[1] = Scheduled([9], [8], [0], [9], decodes=decodes[1])
    asked: list[Scheduled] = []

    class Asked(Chunky):
        def step_s(self, step: Scheduled) -> float:
            asked.append(step)
            return super().step_s(step)

    watched = Watched(Asked())
    assert watched.step_s(Together([*steps, None])) == pytest.approx(4e-3)
    assert watched.alone_s == [pytest.approx(1e-3)]
    alone = asked[-1]
    assert isinstance(alone, Together)
    assert [each and (each.num_decodes, each.chunks) for each in alone.engines] == [(3, []), (1, []), None]


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        ({"seqs": 2}, "queueing for seats"),
        ({"seqs": 2, "engines": 2}, "queueing for seats"),
        ({"tokens": 16, "seqs": 16, "engines": 2}, "queueing for tokens of a step"),
        ({"blocks": 130}, "waiting for KV blocks"),
        ({"blocks": 130, "engines": 2}, "waiting for KV blocks"),
        ({"tokens": 16, "seqs": 16}, "queueing for tokens of a step"),
    ],
)
def test_why_requests_wait(asked: dict[str, int], cause: str) -> None:
    of = traffic(60, 100, 2 if cause.endswith("step") else 60).stretched(3e-3)
    limit = limited(of, "ttft_p99", **asked)
    assert limit.causes[0].name == cause
    assert limit.num_requests == 60
    assert (limit.used_blocks > 0.9) == (cause == "waiting for KV blocks")


def test_a_queue_at_the_server_is_the_server_s() -> None:
    """It takes 100 ms over each request, and half as long passes from one to the next."""
    limit = limited(traffic(60, 100, 2).stretched(0.05), "ttft_p99", server_s=0.1)
    assert shares(limit)["server and client"] > 0.9


def test_a_latency_is_first_token_and_the_rest() -> None:
    found = shares(limited(traffic(60, 100, 60).stretched(3e-3), "e2el_mean", seqs=2))
    assert found["queueing for seats"] > found["weight reads"] > 0


def test_preempted_requests_have_lost_time() -> None:
    limit = limited(traffic(30, 20, 200).stretched(1e-4), "tpot_p99", blocks=130)
    assert limit.preemptions > 0
    assert shares(limit)["preemption"] > 0


def test_a_step_is_told_by_what_its_operations_are_bound_by() -> None:
    device = device_named("h200_sxm")
    model = served(*MODEL.operations, uses(collective("all_reduce", 4096, 2), 64))
    models = {o.signature.key: Estimate(o.signature, device) for o in model.operations}
    decode = causes_of_step(model, models, device, Batch.uniform(8, 1, 500), UNIFORM)
    assert sum(decode.values()) == pytest.approx(1)
    assert max(decode, key=lambda cause: decode[cause]) == "weight reads"
    assert decode["collectives"] > 0
    prompt = causes_of_step(model, models, device, Batch.uniform(1, 2048, 0), UNIFORM)
    assert max(prompt, key=lambda cause: prompt[cause]) == "matrix products"
    long = served(uses(attention(32, 8, 128), 32), uses(linear(64, 64)))
    models = {o.signature.key: Estimate(o.signature, device) for o in long.operations}
    read = causes_of_step(long, models, device, Batch.uniform(64, 1, 1900), UNIFORM)
    assert read["attention: KV reads"] > 0.9
