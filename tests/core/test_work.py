"""Features of work: they grow with it, and arrays say the same as sweep points."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core import work as room
from pytest_dooly.core.batch import Batch, Request, Routing, SweepPoint
from pytest_dooly.core.work import FEATURES, Work, features_of

EVERY = tuple(FEATURES)
REQUESTS = st.builds(Request, st.integers(1, 512), st.integers(0, 4096))
WINDOWS = st.sampled_from([None, 64.0])


@given(st.lists(REQUESTS, min_size=1, max_size=6), REQUESTS, st.integers(0, 5), st.booleans(), WINDOWS)
def test_every_feature_grows_with_work(
    requests: list[Request], added: Request, grown: int, longer_context: bool, window: float | None
) -> None:
    base = Batch(tuple(requests))
    i = grown % len(requests)
    first = requests[i]
    longer = (
        Request(first.query_len, first.context_len + 7)
        if longer_context
        else Request(first.query_len + 7, first.context_len)
    )
    more = [Batch((*requests, added)), Batch((*requests[:i], longer, *requests[i + 1 :]))]
    rows = features_of(Work.of([SweepPoint(batch=batch) for batch in (base, *more)]), EVERY, window)
    assert (rows[1] >= rows[0]).all()
    assert (rows[2] >= rows[0]).all()


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 200))
def test_pairs_count_what_a_window_lets_attend(query_len: int, context_len: int, window: int) -> None:
    seen = [context_len + i for i in range(1, query_len + 1)]
    work = Work.of([SweepPoint(batch=Batch.uniform(1, query_len, context_len))])
    assert features_of(work, ("pairs",), None)[0, 0] == sum(seen)
    assert features_of(work, ("pairs",), float(window))[0, 0] == sum(min(length, window) for length in seen)


def test_a_mixed_batch_by_hand() -> None:
    work = Work.of([SweepPoint(batch=Batch.parse("3x1+9,20+5"))])
    names = ("num_reqs", "num_tokens", "prompt_tokens", "tile_tokens", "kv_tokens", "longest_kv", "prompt_pairs")
    assert features_of(work, names, None)[0].tolist() == [4, 23, 20, 16, 55, 25, 20 * 5 + 210]


def test_a_routed_point_by_hand() -> None:
    work = Work.of([SweepPoint(num_tokens=64, routing=Routing(activated=8, busiest=20))])
    assert features_of(work, ("size", "activated", "busiest", "busiest_tiles"), None)[0].tolist() == [64, 8, 20, 2]


@given(st.lists(st.lists(REQUESTS, min_size=1, max_size=5), min_size=1, max_size=8), WINDOWS)
def test_arrays_say_the_same_as_sweep_points(batches: list[list[Request]], window: float | None) -> None:
    points = [SweepPoint(batch=Batch(tuple(requests))) for requests in batches]
    flat = [request for requests in batches for request in requests]
    starts = np.cumsum([0, *map(len, batches)])[:-1]
    arrays = Work.of_batches([r.query_len for r in flat], [r.context_len for r in flat], starts)
    assert (features_of(arrays, EVERY, window) == features_of(Work.of(points), EVERY, window)).all()


@given(st.lists(st.tuples(REQUESTS, st.integers(1, 9)), min_size=1, max_size=5), WINDOWS)
def test_a_group_is_so_many_requests(groups: list[tuple[Request, int]], window: float | None) -> None:
    requests = [request for request, count in groups for _ in range(count)]
    grouped = Work.of_batches(
        [r.query_len for r, _ in groups], [r.context_len for r, _ in groups], [0], counts=[count for _, count in groups]
    )
    single = Work.of([SweepPoint(batch=Batch(tuple(requests)))])
    assert features_of(grouped, EVERY, window) == pytest.approx(features_of(single, EVERY, window))


def test_sizes_say_the_same_as_sweep_points() -> None:
    tokens, requests = Work.of_sizes([1, 64]), Work.of_sizes([3])
    assert (features_of(tokens, EVERY, None) == features_of(Work.of(_tokens(1, 64)), EVERY, None)).all()
    assert (features_of(requests, EVERY, None) == features_of(Work.of([SweepPoint(num_reqs=3)]), EVERY, None)).all()
    routed = Work.of_sizes([64], activated=[8], busiest=[20])
    point = SweepPoint(num_tokens=64, routing=Routing(activated=8, busiest=20))
    assert (features_of(routed, EVERY, None) == features_of(Work.of([point]), EVERY, None)).all()


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_blocks_are_the_same_points_in_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BLOCK", most)
    draw = random.Random(1)
    sizes = [draw.randrange(1, 5) for _ in range(20)]
    queries, contexts = ([draw.randrange(1, 99) for _ in range(sum(sizes))] for _ in range(2))
    counts, starts = [draw.randrange(1, 4) for _ in range(sum(sizes))], np.cumsum([0, *sizes])[:-1]
    for work in (
        Work.of_batches(queries, contexts, starts, counts=counts),
        Work.of_sizes(range(1, 21), activated=range(20), busiest=range(20, 40)),
    ):
        blocks = list(work.blocks())
        assert sum(map(len, blocks)) == len(work) == 20
        assert all(len(block.query_lens) <= most or len(block) == 1 for block in blocks)
        rows = np.concatenate([features_of(block, EVERY, None) for block in blocks])
        assert (rows == features_of(work, EVERY, None)).all()


def test_no_point_is_no_block() -> None:
    assert list(Work.of_sizes([]).blocks()) == []


def _tokens(*sizes: int) -> list[SweepPoint]:
    return [SweepPoint(num_tokens=size) for size in sizes]
