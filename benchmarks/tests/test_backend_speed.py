"""What the back end's speed is measured on, and what its error is relative to."""

from __future__ import annotations

import pytest

from benchmarks.backend_speed import draw, exact_s
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.prediction.step_times import StepTimes
from tests.samples import model_and_regressors


def test_steps_are_all_different_and_of_every_kind() -> None:
    steps = draw(200, seed=3)
    assert len({tuple(step) for step in steps}) == 200
    assert draw(200, seed=3) == steps
    chunks = {sum(query_len > 1 for query_len, _ in step) for step in steps}
    assert chunks == {0, 1, 2, 3}


@pytest.mark.parametrize("overlapped", [False, True])
def test_what_the_engine_does_meanwhile_counts_where_it_is_slower(overlapped: bool) -> None:
    model, regressors = model_and_regressors()
    backend = Backend(StepTimes(model, regressors, overlapped=overlapped))
    for step in ([(1, 8)], [(1, 8), (200, 0)]):  # 100 us of the engine beside 38, then 6 ms, of the device
        hidden_s, all_s = exact_s(model, regressors, step), backend.step_s(step)
        assert all_s == pytest.approx(hidden_s + (0 if overlapped else min(hidden_s, 1e-4)), rel=0.5)
        assert (all_s == pytest.approx(hidden_s, rel=1e-3)) is overlapped
