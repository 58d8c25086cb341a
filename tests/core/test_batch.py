import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, Request, SweepPoint
from pytest_dooly.errors import ConfigurationError

requests = st.builds(Request, st.integers(1, 10_000), st.integers(0, 200_000))
groups = st.lists(st.tuples(st.integers(1, 5), requests), min_size=1, max_size=8)
batches = groups.map(lambda counted: Batch(tuple(request for count, request in counted for _ in range(count))))
sweep_points = (
    st.builds(SweepPoint, num_tokens=st.integers(1, 100_000))
    | st.builds(SweepPoint, num_reqs=st.integers(1, 2_000))
    | st.builds(SweepPoint, batch=batches)
)


@given(batches)
def test_a_batch_is_read_back_from_its_text(batch: Batch) -> None:
    assert Batch.parse(str(batch)) == batch


@given(batches, batches)
def test_equal_batches_have_equal_hashes_which_are_no_part_of_them(batch: Batch, other: Batch) -> None:
    again = Batch(tuple(batch.requests))
    assert hash(batch) == hash(batch) == hash(again)
    assert (batch == again, repr(batch)) == (True, repr(Batch(batch.requests)))
    assert {batch: 1, other: 2}[again] == (2 if batch == other else 1)
    changed = dataclasses.replace(batch, requests=(*batch.requests, Request(1)))
    assert hash(changed) == hash(Batch(changed.requests))


@given(sweep_points)
def test_a_sweep_point_is_read_back_from_its_text(point: SweepPoint) -> None:
    assert SweepPoint.parse(str(point)) == point


@given(sweep_points, sweep_points)
def test_different_sweep_points_have_different_texts(one: SweepPoint, other: SweepPoint) -> None:
    assert (str(one) == str(other)) == (one == other)


def test_text_groups_equal_neighbours_in_order() -> None:
    batch = Batch.of([(1, 512), (1, 512), (128, 0), (1, 512)])
    assert str(batch) == "2x1+512,128+0,1+512"
    assert Batch.parse("2x1+512, 128, 1+512") == batch


def test_sizes_of_a_batch() -> None:
    batch = Batch.parse("8x1+512,128+64")
    assert (batch.num_reqs, batch.num_tokens) == (9, 136)
    assert batch.requests[-1].seq_len == 192
    assert Batch.uniform(3, 4, 5) == Batch.parse("3x4+5")


@pytest.mark.parametrize("text", ["", "x5", "5+", "1,,2", "-1", "0x5", "0x5,1", "1 2", "1.5", "2x3x4"])
def test_what_cannot_be_read_is_named_with_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"as a batch: write \[NUMx\]QUERY_LEN\[\+CONTEXT_LEN\]"):
        Batch.parse(text)


@pytest.mark.parametrize(("query_len", "context_len"), [(0, 0), (-1, 5), (1, -1)])
def test_an_impossible_request_is_refused(query_len: int, context_len: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"got {query_len}\+{context_len}$"):
        Request(query_len, context_len)


def test_a_batch_without_requests_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one request"):
        Batch(())


@pytest.mark.parametrize("values", [{}, {"num_tokens": 1, "num_reqs": 1}, {"num_reqs": 1, "batch": Batch.of([(1, 0)])}])
def test_a_sweep_point_has_exactly_one_value(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        SweepPoint(**values)  # type: ignore[arg-type]
