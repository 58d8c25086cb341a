"""Clocks that can be stopped; time is faked, never asserted."""

from __future__ import annotations

import pytest

from pytest_dooly import clock as clock_module
from pytest_dooly.clock import HostClock


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
    monkeypatch.setattr(clock_module, "time", fake)
    return fake


def test_a_stopped_clock_does_not_count(time: Time) -> None:
    clock = HostClock()
    start = clock.now()
    time.passes(1)
    clock.pause()
    time.passes(10)
    clock.resume()
    time.passes(2)
    assert clock.now() - start == 3


def test_pauses_nest(time: Time) -> None:
    clock = HostClock()
    start = clock.now()
    clock.pause()
    clock.pause()
    time.passes(5)
    clock.resume()
    time.passes(5)
    clock.resume()
    time.passes(1)
    assert clock.now() - start == 1
