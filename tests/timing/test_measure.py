"""When a case has been timed enough; time is faked, never asserted."""

from __future__ import annotations

import random

import pytest

from pytest_dooly.core.measurement import interval_of_median
from pytest_dooly.engine.base import IsolatedCall
from pytest_dooly.timing import measure
from pytest_dooly.timing.clock import HostClock
from pytest_dooly.timing.measure import MOST_ROUNDS, Reference, Settled, warm_up


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(measure, "time", fake)
    return fake


def rounds_until_settled(spread: float, precision: float, *, seed: int = 0) -> list[float]:
    draw, enough, samples = random.Random(seed), Settled(precision), list[float]()
    while not enough(samples):
        samples.append(draw.gauss(1.0, spread))
    return samples


def test_rounds_end_when_the_median_is_known(time: Time) -> None:
    samples = rounds_until_settled(0.05, 0.02)
    interval = interval_of_median(samples)
    assert interval is not None
    assert interval[1] - interval[0] <= 0.04 * sorted(samples)[len(samples) // 2]
    assert 7 < len(samples) < MOST_ROUNDS


def test_the_noisier_and_the_preciser_the_more_rounds(time: Time) -> None:
    calm, noisy = (sum(len(rounds_until_settled(s, 0.02, seed=i)) for i in range(5)) for s in (0.02, 0.08))
    assert calm < noisy
    assert sum(len(rounds_until_settled(0.02, 0.005, seed=i)) for i in range(5)) > calm


def test_there_is_a_floor_and_a_ceiling(time: Time) -> None:
    assert len(rounds_until_settled(0.0, 0.02)) == 7
    assert len(rounds_until_settled(0.3, 0.0001)) == MOST_ROUNDS


def test_a_slow_case_ends_with_the_fewest_rounds(time: Time) -> None:
    enough, samples = Settled(1e-6), list[float]()
    while not enough(samples):
        time.now_s += 1.0
        samples.append(1.0 + len(samples) % 3)
    assert len(samples) == 7


def test_a_warm_up_runs_what_precedes_too(time: Time) -> None:
    calls: list[str] = []
    warm_up(IsolatedCall(lambda: calls.append("run"), lambda: calls.append("before")))
    assert calls == ["before", "run"] * 3


def test_a_slow_warm_up_ends_early(time: Time) -> None:
    def run() -> None:
        time.now_s += 1.0

    start_s = time.now_s
    warm_up(IsolatedCall(run))
    assert time.now_s == start_s + 1.0


def test_the_reference_is_timed_with_the_clock_of_the_cases() -> None:
    clock = HostClock()
    samples = Reference(clock, "cpu").samples_s(4)
    assert len(samples) == 4
    assert all(sample > 0 for sample in samples)


class Slowed(Reference):
    """A reference whose rounds take as long as a test says."""

    def __init__(self, samples: list[float]) -> None:
        super().__init__(HostClock(), "cpu")
        self.looks = 0
        self._samples = samples

    def samples_s(self, rounds: int = 5) -> list[float]:
        self.looks += 1
        return [self._samples.pop(0) if len(self._samples) > 1 else self._samples[0]] * rounds


def test_a_case_waits_for_a_machine_that_is_slowed_down(time: Time) -> None:
    reference = Slowed([1.5, 1.4, 1.1, 1.0])
    reference.await_calm()
    assert reference.looks == 0  # nobody knows yet what is usual
    reference.levels_s = [1.0] * 5
    reference.await_calm()
    assert reference.looks == 3


def test_it_does_not_wait_for_ever(time: Time) -> None:
    reference, start_s = Slowed([2.0]), time.now_s
    reference.levels_s = [1.0] * 5
    reference.await_calm()
    assert 3.0 <= time.now_s - start_s < 3.2


def test_all_waiting_together_takes_a_tenth_of_the_time_spent_timing(time: Time) -> None:
    """A machine that is slowed down at every case, each of which takes a second."""
    reference, begin_s = Slowed([2.0]), time.now_s
    reference.levels_s = [1.0] * 5
    for _ in range(100):
        reference.await_calm(time.now_s - begin_s)
        time.now_s += 1.0
    assert 9.0 <= reference.waited_s <= 10.2
    assert time.now_s - begin_s == pytest.approx(100.0 + reference.waited_s)


def test_no_time_is_spent_on_waiting_before_any_on_timing(time: Time) -> None:
    reference = Slowed([2.0])
    reference.levels_s = [1.0] * 5
    for spent_s in (0.0, 0.9):  # a tenth of it is less than a pause
        reference.await_calm(spent_s)
    assert (reference.looks, reference.waited_s) == (0, 0.0)


def test_what_is_permanent_is_no_spell(time: Time) -> None:
    """From the fiftieth case on everything takes twice as long: half of the cases that are looked back on know it."""
    reference, begin_s, waits_s = Slowed([2.0]), time.now_s, []
    reference.levels_s = [1.0] * 50
    for _ in range(30):
        before_s = reference.waited_s
        reference.await_calm(time.now_s - begin_s + 1000.0)
        waits_s.append(reference.waited_s - before_s)
        reference.note([2.0])
    assert all(wait_s >= 3.0 for wait_s in waits_s[:8])
    assert waits_s[8:] == [0.0] * 22


def test_noise_is_what_sets_a_case_off_the_others() -> None:
    reference = Slowed([1.0])
    assert [reference.note([level] * 3) for level in (1.0, 1.0, 1.0, 1.5)] == [0.0, 0.0, 0.0, 0.5]
    assert reference.note([0.9, 1.0, 1.1]) == pytest.approx(0.148, rel=0.01)
