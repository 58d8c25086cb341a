"""Exploring finds where a regressor is wrong and keeps what it times; latencies and time are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.errors import EngineError, MissingMeasurements
from pytest_dooly.exploring import Exploration, explorable
from tests.samples import ENVIRONMENT, LINEAR, SAMPLER, STEP, TOKENS, measured, served, uses

MODEL = served(uses(LINEAR), uses(SAMPLER), uses(STEP), uses(LINEAR))
OPERATION = MODEL.operations[0]


def bump(point: SweepPoint) -> float:
    """1 µs a token, and up to half as much again around 350, between two points of the grid of doubles."""
    tokens = point.num_tokens or 0
    return 1e-6 * tokens * (1 + 0.5 * math.exp(-((6 * math.log2(tokens / 350)) ** 2)))


class Bench:
    """In place of a Profiling: each point takes a second of a clock that nobody waits for."""

    def __init__(self, latency_s: Callable[[SweepPoint], float] = bump) -> None:
        self.plan = SimpleNamespace(environment=ENVIRONMENT)
        self.db = SimpleNamespace(measurements=lambda environment: self.kept)
        self.kept: dict[str, dict[SweepPoint, Measurement]] = {LINEAR.key: {p: measured(bump(p)) for p in TOKENS}}
        self.seconds = 0.0
        self.started = False
        self.timed: list[SweepPoint] = []
        self._latency_s = latency_s
        self._now_s = 0.0

    def clock(self) -> float:
        return self.seconds

    def beyond(self, model: ServedModel, operation: ModelOperation, point: SweepPoint) -> Any:
        return SimpleNamespace(operation=operation, point=point, id=f"{operation.signature.label}-{point}")

    def start(self, case: Any) -> None:
        self.seconds += 0.0 if self.started else 30.0
        self.started = True

    def timer(self, case: Any) -> Callable[[], float]:
        return lambda: self._now_s

    def time(self, case: Any, rounds: Callable[..., Sequence[float]]) -> Measurement | Failure:
        self.seconds += 1.0
        self.timed.append(case.point)
        try:
            latency_s = self._latency_s(case.point)
        except ValueError as error:
            return Failure(str(error))

        def run() -> None:
            self._now_s += latency_s

        samples_s = rounds(run, lambda: None, lambda samples: len(samples) >= 5, 301)
        outcome = Measurement.of(samples_s)
        self.kept[LINEAR.key] = {**self.kept[LINEAR.key], case.point: outcome}
        return outcome


def exploration(bench: Bench, budget_s: float = 60) -> Exploration:
    return Exploration(bench, budget_s, clock=bench.clock)  # type: ignore[arg-type]


def test_the_worst_error_is_found_told_and_mended() -> None:
    bench = Bench()
    found = exploration(bench)
    found.explore(MODEL, OPERATION)
    before, after = found.before(), found.after()
    assert before is not None
    assert after is not None
    assert 320 <= (before.point.num_tokens or 0) <= 380
    assert before.error == pytest.approx(1 / 3, abs=0.03)
    assert after.error < before.error
    lines = found.lines()
    assert lines[0] == f"{len(bench.timed)} points of 1 operations timed in 1.0 of 1 min"
    assert lines[1] == f"worst error before: {before.error:.1%}, {LINEAR.label} at {before.point}"
    assert lines[2].startswith("after refitting, each point by a fit without it: ")
    assert lines[3].startswith(f"  {LINEAR.label}")
    assert len(found.lines(verbosity=-1)) == 3


def test_no_point_is_timed_twice_and_the_budget_is_kept_which_the_engine_s_start_is_no_part_of() -> None:
    bench = Bench()
    found = exploration(bench, 10)
    found.explore(MODEL, OPERATION, share=0.5)
    assert len(bench.timed) == 5
    found.explore(MODEL, OPERATION)
    assert len(bench.timed) == 10
    assert len(set(bench.timed)) == 10
    assert not set(bench.timed) & set(TOKENS)
    found.explore(MODEL, OPERATION)
    assert len(bench.timed) == 10
    assert found.spent_s == 10


def test_what_is_known_everywhere_ends_early() -> None:
    bench = Bench()
    bench.kept[SAMPLER.key] = {SweepPoint(num_reqs=n): measured(1e-6 * n) for n in range(1, 9)}
    exploration(bench).explore(MODEL, MODEL.operations[1])
    assert bench.timed == []


def test_an_interrupt_keeps_and_tells_what_was_timed() -> None:
    def interrupted(point: SweepPoint) -> float:
        if len(bench.timed) > 3:
            raise KeyboardInterrupt
        return bump(point)

    bench = Bench(interrupted)
    found = exploration(bench)
    with pytest.raises(KeyboardInterrupt):
        found.explore(MODEL, OPERATION)
    assert len(bench.kept[LINEAR.key]) == len(TOKENS) + 3
    assert found.lines()[0].startswith("3 points of 1 operations timed in 0.1 of 1 min")


def test_points_that_fail_are_told_and_others_go_on() -> None:
    def fails(point: SweepPoint) -> float:
        if (point.num_tokens or 0) % 2:
            raise ValueError("odd")
        return bump(point)

    bench = Bench(fails)
    found = exploration(bench, 20)
    explored = found.explore(MODEL, OPERATION)
    assert explored.new
    assert all(reason.endswith(": odd") for reason in explored.failures)
    assert f", {len(explored.failures)} failed" in found.lines()[0]


def test_what_cannot_be_explored_is_said() -> None:
    with pytest.raises(MissingMeasurements, match="sampler.* has no measurement .* run pytest --dooly-model=small"):
        exploration(Bench()).explore(MODEL, MODEL.operations[1])

    def never_starts(point: SweepPoint) -> float:
        raise EngineError("no memory")

    found = exploration(Bench(never_starts))
    with pytest.raises(EngineError, match="no memory"):
        found.explore(MODEL, OPERATION)
    assert "none that is known" in found.lines()[1]


def test_each_signature_is_explored_once_and_the_engine_s_own_share_is_not() -> None:
    assert [operation.signature for _, operation in explorable([MODEL, MODEL])] == [LINEAR, SAMPLER]
