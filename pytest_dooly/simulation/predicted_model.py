"""One model as it is served, with all that a latency DB predicts of it; what the fixture `dooly_model` is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

from pytest_dooly.core.batch import Batch, Limits
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import OutOfRangeWarning
from pytest_dooly.prediction.step import StepPrediction, check_regressors, predict_step, step_operations
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_workload, serve_workload
from pytest_dooly.regress.regressor import LatencyModel, Regressor
from pytest_dooly.scheduling.clock import Server, Simulated
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import Engine, Simulation

__all__ = ["PredictedModel"]

_REMEMBERED = 4096
"""Workloads whose requests are kept: a search for the smallest asks for the same ones again."""


class PredictedModel:
    """Predictions for one model in one environment, all in seconds.

    Attributes:
        served: operations and limits.
        models: latency models by signature key.
    """

    def __init__(self, served: ServedModel, models: Mapping[str, LatencyModel]) -> None:
        """Looks whether every operation is known.

        Raises:
            MissingMeasurements: an operation has no latency model; names all of them.
        """
        check_regressors(served, served.operations, models)
        self.served, self.models = served, models
        self._warned: set[str] = set()
        self._requests = lru_cache(_REMEMBERED)(self._served_requests)

    def __repr__(self) -> str:
        return f"<{self.name}, predicted>"  # shown by pytest and hypothesis beside every failing example

    @property
    def name(self) -> str:
        """As `--dooly-model` has it."""
        return self.served.name

    @property
    def limits(self) -> Limits:
        """The engine's own bounds of a batch."""
        return self.served.limits

    def step(self, batch: str | Batch) -> StepPrediction:
        """One engine step, operation by operation.

        Args:
            batch: what it works on, as a Batch or as text (`8x1+512,128`).

        Raises:
            ConfigurationError: the text is no batch.
        """
        return predict_step(self.served, self.models, _read(batch))

    def step_s(self, batch: str | Batch) -> float:
        """Seconds of one engine step.

        Args:
            batch: as in `step`.

        Raises:
            ConfigurationError: as in `step`.

        Warns:
            OutOfRangeWarning: an operation was asked outside of its measured range, the first time.
        """
        step = self.step(batch)
        self._warn(step.out_of_range)
        return step.latency_s

    def stated_error(self, step: StepPrediction) -> float:
        """Relative error that is stated of a step, 0.05 for 5 %: of its operations' regressors, weighted with latency.

        Operations whose regressor could hold out no point, and those of published latencies, do not count; 0 where none
        is left.

        Args:
            step: that this model has predicted.
        """
        known_s = off_s = 0.0
        for operation, latency in zip(step_operations(self.served), step.operations, strict=True):
            model = self.models[operation.signature.key]
            if isinstance(model, Regressor) and model.error is not None:
                known_s += latency.latency_s
                off_s += latency.latency_s * model.error
        return off_s / known_s if known_s else 0.0

    def workload(self, workload: str | Workload) -> WorkloadPrediction:
        """Mean TTFT and TPOT of a workload at an idle engine.

        Args:
            workload: a Workload, or as text (`512+64x8`).

        Raises:
            ConfigurationError: a request would be longer than max_model_len, or the text is no workload.

        Warns:
            OutOfRangeWarning: as in `step_s`.
        """
        asked = Workload.parse(workload) if isinstance(workload, str) else workload
        prediction = predict_workload(self.times, asked)
        self._warn(prediction.out_of_range)
        return prediction

    def ttft_s(self, workload: str | Workload) -> float:
        """Seconds to the first token, the mean over the requests; raises and warns as `workload`."""
        return self.workload(workload).ttft_s

    def tpot_s(self, workload: str | Workload) -> float | None:
        """Seconds of each further token, the mean over the requests; None where each generates one token."""
        return self.workload(workload).tpot_s

    def requests(self, workload: Workload) -> Simulated:
        """Every request of a workload at an idle engine, for percentiles.

        Raises:
            ConfigurationError: as in `workload`.
        """
        return self._requests(workload)

    def simulate(self, traffic: Traffic, *, engine: Engine | None = None, server: Server | None = None) -> Simulation:
        """Every request of a traffic, as `pytest_dooly.simulate` has it of one replica.

        Args:
            traffic: that arrives.
            engine: how it schedules; None for vLLM's defaults with room for all in the KV cache.
            server: what lies between clients and engine; None for nothing.

        Raises:
            ConfigurationError: a request is longer than max_model_len.
        """
        engine = engine or Engine()
        server = server or Server(async_scheduling=engine.async_scheduling)
        (simulated,) = Deployment(self.times, engine.options(self.served, None), server).simulate(traffic)
        return Simulation(simulated, self.times.out_of_range())

    @cached_property
    def times(self) -> StepTimes:
        """Step times in tables, for what takes many of them."""
        return StepTimes(self.served, self.models)

    def _served_requests(self, workload: Workload) -> Simulated:
        return serve_workload(self.times, workload)

    def _warn(self, lines: Sequence[str]) -> None:
        """Once an operation: a property asks for hundreds of batches."""
        for line in lines:
            operation = line.partition(": ")[0]
            if operation not in self._warned:
                self._warned.add(operation)
                warnings.warn(line, OutOfRangeWarning, stacklevel=3)


def _read(batch: str | Batch) -> Batch:
    return Batch.parse(batch) if isinstance(batch, str) else batch
