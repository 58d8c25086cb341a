"""Predictions against the real engine: a grid of workloads, interleaved and repeated."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_dooly.batch import Limits
from pytest_dooly.predict import Workload, predict_workload
from pytest_dooly.regress import Regressor
from pytest_dooly.signature import ServedModel
from pytest_dooly.validation import Validation, ValidationRow

if TYPE_CHECKING:
    from pytest_dooly.engine.base import RequestTiming, Session

__all__ = ["grid", "validate"]


def grid(
    limits: Limits, prompts: Sequence[int], concurrencies: Sequence[int], outputs: Sequence[int]
) -> tuple[Workload, ...]:
    """Every combination that the engine's limits allow."""
    return tuple(
        Workload(prompt, output, concurrency)
        for prompt in prompts
        for concurrency in concurrencies
        for output in outputs
        if prompt + output <= limits.max_model_len and concurrency <= limits.max_num_seqs
    )


def validate(
    session: Session,
    model: ServedModel,
    regressors: Mapping[str, Regressor],
    workloads: Sequence[Workload],
    *,
    repeats: int = 5,
    seed: int = 0,
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
        workloads: the grid.
        repeats: how often each runs, after one warm-up; at least 2.
        seed: of the order.
        progress: called with a line before each round.
    """
    timings: dict[Workload, list[tuple[float, float | None]]] = {workload: [] for workload in workloads}
    order = random.Random(seed)
    for repeat in range(repeats + 1):
        progress(f"round {repeat} of {repeats}" if repeat else "warm-up")
        for workload in order.sample(list(workloads), len(workloads)):
            timing = _mean(session.generate(workload.prompt_len, workload.output_len, workload.concurrency))
            if repeat:
                timings[workload].append(timing)
    return Validation(tuple(_row(model, regressors, workload, timings[workload]) for workload in workloads))


def noise_floor(repeats: Sequence[float]) -> float:
    """Median relative error of predicting each repeat by the median of the others, 0.05 for 5 %."""
    errors = []
    for i, value in enumerate(repeats):
        others = statistics.median([*repeats[:i], *repeats[i + 1 :]])
        errors.append(abs(others - value) / value)
    return statistics.median(errors)


def _mean(requests: Sequence[RequestTiming]) -> tuple[float, float | None]:
    tpots = [request.tpot_s for request in requests if request.tpot_s is not None]
    return statistics.fmean(request.ttft_s for request in requests), statistics.fmean(tpots) if tpots else None


def _row(
    model: ServedModel,
    regressors: Mapping[str, Regressor],
    workload: Workload,
    timings: Sequence[tuple[float, float | None]],
) -> ValidationRow:
    predicted = predict_workload(model, regressors, workload)
    ttfts = [ttft for ttft, _ in timings]
    tpots = [tpot for _, tpot in timings if tpot is not None]
    return ValidationRow(
        workload=workload,
        predicted_ttft_s=predicted.ttft_s,
        measured_ttft_s=statistics.median(ttfts),
        ttft_noise=noise_floor(ttfts),
        predicted_tpot_s=predicted.tpot_s,
        measured_tpot_s=statistics.median(tpots) if tpots else None,
        tpot_noise=noise_floor(tpots) if tpots else None,
    )
