"""Objectives: what is written, and what it asks of a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.searching.objective import Bound, Objective
from tests.searching.samples import simulated

bounds = st.builds(
    Bound,
    st.sampled_from(["ttft", "tpot", "e2el"]),
    st.none() | st.integers(1, 99).map(float),
    st.integers(1, 10**6).map(lambda ms: ms / 1e3),
)


@given(st.lists(bounds, min_size=1, max_size=4, unique_by=lambda bound: bound.name))
def test_what_is_written_is_read_back(written: list[Bound]) -> None:
    read = Objective.parse(str(Objective(tuple(written))))
    assert [bound.name for bound in read.bounds] == [bound.name for bound in written]
    assert [bound.bound_s for bound in read.bounds] == pytest.approx([bound.bound_s for bound in written], rel=1e-5)


def test_without_a_statistic_the_tail_is_meant() -> None:
    assert Objective.parse("ttft:300ms") == Objective((Bound("ttft", 99.0, 0.3),))
    assert Objective.parse("e2el_mean:10s, tpot_p99.9:1s").bounds[1] == Bound("tpot", 99.9, 1.0)


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft:300", "itl:3ms", "ttft_p0:3ms", "ttft_p100:3ms", "ttft:0ms", "ttft:-1s"]
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="of the SLO: write it as ttft_p99"):
        Objective.parse(text)


def test_a_statistic_is_bounded_once() -> None:
    with pytest.raises(ConfigurationError, match="bounds ttft_p99 twice"):
        Objective.parse("ttft:300ms,ttft_p99:1s")
    assert len(Objective.parse("ttft_p50:300ms,ttft_p99:1s").bounds) == 2


def test_ratios_are_those_of_the_statistics() -> None:
    load = simulated([0.1, 0.2, 0.3, 0.4], [0.01, 0.01, 0.02, 0.04])
    assert Objective.parse("ttft_mean:500ms,tpot_p50:10ms,e2el_p75:1s").ratios(load) == pytest.approx(
        (0.5, 1.5, np.percentile([0.2, 0.3, 0.5, 0.8], 75))
    )


def test_a_request_of_one_token_misses_no_tpot() -> None:
    assert Objective.parse("tpot:1ms").ratios(simulated([0.1, 0.2], [0, 0], output_len=1)) == (0.0,)
