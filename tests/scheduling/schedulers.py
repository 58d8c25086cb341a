"""Drives a scheduler as the engine does, and writes down what it says."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.prefixes import Stretch
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions, room_for_all
from tests.samples import LIMITS

Said = tuple[Mapping[int, tuple[int, int]], frozenset[int], frozenset[int], frozenset[int]]
"""Tokens and context of each request, those that sample, those thrown out, those that ended after it."""

Coming = Mapping[int, Sequence[TrafficRequest]]
"""Requests by the number of the step before which they come."""

BLOCK = 4


def _tight(max_num_tokens: int, *, priority: bool = True, async_scheduling: bool = False) -> SchedulerOptions:
    limits = Limits(max_num_tokens, max_num_seqs=3, max_model_len=12)
    return SchedulerOptions(limits, 4, BLOCK, priority=priority, async_scheduling=async_scheduling)


RARE: dict[str, tuple[SchedulerOptions, Coming]] = {
    "a step that only throws out": (
        _tight(6),
        {4: [TrafficRequest(4.0, 2, 5, priority=1)], 6: [TrafficRequest(6.0, 5, 4)]},
    ),
    "thrown out of the step that is made": (
        _tight(12),
        {0: [TrafficRequest(0.0, 4, 4, priority=1)], 1: [TrafficRequest(1.0, 4, 2)]},
    ),
    "ends while it waits, by priority": (
        _tight(6, async_scheduling=True),
        {0: [TrafficRequest(0.0, 3, 3, priority=1), TrafficRequest(0.0, 5, 1, priority=1)]},
    ),
    "ends while it waits, in order": (
        _tight(8, priority=False, async_scheduling=True),
        {0: [TrafficRequest(0.0, 2, 8)], 5: [TrafficRequest(5.0, 1, 2)]},
    ),
}
"""What chance seldom draws."""


@st.composite
def options(draw: st.DrawFn) -> SchedulerOptions:
    """Small engines, in which everything runs short: tokens, seats, blocks."""
    max_num_seqs = draw(st.integers(1, 6))
    limits = Limits(
        max_num_tokens=draw(st.integers(max_num_seqs, 40)),  # vLLM refuses fewer
        max_num_seqs=max_num_seqs,
        max_model_len=draw(st.integers(8, 60)),
    )
    least = 1 + -(-limits.max_model_len // BLOCK)
    return SchedulerOptions(
        limits,
        num_blocks=least + draw(st.integers(0, 30)),
        block_size=BLOCK,
        prefix_caching=draw(st.booleans()),
        priority=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 3, 8])),
        async_scheduling=draw(st.booleans()),
    )


@st.composite
def arrivals(draw: st.DrawFn, longest: int) -> dict[int, list[TrafficRequest]]:
    """Requests by the number of the step before which they come; many begin alike, or with what others are answered."""
    coming: dict[int, list[TrafficRequest]] = {}
    for _ in range(draw(st.integers(1, 12))):
        prompt_len = draw(st.integers(1, longest - 1))
        output_len = draw(st.integers(1, min(12, longest - prompt_len)))
        shared = draw(st.integers(0, prompt_len))
        segments: tuple[tuple[int, int], ...] = ()
        if shared:
            own = (draw(st.sampled_from([10, 11, 12, 20, 21])), prompt_len - shared)
            segments = ((draw(st.integers(1, 2)), shared), *([own] if own[1] else []))
        step = draw(st.integers(0, 20))
        output, priority = draw(st.none() | st.integers(20, 21)), draw(st.integers(0, 2))
        request = TrafficRequest(float(step), prompt_len, output_len, segments, output, priority)
        coming.setdefault(step, []).append(request)
    return coming


def block_keys(stretches: Sequence[Stretch]) -> list[tuple[int, int]]:
    """Of each block the key of its stretch and its number: equal where all tokens up to its end are."""
    begins = [0, *(end for _, end in stretches)]
    return [(key, block) for begin, (key, end) in zip(begins, stretches, strict=False) for block in range(begin, end)]


def drive(scheduler: Scheduler, options: SchedulerOptions, coming: Coming) -> list[Said]:
    """Every step until all requests have ended."""
    under_way: deque[Scheduled] = deque()
    left, said, ended = sum(map(len, coming.values())), list[Said](), list[frozenset[int]]()
    place, turn = 0, 0
    while left:
        for request in coming.get(turn, ()):
            scheduler.add(place, request)
            place += 1
        step = scheduler.schedule() if len(under_way) <= options.async_scheduling else None
        if step is not None:
            under_way.append(step)
            parts = zip(step.requests, zip(step.query_lens, step.context_lens, strict=True), strict=True)
            said.append((dict(parts), frozenset(step.sampling), frozenset(step.preempted), frozenset()))
        if under_way and (step is None or len(under_way) > options.async_scheduling):
            done = frozenset(scheduler.update(under_way.popleft()))
            left -= len(done)
            ended.append(done)
        turn += 1
        assert turn < 5_000, "the scheduler does not come to an end"
    return [(*parts[:3], done) for parts, done in zip(said, ended, strict=True)]


class Steps(list[Scheduled]):
    """Steps of a second each, as they were asked for."""

    def step_s(self, step: Scheduled) -> float:
        self.append(step)
        return 1.0


def served(workload: Workload, limits: Limits = LIMITS) -> tuple[Steps, Simulated]:
    steps = Steps()
    scheduler = NativeScheduler(SchedulerOptions(limits, room_for_all(limits), async_scheduling=False))
    return steps, run(workload.traffic(), scheduler, steps, Server(async_scheduling=False))
