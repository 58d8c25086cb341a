"""VLLM's own scheduler over virtual requests: what holds of every step, whatever the options."""

from __future__ import annotations

import importlib.util
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import Engine
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions
from tests.scheduling.schedulers import served as steps_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

LIMITS = Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=128)
ROOMY = SchedulerOptions(LIMITS, num_blocks=200, block_size=8, async_scheduling=False)


@dataclass
class Served:
    """What came of it.

    Attributes:
        steps: every step, in order.
        ended: requests in the order in which they had their last token.
        held: tokens of each request that runs in the KV cache.
        tokens: how many each was given.
    """

    steps: list[Scheduled] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    tokens: Counter[int] = field(default_factory=Counter)

    @property
    def batches(self) -> list[str]:
        return [batch_of(step) for step in self.steps]


def batch_of(step: Scheduled) -> str:
    return str(Batch.of(zip(step.query_lens, step.context_lens, strict=True)))


def serve(
    scheduler: Scheduler, options: SchedulerOptions, requests: Sequence[TrafficRequest], gaps: Sequence[int] = ()
) -> Served:
    """Serves all requests, so many steps after one another, and checks every step."""
    served, under_way, waiting = Served(), deque[Scheduled](), list(enumerate(requests))[::-1]
    gap = 0
    while len(served.ended) < len(requests):
        while waiting and gap <= 0:
            place, request = waiting.pop()
            scheduler.add(place, request)
            gap = gaps[place] if gaps else 0
        gap -= 1
        there = scheduler.num_running + scheduler.num_waiting
        step = scheduler.schedule()
        if step is not None:
            check(step, served, options, requests, there)
            under_way.append(step)
            check_blocks(scheduler, served, options)
        if under_way and (step is None or len(under_way) > options.async_scheduling):
            finish(scheduler, served, under_way.popleft(), requests)
        else:
            assert step is not None or not there, "nothing is done although requests are there"
    assert (scheduler.num_waiting, scheduler.num_running, scheduler.used_blocks) == (0, 0, 0)
    return served


def check(
    step: Scheduled, served: Served, options: SchedulerOptions, requests: Sequence[TrafficRequest], there: int
) -> None:
    limits, bound = options.limits, options.long_prefill_token_threshold
    served.steps.append(step)
    for place in step.preempted:
        served.held.pop(place, None)
    assert sum(step.query_lens) <= limits.max_num_tokens
    assert len(set(step.requests)) == len(step.requests) <= limits.max_num_seqs
    assert min(step.query_lens) > 0
    if bound and there > 1:
        assert max(step.query_lens) <= bound
    for place, query_len, context_len in zip(step.requests, step.query_lens, step.context_lens, strict=True):
        known = requests[place].prompt_len + served.tokens[place]
        if place in served.held:
            assert context_len == served.held[place]
        else:
            assert context_len % options.block_size == 0
            assert context_len <= (known - 1 if options.prefix_caching else 0)
        served.held[place] = context_len + query_len
        assert served.held[place] <= known
        assert (place in step.sampling) == (served.held[place] == known)
    served.tokens.update(step.sampling)


def check_blocks(scheduler: Scheduler, served: Served, options: SchedulerOptions) -> None:
    """The running requests hold what they hold tokens in, or share it."""
    assert len(served.held) == scheduler.num_running
    needed = [-(-tokens // options.block_size) for tokens in served.held.values()]
    assert max(needed) <= scheduler.used_blocks <= min(sum(needed), options.num_blocks - 1)
    if not options.prefix_caching:
        assert scheduler.used_blocks == sum(needed)


def finish(scheduler: Scheduler, served: Served, step: Scheduled, requests: Sequence[TrafficRequest]) -> None:
    for place in scheduler.update(step):
        assert place not in served.ended
        assert served.tokens[place] == requests[place].output_len
        served.held.pop(place, None)
        served.ended.append(place)


@st.composite
def tight_options(draw: st.DrawFn) -> SchedulerOptions:
    """Options under which a KV cache holds one request and little more."""
    seats = draw(st.integers(1, 6))
    limits = Limits(max(draw(st.integers(1, 48)), seats), seats, draw(st.sampled_from([40, 64])))
    block_size = draw(st.sampled_from([1, 4, 7, 16]))
    return SchedulerOptions(
        limits,
        num_blocks=1 + -(-limits.max_model_len // block_size) + draw(st.integers(0, 4)),
        block_size=block_size,
        prefix_caching=draw(st.booleans()),
        priority=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 5, 20])),
        async_scheduling=draw(st.booleans()),
    )


@st.composite
def some_requests(draw: st.DrawFn) -> list[TrafficRequest]:
    """Requests of at most 40 tokens, some of whose prompts begin alike or with what another was answered."""
    requests = []
    for _ in range(draw(st.integers(1, 10))):
        segments = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 8)), max_size=3))
        prompt_len = sum(tokens for _, tokens in segments) or draw(st.integers(1, 25))
        output = draw(st.none() | st.integers(0, 2))
        priority = draw(st.integers(0, 2))
        output_len = draw(st.integers(1, 15))
        requests.append(
            TrafficRequest(0, prompt_len, output_len, segments=tuple(segments), output=output, priority=priority)
        )
    return requests


@given(tight_options(), some_requests(), st.lists(st.integers(0, 6), min_size=10, max_size=10))
def test_every_request_is_served_once_within_the_limits(
    engine: Engine, options: SchedulerOptions, requests: list[TrafficRequest], gaps: list[int]
) -> None:
    scheduler = engine.scheduler(options)
    served = serve(scheduler, options, requests, gaps)
    assert served.tokens == {place: request.output_len for place, request in enumerate(requests)}
    for place, request in enumerate(requests):
        first = next(step for step in served.steps if place in step.requests)
        assert scheduler.cached_tokens(place) == first.context_lens[first.requests.index(place)] < request.prompt_len
    # Every block can be had again, whatever is remembered of what it held.
    longest = options.limits.max_model_len
    one_by_one(scheduler, [TrafficRequest(0, longest - 1, 1)], first=len(requests))
    assert scheduler.used_blocks == 0


def one_by_one(scheduler: Scheduler, requests: Sequence[TrafficRequest], first: int = 0) -> list[list[str]]:
    """The steps of each request when it is there alone."""
    steps = []
    for place, request in enumerate(requests, first):
        scheduler.add(place, request)
        own: list[str] = []
        ended: Sequence[int] = ()
        while not ended:
            step = scheduler.schedule()
            assert step is not None
            assert step.requests == [place]
            own.append(batch_of(step))
            ended = scheduler.update(step)
        assert ended == [place]
        steps.append(own)
    return steps


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("prompt_len", "found"), [(40, 32), (41, 40), (39, 32), (8, 0), (9, 8), (1, 0)], ids=str)
def test_a_prompt_that_is_cached_computes_one_block_at_most(
    engine: Engine, prompt_len: int, found: int, asynchronous: bool
) -> None:
    scheduler = engine.scheduler(replace(ROOMY, async_scheduling=asynchronous))
    request = TrafficRequest(0, prompt_len, 1, segments=((7, prompt_len),))
    assert one_by_one(scheduler, [request, request]) == [[f"{prompt_len}+0"], [f"{prompt_len - found}+{found}"]]
    assert [scheduler.cached_tokens(place) for place in (0, 1)] == [0, found]


def test_a_later_turn_finds_what_was_answered(engine: Engine) -> None:
    turns = [
        TrafficRequest(0, 20, 13, segments=((1, 20),), output=2),
        TrafficRequest(0, 43, 1, segments=((1, 20), (2, 13), (3, 10))),
        TrafficRequest(0, 43, 1, segments=((1, 20), (4, 23))),
        TrafficRequest(0, 43, 1),
    ]
    scheduler = engine.scheduler(ROOMY)
    one_by_one(scheduler, turns)
    # The KV of the last token generated is never computed: 32 of 33 tokens are there. Two full blocks are of one name.
    assert [scheduler.cached_tokens(place) for place in range(4)] == [0, 32, 16, 0]


def test_prompts_that_share_nothing_are_never_found(engine: Engine) -> None:
    scheduler = engine.scheduler(ROOMY)
    one_by_one(scheduler, [TrafficRequest(0, 40, 20) for _ in range(4)])
    one_by_one(scheduler, [TrafficRequest(0, 40, 1, segments=((place, 40),)) for place in range(4)], first=4)
    assert not any(scheduler.cached_tokens(place) for place in range(8))


def test_a_long_prompt_is_bounded_where_others_are_there(engine: Engine) -> None:
    options = replace(ROOMY, long_prefill_token_threshold=10)
    requests = [TrafficRequest(0, 50, 1), TrafficRequest(0, 12, 1)]
    # vLLM 0.26 bounds a prompt that is there alone as well.
    alone = ["10+20", "10+30", "10+40"] if engine.version.startswith("0.26") else ["30+20"]
    assert serve(engine.scheduler(options), options, requests).batches == ["2x10+0", "10+10,2+10", *alone]


def test_the_smallest_priority_goes_first_and_the_largest_makes_room(engine: Engine) -> None:
    limits = Limits(max_num_tokens=64, max_num_seqs=3, max_model_len=32)
    options = SchedulerOptions(limits, 6, block_size=8, prefix_caching=False, priority=True, async_scheduling=False)
    requests = [TrafficRequest(0, 14, 12, priority=priority) for priority in (2, 0, 1)]
    served = serve(engine.scheduler(options), options, requests)
    assert served.steps[0].requests == [1, 2]  # the third does not fit
    assert [step.preempted for step in served.steps if step.preempted] == [[2], [0]]
    assert served.ended == [1, 2, 0]


def test_who_makes_room_for_itself_leaves_no_empty_step(engine: Engine) -> None:
    limits = Limits(max_num_tokens=64, max_num_seqs=3, max_model_len=32)
    options = SchedulerOptions(limits, 6, block_size=8, priority=True, async_scheduling=False)
    requests = [TrafficRequest(0, 15, 8, priority=1), TrafficRequest(0, 17, 2)]
    served = serve(engine.scheduler(options), options, requests, gaps=(1, 0))
    assert served.batches[:4] == ["15+0", "1+15,17+0", "1+17", "1+16"]
    assert [step.preempted for step in served.steps[:4]] == [[], [], [0], []]


def test_the_last_to_come_makes_room_and_goes_on_where_it_was(engine: Engine) -> None:
    limits = Limits(max_num_tokens=64, max_num_seqs=3, max_model_len=32)
    options = SchedulerOptions(limits, 6, block_size=8, async_scheduling=False)
    requests = [TrafficRequest(0, 14, 12) for _ in range(3)]
    served = serve(engine.scheduler(options), options, requests)
    assert [step.preempted for step in served.steps if step.preempted] == [[1], [2]]
    assert served.ended == [0, 1, 2]
    # Of its two full blocks the last was taken by the first request, the other is found again.
    assert next(batch_of(step) for step in served.steps if step.requests == [1, 2]) == "9+8,14+0"


def test_asynchronous_scheduling_does_not_wait_for_tokens(engine: Engine) -> None:
    options = replace(ROOMY, async_scheduling=True)
    scheduler = engine.scheduler(options)
    scheduler.add(0, TrafficRequest(0, 10, 3))
    steps = [scheduler.schedule() for _ in range(2)]
    assert [batch_of(step) for step in steps if step] == ["10+0", "1+10"]
    assert steps[0] is not None
    assert scheduler.update(steps[0]) == []
    last = scheduler.schedule()
    assert last is not None
    assert steps[1] is not None
    assert scheduler.update(steps[1]) == []
    assert scheduler.schedule() is None  # its last token is under way
    assert scheduler.update(last) == [0]
    assert scheduler.used_blocks == 0


@given(
    st.builds(
        Workload, st.integers(1, 100), st.integers(1, 20), st.integers(1, 8), num_reqs=st.none() | st.integers(8, 12)
    )
)
def test_equal_requests_make_the_steps_of_the_virtual_scheduler(engine: Engine, workload: Workload) -> None:
    scheduler = engine.scheduler(replace(ROOMY, prefix_caching=False))
    batches, arrived = [], workload.concurrency
    for place in range(arrived):
        scheduler.add(place, TrafficRequest(0, workload.prompt_len, workload.output_len))
    while (step := scheduler.schedule()) is not None:
        batches.append(batch_of(step))
        for _ in scheduler.update(step):
            if arrived < workload.total_reqs:
                scheduler.add(arrived, TrafficRequest(0, workload.prompt_len, workload.output_len))
                arrived += 1
    assert batches == [str(step.batch) for step in steps_of(workload, LIMITS)[0]]


def test_what_cannot_be_scheduled_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"request 3 of 100 \+ 29 tokens exceeds max_model_len 128"):
        engine.scheduler(ROOMY).add(3, TrafficRequest(0, 100, 29))
    with pytest.raises(ConfigurationError, match="refuses .* max_num_batched_tokens"):
        engine.scheduler(replace(ROOMY, limits=Limits(max_num_tokens=3, max_num_seqs=4, max_model_len=128)))
