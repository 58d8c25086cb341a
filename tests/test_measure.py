"""How many rounds a case gets; time is faked, never asserted."""

from __future__ import annotations

import pytest

from pytest_dooly import measure
from pytest_dooly.engine.base import IsolatedCall
from pytest_dooly.measure import rounds_for


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(measure, "time", fake)
    return fake


@pytest.mark.parametrize(("round_s", "rounds"), [(1e-6, 101), (0.01, 40), (0.1, 15), (0.25, 8), (1.0, 5)])
def test_rounds_fit_into_a_case(time: Time, round_s: float, rounds: int) -> None:
    assert abs(rounds_for(IsolatedCall(lambda: time.passes(round_s))) - rounds) <= 1


def test_what_runs_before_a_round_takes_time_too(time: Time) -> None:
    calls: list[str] = []

    def before() -> None:
        calls.append("before")
        time.passes(0.01)

    assert abs(rounds_for(IsolatedCall(lambda: calls.append("run"), before)) - 40) <= 1
    assert calls == ["before", "run"] * 3
