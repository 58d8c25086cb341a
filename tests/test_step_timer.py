"""Whole steps timed on the fake engine, whose clock a test turns by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine.base import IsolatedCall, RequestTiming
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.step_timer import StepTimer
from tests.samples import LINEAR, STEP, served, uses


class ByHand:
    """A clock, and a session whose passes take 1 ms a token in two spans, and whose own share is 5 ms."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.passes: list[Batch] = []
        self.points: list[str] = []

    def now(self) -> float:
        return self.seconds

    def of(self, signature: object) -> ByHand:
        return self

    @property
    def of_layers(self) -> ByHand:
        return self

    def ready(self, signature: object, call: IsolatedCall) -> IsolatedCall:
        return call

    def forward(self, batch: Batch, within: AbstractContextManager[object]) -> None:
        self.passes.append(batch)
        for _ in range(2):
            self.seconds += 1.0  # inputs are made, which does not count
            with within:
                self.seconds += 0.5e-3 * batch.num_tokens

    @contextmanager
    def isolate(self, operation: object, point: SweepPoint, clock: object) -> Iterator[IsolatedCall]:
        self.points.append(str(point))

        def run() -> None:
            self.seconds += 5e-3

        yield IsolatedCall(run)

    def generate(self, workload: Workload) -> tuple[RequestTiming, ...]:
        return (RequestTiming(0.1, None),) * workload.total_reqs


def timer(engine: Any) -> StepTimer:
    return StepTimer(served(uses(LINEAR), uses(STEP)), lambda: engine, engine)


def test_a_step_is_its_pass_and_the_engine_s_own_share_and_is_timed_once() -> None:
    engine = ByHand()
    time = timer(engine)
    assert time("8+0") == pytest.approx(13e-3)
    passes = len(engine.passes)
    assert time(Batch.parse("8")) == pytest.approx(13e-3)
    assert len(engine.passes) == passes
    assert time.measure("8").rounds == passes - 1  # the first is a warm-up


def test_the_engine_s_share_is_timed_at_short_contexts_which_would_have_to_be_computed() -> None:
    engine = ByHand()
    time = timer(engine)
    time("2x1+500")
    time("1+500,7+20")
    assert engine.points == ["2x1+16", "1+0,7+0"]


def test_what_the_engine_is_not_started_for_is_refused() -> None:
    time = timer(ByHand())
    with pytest.raises(ConfigurationError, match=r"the batch 513\+0 goes beyond .* 512 tokens and 8 requests a step"):
        time("513")
    with pytest.raises(ConfigurationError, match="exceed max_model_len 1024"):
        time.workload(Workload(1000, 100, 1))
    assert len(time.workload(Workload(10, 1, 2))) == 2
