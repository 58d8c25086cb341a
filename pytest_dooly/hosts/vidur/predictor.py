"""The predictor that Vidur asks for each step's time."""

from __future__ import annotations

from typing import Any

from vidur.entities import ExecutionTime
from vidur.execution_time_predictor import BaseExecutionTimePredictor, ExecutionTimePredictorRegistry

from pytest_dooly.core.configuration import aliases
from pytest_dooly.core.device import device_named
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.vidur.configs import Dooly, add_devices, add_model
from pytest_dooly.hosts.vidur_family import backend_of, device_of, requests_of
from pytest_dooly.published.footprint import cache_room

__all__ = ["DoolyExecutionTimePredictor", "StepTime", "register"]

_COMPONENTS = 19
"""Of Vidur's step time, each in milliseconds; a whole step has none of them."""


class StepTime(ExecutionTime):
    """One step as a whole: Vidur's metrics of single operations are 0."""

    def __init__(self, latency_s: float) -> None:
        super().__init__(1, *[0.0] * _COMPONENTS)
        self._latency_s = latency_s

    @property
    def model_time(self) -> float:
        """Seconds of the step."""
        return self._latency_s

    @property
    def total_time(self) -> float:
        """The same: what the engine does on the processor is in it."""
        return self._latency_s


class DoolyExecutionTimePredictor(BaseExecutionTimePredictor):
    """Step times of a latency DB.

    Where Vidur is not told a number of KV blocks (`num_blocks` of its schedulers) it gets the one that the engine would
    have on the GPU, in place of room for so many requests of the greatest length.
    """

    def __init__(
        self, predictor_config: Any, replica_config: Any, replica_scheduler_config: Any, metrics_config: Any
    ) -> None:
        """Fills the tables, once for all replicas.

        Raises:
            ConfigurationError: something named is unknown, or there are pipeline stages.
            DatabaseError: there is no latency DB, or it cannot be read.
            MissingMeasurements: the latency DB lacks the model.
        """
        super().__init__(predictor_config, replica_config, replica_scheduler_config, metrics_config)
        if replica_config.num_pipeline_stages != 1:
            raise ConfigurationError(
                f"{replica_config.num_pipeline_stages} pipeline stages: steps are predicted of one, "
                "name --replica_config_num_pipeline_stages 1"
            )
        self._backend = backend_of(predictor_config, replica_config, replica_config.tensor_parallel_size)
        if not replica_scheduler_config.num_blocks:
            device, block_size = device_of(predictor_config, replica_config), replica_scheduler_config.block_size
            room = cache_room(self._backend.model, device_named(device), block_size=block_size)
            replica_scheduler_config.num_blocks = room.for_tokens(replica_scheduler_config.batch_size_cap)

    def get_execution_time(self, batch: Any, pipeline_stage: int) -> StepTime:
        """The time of a step.

        Args:
            batch: of Vidur's requests.
            pipeline_stage: the only one.

        Raises:
            ConfigurationError: the step goes beyond the limits that the model is served with.
        """
        return StepTime(self._backend.step_s(requests_of(batch)))


# All that is left abstract are parts of a step, which only the method above would ask for.
DoolyExecutionTimePredictor.__abstractmethods__ = frozenset()


def register(model: str | None = None) -> None:
    """Makes predictor, GPUs and models known to Vidur; once or more often.

    Args:
        model: that is used besides the shipped ones: a directory with config.json, or a name that Vidur knows.

    Raises:
        UnknownModelError: as in `add_model`.
        ConfigurationError: as in `add_model`.
    """
    ExecutionTimePredictorRegistry.register(Dooly.DOOLY, DoolyExecutionTimePredictor)
    add_devices()
    for name in {*aliases(), *filter(None, [model])}:
        add_model(name)
