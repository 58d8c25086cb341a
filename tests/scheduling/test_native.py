"""The native scheduler by itself: nothing is lost, nothing exceeds a limit. That it is vLLM's is shown beside vLLM."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from tests.scheduling.schedulers import BLOCK, RARE, arrivals, drive, options


@given(st.data())
def test_nothing_is_lost_or_served_twice_and_no_step_exceeds_a_limit(data: st.DataObject) -> None:
    asked = data.draw(options())
    coming = data.draw(arrivals(asked.limits.max_model_len))
    scheduler = NativeScheduler(asked)
    said = drive(scheduler, asked, coming)
    requests = [request for turn in sorted(coming) for request in coming[turn]]
    tokens = Counter(place for _, sampling, _, _ in said for place in sampling)
    assert tokens == {place: request.output_len for place, request in enumerate(requests)}
    ended = [place for *_, done in said for place in done]
    assert sorted(ended) == list(range(len(requests)))
    for parts, sampling, _, _ in said:
        assert sum(query_len for query_len, _ in parts.values()) <= asked.limits.max_num_tokens
        assert len(parts) <= asked.limits.max_num_seqs
        assert sampling <= parts.keys()
        for place, (query_len, context_len) in parts.items():
            assert query_len >= 1
            assert context_len + query_len < requests[place].prompt_len + requests[place].output_len
    assert scheduler.num_running == scheduler.num_waiting == scheduler.used_blocks == 0


@pytest.mark.parametrize("name", RARE)
def test_what_rarely_happens_loses_nothing(name: str) -> None:
    asked, coming = RARE[name]
    scheduler = NativeScheduler(asked)
    said = drive(scheduler, asked, coming)
    tokens = Counter(place for _, sampling, _, _ in said for place in sampling)
    requests = [request for turn in sorted(coming) for request in coming[turn]]
    assert tokens == {place: request.output_len for place, request in enumerate(requests)}
    assert any(preempted for *_, preempted, _ in said)
    assert scheduler.used_blocks == 0


def test_who_was_thrown_out_waits_for_what_is_under_way() -> None:
    """The second asks for a block while the last token of the first is under way: it throws itself out."""
    asked = SchedulerOptions(Limits(8, 3, 12), 4, block_size=BLOCK, prefix_caching=False)
    scheduler = NativeScheduler(asked)
    scheduler.add(0, TrafficRequest(0.0, 5, 2))
    under_way = [scheduler.schedule()]
    scheduler.add(1, TrafficRequest(1.0, 4, 2))
    under_way.append(scheduler.schedule())
    assert under_way[0] is not None
    scheduler.update(under_way[0])
    assert [scheduler.schedule() for _ in range(2)] == [None, None]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    assert under_way[1] is not None
    assert scheduler.update(under_way[1]) == [0]
    again = scheduler.schedule()
    assert again is not None
    assert (again.requests, again.query_lens, again.preempted) == ([1], [5], [1])
    assert scheduler.update(again) == [1]


@given(st.data())
def test_the_same_requests_make_the_same_steps(data: st.DataObject) -> None:
    asked = data.draw(options())
    coming = data.draw(arrivals(asked.limits.max_model_len))
    assert drive(NativeScheduler(asked), asked, coming) == drive(NativeScheduler(asked), asked, coming)


@given(st.integers(2, 50), st.booleans())
def test_a_prompt_that_is_in_the_cache_computes_one_block_at_most(prompt_len: int, async_scheduling: bool) -> None:
    asked = SchedulerOptions(Limits(64, 4, 64), 100, block_size=BLOCK, async_scheduling=async_scheduling)
    same = TrafficRequest(0.0, prompt_len, 3, ((1, prompt_len),))
    scheduler = NativeScheduler(asked)
    said = drive(scheduler, asked, {0: [same], 20: [same]})
    computed = sum(parts[1][0] for parts, *_ in said if 1 in parts and parts[1][0] + parts[1][1] <= prompt_len)
    assert 1 <= computed <= BLOCK
    assert scheduler.cached_tokens(1) == prompt_len - computed
    assert scheduler.cached_tokens(0) == 0


def test_prompts_that_begin_alike_share_whole_blocks_and_no_more() -> None:
    asked = SchedulerOptions(Limits(64, 4, 64), 100, block_size=BLOCK)
    first = TrafficRequest(0.0, 30, 2, ((1, 18), (2, 12)))
    second = TrafficRequest(0.0, 30, 2, ((1, 18), (3, 12)))
    scheduler = NativeScheduler(asked)
    drive(scheduler, asked, {0: [first], 10: [second]})
    assert scheduler.cached_tokens(1) == 16


def test_a_later_turn_finds_what_the_earlier_one_has_generated() -> None:
    asked = SchedulerOptions(Limits(64, 4, 64), 100, block_size=BLOCK)
    first = TrafficRequest(0.0, 8, 9, ((1, 8),), output=5)
    second = TrafficRequest(0.0, 20, 2, ((1, 8), (5, 9), (2, 3)))
    scheduler = NativeScheduler(asked)
    drive(scheduler, asked, {0: [first], 30: [second]})
    assert scheduler.cached_tokens(1) == 16  # the last generated token was never computed


def test_without_prefix_caching_nothing_is_found() -> None:
    asked = SchedulerOptions(Limits(64, 4, 64), 100, block_size=BLOCK, prefix_caching=False)
    same = TrafficRequest(0.0, 32, 2, ((1, 32),))
    scheduler = NativeScheduler(asked)
    drive(scheduler, asked, {0: [same], 10: [same]})
    assert scheduler.cached_tokens(1) == 0


def test_what_does_not_fit_beside_others_is_preempted_and_comes_back() -> None:
    """Two requests of 40 tokens at the end, in a cache for 15 blocks of four: one of them has to go."""
    asked = SchedulerOptions(Limits(64, 4, 60), 16, block_size=BLOCK, prefix_caching=False, async_scheduling=False)
    said = drive(NativeScheduler(asked), asked, {0: [TrafficRequest(0.0, 20, 20)] * 2})
    assert [preempted for *_, preempted, _ in said if preempted] == [{1}]
    again = [parts[1] for parts, *_ in said if 1 in parts and parts[1][1] == 0]
    assert again[0] == (20, 0)
    assert again[1][0] > 20  # what it had generated is computed again


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_state_takes_room_as_long_as_its_request_runs(prefix_caching: bool) -> None:
    """Three requests of two blocks and a state of four: two fit into 15 blocks, and the third has to wait."""
    limits = Limits(max_num_tokens=64, max_num_seqs=4, max_model_len=20)
    asked = SchedulerOptions(limits, 16, block_size=BLOCK, prefix_caching=prefix_caching, state_blocks=4)
    scheduler = NativeScheduler(asked)
    said = drive(scheduler, asked, {0: [TrafficRequest(0.0, 6, 2)] * 3})
    assert next(set(parts) for parts, *_ in said if parts) == {0, 1}
    assert {place for parts, *_ in said for place in parts} == {0, 1, 2}
    assert scheduler.used_blocks == 0
    assert asked.held(8) == 15 / 6
    with pytest.raises(ConfigurationError, match="do not hold one request of max_model_len 20: it takes 10"):
        SchedulerOptions(limits, 9, block_size=BLOCK, state_blocks=4)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_who_decodes_makes_room_for_the_prompt_of_one_that_goes_first(async_scheduling: bool) -> None:
    """A prompt of 16 tokens fits at first, then the decodes beside it take the block that its last tokens need."""
    limits = Limits(max_num_tokens=4, max_num_seqs=2, max_model_len=20)
    asked = SchedulerOptions(limits, 8, block_size=BLOCK, priority=True, async_scheduling=async_scheduling)
    coming = {0: [TrafficRequest(0.0, 8, 12, priority=1)], 3: [TrafficRequest(3.0, 16, 2)]}
    scheduler = NativeScheduler(asked)
    said = drive(scheduler, asked, coming)
    at, (parts, *_) = next((at, step) for at, step in enumerate(said) if step[2])
    assert said[at - 1][0].keys() == {0, 1}
    assert [step[2] for step in said if step[2]] == [{0}]
    assert parts.keys() == {1}
    assert scheduler.used_blocks == 0


def test_without_asynchronous_scheduling_a_decode_waits_for_its_token() -> None:
    asked = SchedulerOptions(Limits(64, 4, 60), 100, block_size=BLOCK, async_scheduling=False)
    scheduler = NativeScheduler(asked)
    scheduler.add(0, TrafficRequest(0.0, 8, 3, output=1))
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        assert scheduler.schedule() is None
        ended = scheduler.update(step)
    assert ended == [0]
    assert scheduler.used_blocks == 0


def test_a_step_lists_those_who_decode_together_as_they_were() -> None:
    asked = SchedulerOptions(Limits(64, 4, 60), 100, block_size=BLOCK, async_scheduling=False)
    scheduler, steps = NativeScheduler(asked), []
    for place in range(2):
        scheduler.add(place, TrafficRequest(0.0, 8 + place, 2 + place))
    while (step := scheduler.schedule()) is not None:
        steps.append(step)
        scheduler.update(step)
    assert [step.requests for step in steps] == [[0, 1], [0, 1], [1]]
    assert [step.query_lens for step in steps] == [[8, 9], [1, 1], [1]]
    assert [step.context_lens for step in steps] == [[0, 0], [8, 9], [10]]
    assert [step.sampling for step in steps] == [[0, 1], [0, 1], [1]]
    assert [(step.num_decodes, step.decode_tokens, step.num_tokens) for step in steps] == [
        (0, 0, 17),
        (2, 17, 2),
        (1, 10, 1),
    ]


def test_a_request_that_is_too_long_is_refused() -> None:
    scheduler = NativeScheduler(SchedulerOptions(Limits(64, 4, 60), 100))
    with pytest.raises(ConfigurationError, match=r"request 3 of 50 \+ 11 tokens exceeds max_model_len 60"):
        scheduler.add(3, TrafficRequest(0.0, 50, 11))


def test_a_cache_too_small_for_one_request_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="3 KV blocks of 16 tokens do not hold one request of max_model_len 60"
    ):
        SchedulerOptions(Limits(64, 4, 60), 3)
