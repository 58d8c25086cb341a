"""Where the predicted TTFT and TPOT of workloads are spent: in which operations, at which sweep points.

Both are sums over the steps that a request is under way in, and a step is one over operations. The steps of a figure
are many and much alike: one of them stands for all, the one that half of the time is spent in shorter steps than.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.routing import UNIFORM
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.turn import Place, point_within
from pytest_dooly.core.work import Work
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.interval import Figure
from pytest_dooly.prediction.step import is_admission, is_in_forward, is_launch, step_operations, work_of
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import in_process
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.scheduling.clock import Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions, room_for_all

__all__ = ["Exposure", "check_fits", "exposures", "kept_exposures"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exposure:
    """What a predicted TTFT or TPOT consists of.

    Attributes:
        workload: that it is predicted for.
        figure: which of the two.
        batch: the step that stands for all that it is spent in.
        seconds: of it that each operation takes, by where it is timed again; what hides behind another takes none.
    """

    workload: Workload
    figure: Figure
    batch: Batch
    seconds: Mapping[Place, float]

    @property
    def latency_s(self) -> float:
        """The figure itself."""
        return sum(self.seconds.values())

    @property
    def name(self) -> str:
        """As people read it: `TPOT of 128+32x4`."""
        return f"{self.figure.upper()} of {self.workload}"

    def share(self, signature_key: str) -> float:
        """Of one operation, at all of its points."""
        return sum(s for place, s in self.seconds.items() if place.signature == signature_key) / self.latency_s


def exposures(
    model: ServedModel, regressors: Mapping[str, LatencyModel], workloads: Sequence[Workload]
) -> tuple[Exposure, ...]:
    """What TTFT and TPOT of each workload consist of, as `predict_workload` has them.

    Args:
        model: what is served; operations without a regressor count for nothing.
        regressors: by signature key.
        workloads: that count.

    Raises:
        ConfigurationError: a workload does not fit the model's limits, or no operation has a regressor.
    """
    check_fits(model, workloads)
    known = replace(model, operations=tuple(o for o in model.operations if o.signature.key in regressors))
    if not step_operations(known):
        raise ConfigurationError(
            f"no operation of {model.name} has a regressor: profile it first, by pytest --dooly-model={model.name} "
            "alone, or by a first run of the gate without -k"
        )
    times = StepTimes(known, regressors)
    return tuple(exposure for workload in workloads for exposure in _of_workload(known, times, workload))


def check_fits(model: ServedModel, workloads: Sequence[Workload]) -> None:
    """Whether workloads can be served at all.

    Args:
        model: that serves them.
        workloads: to look at.

    Raises:
        ConfigurationError: one does not fit the model's limits.
    """
    limits = model.limits
    for each in workloads:
        if each.prompt_len + each.output_len > limits.max_model_len or each.concurrency > limits.max_num_seqs:
            raise ConfigurationError(
                f"workload {each} does not fit {model.name} as it is served, with {limits.max_model_len} tokens a "
                f"request and {limits.max_num_seqs} requests at once: name a smaller one, or raise max-model-len and "
                "max-num-seqs"
            )


def kept_exposures(document: Mapping[str, Any]) -> list[Exposure]:
    """What the figures of a run of the gate consisted of, from what it has kept.

    Args:
        document: of the run.
    """
    return [
        Exposure(
            Workload.parse(each["workload"]),
            each["figure"],
            Batch.parse(each["batch"]),
            {Place.parse(text): seconds for text, seconds in each["seconds"].items()},
        )
        for each in document["figures"]
    ]


class _Kept:
    """Step times that keep what they are asked for."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self.batches: list[Batch] = []

    def step_s(self, step: Scheduled) -> float:
        self.batches.append(step.batch)
        return self._times.step_s(step)


def _of_workload(model: ServedModel, times: StepTimes, workload: Workload) -> list[Exposure]:
    limits = model.limits
    scheduler = NativeScheduler(SchedulerOptions(limits, room_for_all(limits), async_scheduling=False))
    kept = _Kept(times)
    served = run(workload.traffic(), scheduler, kept, in_process(times, workload))
    weights: dict[Figure, Array] = {"ttft": _steps_to_first(served)}
    figures: dict[Figure, float] = {"ttft": float(np.mean(served.ttft_s))}
    if workload.output_len > 1:
        weights["tpot"] = _steps_after_first(served) / (workload.output_len - 1)
        figures["tpot"] = float(np.mean(served.tpot_s))
    latency_s = np.array([step.latency_s for step in served.steps])
    by_operation = _seconds(model, times.models, kept.batches)
    admissions = [operation for operation in model.operations if is_admission(operation)]
    found = []
    for figure, weight in weights.items():
        batch = kept.batches[_middle(latency_s, weight * latency_s)]
        seconds: dict[Place, float] = {}
        for operation, of_steps in by_operation.items():
            place = Place(operation.signature.key, str(point_within(operation.signature, batch)))
            seconds[place] = seconds.get(place, 0.0) + float(weight @ of_steps)
        rest_s = max(0.0, figures[figure] - float(weight @ latency_s))
        for operation in admissions:  # timed as part of that step, which may be a chunk of the prompt
            seconds[Place(operation.signature.key, str(point_within(operation.signature, batch)))] = rest_s
        found.append(Exposure(workload, figure, batch, {place: s for place, s in seconds.items() if s > 0}))
    return found


def _steps_to_first(served: Simulated) -> Array:
    """How much of each step a request waits through for its first token, in the mean; shape (steps,)."""
    begin, end = _bounds(served)
    waits = (end > served.sent_s[:, None]) & (begin < served.first_s[:, None])
    return np.asarray(waits.mean(axis=0))


def _steps_after_first(served: Simulated) -> Array:
    """How much of each step lies between the first token and the last of a request, in the mean; shape (steps,)."""
    begin, end = _bounds(served)
    middle = (begin + end) / 2
    return np.asarray(((middle > served.first_s[:, None]) & (middle < served.last_s[:, None])).mean(axis=0))


def _bounds(served: Simulated) -> tuple[Array, Array]:
    begin = np.array([step.begin_s for step in served.steps])
    return begin, begin + np.array([step.latency_s for step in served.steps])


def _middle(values: Array, weights: Array) -> int:
    """Place of the weighted median."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    return int(order[np.searchsorted(below, below[-1] / 2)])


def _seconds(
    model: ServedModel, models: Mapping[str, LatencyModel], batches: Sequence[Batch]
) -> dict[ModelOperation, Array]:
    """Seconds of each operation in each step, shape (steps,) each; what the slower of host and device hides is none."""
    steps = Work.of([SweepPoint(batch=batch) for batch in batches])
    seconds = {
        operation: operation.multiplicity
        * models[operation.signature.key].predict_s(work_of(operation.signature, steps, UNIFORM))
        for operation in step_operations(model)
    }
    launches = [operation for operation in seconds if is_launch(operation, models)]
    if launches:
        none = np.zeros(len(batches))
        launched = sum((seconds[operation] for operation in launches), start=none)
        forward = sum((s for operation, s in seconds.items() if is_in_forward(operation)), start=none)
        for operation in seconds:
            hidden = launched <= forward if is_launch(operation, models) else launched > forward
            if is_launch(operation, models) or is_in_forward(operation):
                seconds[operation] = np.where(hidden, 0.0, seconds[operation])
    return seconds
