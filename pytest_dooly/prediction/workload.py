"""Workload -> scheduled steps -> TTFT, TPOT."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.schedule import Run, scheduled_runs
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.work import Work
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.step import (
    check_regressors,
    is_admission,
    is_in_forward,
    is_launch,
    step_operations,
    work_of,
)
from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["WorkloadPrediction", "predict_steps", "predict_workload"]


@dataclass(frozen=True)
class WorkloadPrediction:
    """Predicted latencies of a workload, in seconds, as vLLM's own benchmark defines them.

    Attributes:
        workload: what was asked.
        ttft_s: mean over the requests of arrival to first token.
        tpot_s: mean over the requests of (latency - TTFT) / (output_len - 1); None where output_len is 1.
        num_steps: engine steps simulated.
        duration_s: first arrival to last token.
        out_of_range: one line for each operation that was asked outside of its measured range.
    """

    workload: Workload
    ttft_s: float
    tpot_s: float | None
    num_steps: int
    duration_s: float
    out_of_range: tuple[str, ...] = ()


def predict_workload(
    model: ServedModel,
    regressors: Mapping[str, LatencyModel],
    workload: Workload,
    *,
    routing: RoutingDistribution = UNIFORM,
) -> WorkloadPrediction:
    """TTFT and TPOT of a workload that arrives at an idle engine.

    Requests are admitted one after the other, each one's clock starting with its own admission, before the next step.

    Args:
        model: what is served.
        regressors: by signature key.
        workload: equal requests.
        routing: how a mixture's router spreads tokens over experts.

    Raises:
        ConfigurationError: a request would be longer than max_model_len, or the routing has another number of experts
            than the model.
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    runs = list(scheduled_runs(workload, model.limits))
    latencies_s, out_of_range = predict_steps(model, regressors, _steps(runs), routing)
    admission_s = _admission_s(model, regressors, workload)
    admitted = [tuple(range(workload.concurrency)), *(run.arriving for run in runs[:-1])]
    bounds = np.cumsum([0, *(run.steps for run in runs)])
    latencies_s[bounds[:-1]] += admission_s * np.array([len(requests) for requests in admitted])
    ends_s = np.cumsum(latencies_s)
    bounds_s = np.concatenate([[0.0], ends_s])[bounds]
    arrivals_s, first_s, last_s = np.zeros((3, workload.total_reqs))
    for run, requests, (begin_s, end_s) in zip(runs, admitted, itertools.pairwise(bounds_s), strict=True):
        arrivals_s[list(requests)] = begin_s + admission_s * np.arange(len(requests))
        first_s[list(run.first)] = end_s
        last_s[list(run.last)] = end_s
    tpot_s = float((last_s - first_s).mean()) / (workload.output_len - 1) if workload.output_len > 1 else None
    ttft_s = float((first_s - arrivals_s).mean())
    return WorkloadPrediction(workload, ttft_s, tpot_s, len(ends_s), float(ends_s[-1]), out_of_range)


def _steps(runs: Sequence[Run]) -> Work:
    """Every step of the runs, equal neighbours in a step taken together."""
    queries, contexts, counts, sizes = [], [], [], []
    for run in runs:
        groups = [(part, len(list(same))) for part, same in itertools.groupby(run.parts)]
        grown = np.arange(run.steps)[:, None]
        queries.append(np.tile([query_len for (query_len, _), _ in groups], run.steps))
        contexts.append((np.array([context_len for (_, context_len), _ in groups]) + grown).ravel())
        counts.append(np.tile([count for _, count in groups], run.steps))
        sizes.append(np.full(run.steps, len(groups)))
    starts = np.cumsum([0, *np.concatenate(sizes)])[:-1]
    return Work.of_batches(np.concatenate(queries), np.concatenate(contexts), starts, counts=np.concatenate(counts))


def predict_steps(
    model: ServedModel, regressors: Mapping[str, LatencyModel], steps: Work, routing: RoutingDistribution
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Latency of every step in seconds, shape (steps,), and one line for each operation that is out of range.

    Args:
        model: what is served.
        regressors: by signature key.
        steps: the batches.
        routing: how a mixture's router spreads tokens over experts.

    Raises:
        MissingMeasurements: an operation has no regressor; names all of them.
    """
    operations = step_operations(model)
    check_regressors(model, operations, regressors)
    total, forward, launched = (np.zeros(len(steps)) for _ in range(3))
    out_of_range = []
    for operation in operations:
        regressor = regressors[operation.signature.key]
        work = work_of(operation.signature, steps, routing)
        of_steps = operation.multiplicity * regressor.predict_s(work)
        if is_launch(operation):
            launched += of_steps
        else:
            total += of_steps
        if is_in_forward(operation):
            forward += of_steps
        line = regressor.out_of_range(work)
        if line is not None:
            out_of_range.append(f"{operation.signature.label}: {line}")
    return total + np.maximum(launched - forward, 0), tuple(out_of_range)


def _admission_s(model: ServedModel, regressors: Mapping[str, LatencyModel], workload: Workload) -> float:
    admissions = [operation for operation in model.operations if is_admission(operation)]
    check_regressors(model, admissions, regressors)
    work = Work.of_sizes([workload.prompt_len])
    return sum(float(regressors[operation.signature.key].predict_s(work)[0]) for operation in admissions)
