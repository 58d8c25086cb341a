"""Step times from tables beside what the predictor says of the very step."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.work import Features, Work
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.scheduling.scheduler import Scheduled, Together
from tests.samples import ATTENTION, MIXTURE, model_and_regressors, served, uses

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


SHARED = dataclasses.replace(MIXTURE, attributes=(("data_parallel", 4), ("num_local_experts", 2), ("top_k", 2)))
"""A mixture whose eight experts four engines share."""


class Gathered:
    """A mixture that takes 10 us for each token of an engine, and 1 us for each of all engines."""

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> npt.NDArray[np.float64]:
        features = Features(points if isinstance(points, Work) else Work.of(points), None)
        return 1e-6 * (10 * features.tokens + features.gathered)

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        return None


@pytest.fixture(scope="module")
def together() -> StepTimes:
    """Four engines that replay graphs of up to 16 tokens, a tenth of a second for each request that attends."""
    model = served(uses(SHARED, 2), uses(ATTENTION), limits=Limits(512, 8, 1024, max_captured=16))
    return StepTimes(model, {SHARED.key: Gathered(), ATTENTION.key: REGRESSORS[ATTENTION.key]})


def seconds(tokens: int, gathered: int, requests: int) -> float:
    return 1e-6 * (2 * (10 * tokens + gathered) + requests)


def test_engines_that_share_experts_wait_for_the_one_that_takes_longest(together: StepTimes) -> None:
    prompt, decodes = step_of([(100, 0)]), step_of([(1, 32)] * 4)
    alone_s = together.step_s(Together([prompt, None, None, None]))
    assert alone_s == pytest.approx(seconds(100, 100, 1), rel=0.01)
    beside_s = together.step_s(Together([decodes, prompt, decodes, decodes]))
    assert beside_s == pytest.approx(seconds(100, 112, 1), rel=0.01)


def test_engines_that_replay_graphs_compute_as_many_tokens_as_the_one_with_most(together: StepTimes) -> None:
    few, most = step_of([(1, 32)] * 2), step_of([(1, 32)] * 8)
    assert together.step_s(Together([few, most, None, None])) == pytest.approx(seconds(8, 32, 8), rel=0.01)


def test_a_step_of_one_engine_is_that_of_all_of_them(together: StepTimes) -> None:
    decodes = step_of([(1, 32)] * 8)
    whole_s = together.step_s(Together([decodes] * 4))
    assert together.step_s(decodes) == pytest.approx(whole_s)
    step = predict_step(together.model, together.models, decodes.batch)
    assert whole_s == pytest.approx(step.latency_s, rel=0.01)


class Upto(Gathered):
    """The same, known of up to a hundred tokens of all engines."""

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        most = Features(points if isinstance(points, Work) else Work.of([points]), None).gathered.max()
        return f"{most:.0f} tokens" if most > 100 else None


def test_what_lies_outside_counts_the_tokens_that_all_engines_had_together(together: StepTimes) -> None:
    times = StepTimes(together.model, {**together.models, SHARED.key: Upto()})
    times.step_s(Together([step_of([(90, 0)]), None, None, None]))
    assert times.out_of_range() == ()  # not four times as many
    times.step_s(Together([step_of([(90, 0)]), step_of([(20, 0)]), None, None]))
    assert [line.rpartition(": ")[2] for line in times.out_of_range()] == ["110 tokens"]


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
