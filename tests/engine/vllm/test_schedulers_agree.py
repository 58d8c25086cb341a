"""The native scheduler beside vLLM's own, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduling.schedulers import arrivals, drive, options

pytest.importorskip("vllm")

from pytest_dooly.engine.vllm.scheduler import VllmScheduler
from pytest_dooly.scheduling.native import NativeScheduler


@given(st.data())
def test_the_native_scheduler_takes_the_steps_of_vllm(data: st.DataObject) -> None:
    asked = data.draw(options())
    coming = data.draw(arrivals(asked.limits.max_model_len))
    theirs = VllmScheduler(asked)
    ours = NativeScheduler(asked)
    assert drive(ours, asked, coming) == drive(theirs, asked, coming)
    places = range(sum(map(len, coming.values())))
    assert [ours.cached_tokens(place) for place in places] == [theirs.cached_tokens(place) for place in places]
