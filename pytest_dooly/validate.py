"""Predictions against the real engine: many workloads, interleaved and repeated."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_dooly.core.routing import UNIFORM
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.draw import Replacement
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.validation import Validation, ValidationRow
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_workload
from pytest_dooly.regress.regressor import Regressor

if TYPE_CHECKING:
    from pytest_dooly.engine.base import RequestTiming, Session

__all__ = ["noise_floor", "validate"]

_Timing = tuple[float, float | None]
"""Mean TTFT and mean TPOT of a workload's requests in one round, in seconds."""


def validate(
    session: Session,
    model: ServedModel,
    regressors: Mapping[str, Regressor],
    workloads: Sequence[Workload],
    *,
    repeats: int = 3,
    seed: int = 0,
    replaced: Sequence[Replacement] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Validation:
    """Predicted and measured TTFT and TPOT of every workload, with the noise floor.

    The workloads run in a shuffled order, all of them once before any runs again, so that a slow minute of the machine
    falls on all alike. A workload's measured value is the median of its repeats; its noise floor is the median error
    of predicting each repeat by the median of the others: what no predictor that knows one number can beat.

    Args:
        session: of the whole model.
        model: what is served.
        regressors: by signature key.
        workloads: what runs, each once a round.
        repeats: how often each runs, after one warm-up; at least 2.
        seed: of the order.
        replaced: those among the workloads that stand for dearer ones.
        progress: called with a line before each round.

    Raises:
        ConfigurationError: a request would be longer than max_model_len.
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    # First, so that what cannot be predicted is not run in vain.
    times = StepTimes(model, regressors, routing=UNIFORM)  # the engine's weights are random
    predicted = [predict_workload(times, workload) for workload in workloads]
    timings: dict[Workload, list[_Timing]] = {workload: [] for workload in workloads}
    order = random.Random(seed)
    for repeat in range(repeats + 1):
        progress(f"round {repeat} of {repeats}" if repeat else "warm-up")
        for workload in order.sample(list(workloads), len(workloads)):
            timing = _mean(session.generate(workload))
            if repeat:
                timings[workload].append(timing)
    rows = tuple(_row(prediction, timings[prediction.workload]) for prediction in predicted)
    return Validation(rows, tuple(replaced), _drift(timings))


def noise_floor(repeats: Sequence[float]) -> float:
    """Median relative error of predicting each repeat by the median of the others, 0.05 for 5 %."""
    errors = []
    for i, value in enumerate(repeats):
        others = statistics.median([*repeats[:i], *repeats[i + 1 :]])
        errors.append(abs(others - value) / value)
    return statistics.median(errors)


def _mean(requests: Sequence[RequestTiming]) -> _Timing:
    tpots = [request.tpot_s for request in requests if request.tpot_s is not None]
    return statistics.fmean(request.ttft_s for request in requests), statistics.fmean(tpots) if tpots else None


def _drift(timings: Mapping[Workload, Sequence[_Timing]]) -> tuple[float, ...]:
    """How much slower each later round was than the first, over all workloads the median."""
    slower: list[list[float]] = []
    for workload, rounds in timings.items():
        first_s, *later_s = [ttft + (tpot or 0.0) * (workload.output_len - 1) for ttft, tpot in rounds]
        slower.append([latency_s / first_s - 1 for latency_s in later_s])
    return tuple(map(statistics.median, zip(*slower, strict=True)))


def _row(predicted: WorkloadPrediction, timings: Sequence[_Timing]) -> ValidationRow:
    ttfts = [ttft for ttft, _ in timings]
    tpots = [tpot for _, tpot in timings if tpot is not None]
    return ValidationRow(
        workload=predicted.workload,
        predicted_ttft_s=predicted.ttft_s,
        measured_ttft_s=statistics.median(ttfts),
        ttft_noise=noise_floor(ttfts),
        predicted_tpot_s=predicted.tpot_s,
        measured_tpot_s=statistics.median(tpots) if tpots else None,
        tpot_noise=noise_floor(tpots) if tpots else None,
    )
