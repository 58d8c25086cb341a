"""Synthetic traffic: prefixes that are shared, sessions that go on, all of it from one seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation import synthetic
from pytest_dooly.simulation.arrivals import AT_ONCE, Arrivals
from pytest_dooly.simulation.lengths import Lengths, LengthTable, PromptAndOutput
from pytest_dooly.simulation.synthetic import Sessions, SharedPrefix, SyntheticTraffic

VARIED = PromptAndOutput(Lengths.parse("uniform:20,40"), Lengths.parse("uniform:1,9"))
FIXED = PromptAndOutput(Lengths.fixed(30), Lengths.fixed(5))
RATE = Arrivals.parse("2@20,4@10")


def families(requests: list[TrafficRequest]) -> list[list[TrafficRequest]]:
    """Requests by session, in order."""
    found: list[list[TrafficRequest]] = []
    of: dict[int, list[TrafficRequest]] = {}
    for place, request in enumerate(requests):
        if request.follows is None:
            found.append([])
        of[place] = found[-1] if request.follows is None else of[request.follows]
        of[place].append(request)
    return found


def test_plain_requests_share_nothing() -> None:
    traffic = SyntheticTraffic(RATE, VARIED).draw(1)
    assert len(traffic.requests) == 80
    assert [request.stage for request in traffic.requests] == [0] * 40 + [1] * 40
    assert {(r.segments, r.output, r.follows) for r in traffic.requests} == {((), None, None)}
    assert {r.prompt_len for r in traffic.requests} <= set(range(20, 41))
    assert {r.output_len for r in traffic.requests} == set(range(1, 10))
    assert traffic.concurrency is None


def test_a_closed_loop_is_all_at_once_and_a_bound() -> None:
    traffic = SyntheticTraffic(AT_ONCE, FIXED, concurrency=4).draw(num_requests=10)
    assert traffic.concurrency == 4
    assert [request.arrival_s for request in traffic.requests] == [0] * 10


@given(
    st.integers(0, 5),
    st.sampled_from([None, SharedPrefix(2, 3, 50)]),
    st.sampled_from([None, Sessions(Lengths.parse("uniform:1,4"), 3)]),
)
def test_the_same_seed_gives_the_same_traffic(
    seed: int, prefix: SharedPrefix | None, sessions: Sessions | None
) -> None:
    laws = SyntheticTraffic(RATE, VARIED, prefix, sessions)
    assert laws.draw(seed) == laws.draw(seed)
    assert laws.draw(seed) != laws.draw(seed + 1)


def test_another_rate_leaves_the_lengths() -> None:
    slow, fast = (SyntheticTraffic(Arrivals.parse(rate), VARIED).draw(num_requests=50) for rate in ("1", "9"))
    assert [r.prompt_len for r in slow.requests] == [r.prompt_len for r in fast.requests]
    assert slow.requests[-1].arrival_s == pytest.approx(50)
    assert fast.requests[-1].arrival_s == pytest.approx(50 / 9)


def test_arrivals_end_with_the_duration() -> None:
    assert len(SyntheticTraffic(Arrivals.parse("8"), FIXED).draw(duration_s=5).requests) == 40


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 200), st.integers(1, 120), st.integers(0, 3))
def test_questions_of_all_groups_are_asked_in_turn(
    groups: int, prompts: int, tokens: int, number: int, seed: int
) -> None:
    prefix = SharedPrefix(groups, prompts, tokens)
    requests = SyntheticTraffic(AT_ONCE, VARIED, prefix).draw(seed, num_requests=number).requests
    every = groups * prompts
    assert [r.segments for r in requests[every:]] == [r.segments for r in requests[: len(requests) - every]][
        : max(0, number - every)
    ]
    first = requests[:every]
    assert len({r.segments for r in first}) == len(first)
    for request in requests:
        (_, system), (_, question) = request.segments
        assert (system, question) == (tokens, request.prompt_len - tokens)
        assert 20 <= question <= 40
    if len(first) == every:
        assert Counter(r.segments[0] for r in first) == {(group, tokens): prompts for group in range(groups)}


def test_the_seed_decides_the_order_of_the_questions() -> None:
    laws = SyntheticTraffic(AT_ONCE, FIXED, SharedPrefix(10, 10, 100))
    orders = [tuple(r.segments for r in laws.draw(seed, num_requests=100).requests) for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])


@given(st.integers(0, 9), st.sampled_from([None, SharedPrefix(2, 3, 50)]))
def test_a_turn_says_again_all_that_was_said_and_asks_anew(seed: int, prefix: SharedPrefix | None) -> None:
    laws = SyntheticTraffic(RATE, VARIED, prefix, Sessions(Lengths.parse("uniform:1,4"), 3.5))
    requests = list(laws.draw(seed).requests)
    sessions = families(requests)
    assert len(sessions) == 80
    assert {len(session) for session in sessions} == {1, 2, 3, 4}
    for session in sessions:
        for before, after in pairwise(session):
            assert before.output is not None
            *repeated, (question, tokens) = after.segments
            assert repeated == [*before.segments, (before.output, before.output_len)]
            assert question not in {identity for identity, _ in repeated}
            assert after.prompt_len == before.prompt_len + before.output_len + tokens
            assert (after.arrival_s, after.stage) == (3.5, before.stage)
        assert session[-1].output is None


def test_what_sessions_say_is_their_own() -> None:
    laws = SyntheticTraffic(RATE, FIXED, SharedPrefix(2, 3, 50), Sessions(Lengths.fixed(3)))
    sessions = families(list(laws.draw(0).requests))
    # Of the opening two segments are shared, by the question's askers; all that follows is said once.
    later = [identity for session in sessions for identity, _ in session[-1].segments[2:]]
    opened = {identity for session in sessions for identity, _ in session[-1].segments[:2]}
    assert len(later) == len(set(later)) == 80 * 4
    assert len(opened) == 2 + 6
    assert not opened & set(later)
    assert min(opened | set(later)) >= 0


def test_lengths_of_a_table_stay_together() -> None:
    table = LengthTable((10, 20, 30), (1, 2, 3))
    requests = SyntheticTraffic(AT_ONCE, table).draw(num_requests=60).requests
    assert {(r.prompt_len, r.output_len) for r in requests} == {(10, 1), (20, 2), (30, 3)}


def test_a_prefix_is_read_and_written() -> None:
    assert SharedPrefix.parse("10x20x100") == SharedPrefix(10, 20, 100)
    assert str(SharedPrefix(10, 20, 100)) == "10x20x100"


@pytest.mark.parametrize("text", ["", "10x10", "10x10x0", "axbxc", "1x1x1x1", "-1x1x1"])
def test_a_prefix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot read {text!r} as a shared prefix"):
        SharedPrefix.parse(text)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="at least 1 group"):
        SharedPrefix(0, 1, 1)
    with pytest.raises(ConfigurationError, match="think time must be"):
        Sessions(Lengths.fixed(2), -1)
    with pytest.raises(ConfigurationError, match="a seed must not be negative, got -1"):
        SyntheticTraffic(AT_ONCE, FIXED).draw(-1, num_requests=1)
    monkeypatch.setattr(synthetic, "MOST_REQUESTS", 50)
    with pytest.raises(ConfigurationError, match="20 sessions have 60 turns, more than 50"):
        SyntheticTraffic(AT_ONCE, FIXED, sessions=Sessions(Lengths.fixed(3))).draw(num_requests=20)
