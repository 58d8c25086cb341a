"""Step times from tables beside what the predictor says of the very step."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.work import Features, Work
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.scheduling.scheduler import Scheduled
from tests.samples import model_and_regressors

MODEL, REGRESSORS = model_and_regressors()


def step_of(parts: Sequence[tuple[int, int]]) -> Scheduled:
    return Scheduled(range(len(parts)), [query for query, _ in parts], [context for _, context in parts], [])


@pytest.fixture(scope="module")
def times() -> StepTimes:
    return StepTimes(MODEL, REGRESSORS)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_takes_what_the_predictor_says(times: StepTimes, seed: int) -> None:
    draw = random.Random(seed)
    contexts = [draw.randint(1, 900) for _ in range(draw.randint(0, 6))]
    chunks = [(draw.randint(2, 200), draw.choice([0, draw.randint(1, 500)])) for _ in range(draw.randint(0, 2))]
    if not contexts and not chunks:
        chunks = [(5, 0)]
    step = step_of([*((1, context) for context in contexts), *chunks])
    assert times.step_s(step) == pytest.approx(predict_step(MODEL, REGRESSORS, step.batch).latency_s, rel=0.02)


def test_what_lies_outside_of_the_measured_is_told_only_where_it_was_asked_for() -> None:
    times = StepTimes(MODEL, REGRESSORS)
    times.step_s(step_of([*[(1, 25)] * 4, (50, 0)]))
    assert times.out_of_range() == ()
    times.step_s(step_of([(1, 1000)] * 4))
    assert any("attention" in line and "is outside of the measured" in line for line in times.out_of_range())


def test_a_model_without_latencies_is_refused() -> None:
    with pytest.raises(MissingMeasurements, match="has no regressor for"):
        StepTimes(MODEL, {})


class Dearer:
    """Attention that takes 1 us a decode, 3 us beside prompts, and 10 us a prompt."""

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> npt.NDArray[np.float64]:
        work = points if isinstance(points, Work) else Work.of(points)
        prompts = Features(work, None).prompts
        num_prompts, num_decodes = work.sum(prompts), work.sum(1 - prompts)
        return 1e-6 * (10 * num_prompts + np.where(num_prompts > 0, 3, 1) * num_decodes)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        return None


def test_decodes_may_take_longer_beside_prompts() -> None:
    attended = next(o.signature.key for o in MODEL.operations if o.signature.name == "attention")
    models: dict[str, LatencyModel] = {**REGRESSORS, attended: Dearer()}
    times = StepTimes(MODEL, models)
    for chunks in ([], [(16, 0)], [(100, 0)], [(16, 0), (60, 0)]):
        exact_s = predict_step(MODEL, models, Batch.of([*[(1, 64)] * 4, *chunks])).latency_s
        assert times.step_s(step_of([*[(1, 64)] * 4, *chunks])) == pytest.approx(exact_s, rel=1e-3)
