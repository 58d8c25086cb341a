"""The native scheduler beside vLLM's own, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduling.schedulers import RARE, Coming, arrivals, drive, options

pytest.importorskip("vllm")

from pytest_dooly.engine.vllm.scheduler import VllmScheduler
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import SchedulerOptions


@given(st.data())
def test_the_native_scheduler_takes_the_steps_of_vllm(data: st.DataObject) -> None:
    asked = data.draw(options())
    check_alike(asked, data.draw(arrivals(asked.limits.max_model_len)))


@pytest.mark.parametrize("name", RARE)
def test_so_it_does_where_something_rare_happens(name: str) -> None:
    check_alike(*RARE[name])


def check_alike(asked: SchedulerOptions, coming: Coming) -> None:
    theirs = VllmScheduler(asked)
    ours = NativeScheduler(asked)
    assert drive(ours, asked, coming) == drive(theirs, asked, coming)
    places = range(sum(map(len, coming.values())))
    assert [ours.cached_tokens(place) for place in places] == [theirs.cached_tokens(place) for place in places]
