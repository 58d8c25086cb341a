"""The predictor that Frontier asks for each step's time."""

from __future__ import annotations

import inspect
from typing import Any

from frontier.entities import ExecutionTime
from frontier.execution_time_predictor.base_execution_time_predictor import BaseExecutionTimePredictor
from frontier.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry

from pytest_dooly.errors import ConfigurationError
from pytest_dooly.hosts.frontier.configs import DoolyExecutionTimePredictorConfig
from pytest_dooly.hosts.vidur_family import backend_of, requests_of

__all__ = ["DoolyExecutionTimePredictor", "register"]

_WHOLE = "attention_layer_pre_proj_execution_time"
"""The component that stands for a whole step: Frontier checks that components add up, and has none for that."""

_NONE = {
    name: 0.0
    for name, parameter in inspect.signature(ExecutionTime).parameters.items()
    if parameter.default is inspect.Parameter.empty
}
"""Every component that must be named, in milliseconds."""


class DoolyExecutionTimePredictor(BaseExecutionTimePredictor):
    """Step times of a latency DB."""

    def __init__(
        self,
        predictor_config: Any,
        replica_config: Any,
        replica_scheduler_config: Any,
        metrics_config: Any,
        **others: Any,
    ) -> None:
        """Fills the tables.

        Raises:
            ConfigurationError: something named is unknown, there are pipeline stages, or several clusters share a step.
            DatabaseError: there is no latency DB, or it cannot be read.
            MissingMeasurements: the latency DB lacks the model.
        """
        super().__init__(predictor_config, replica_config, replica_scheduler_config, metrics_config)
        cluster_type = getattr(others.get("cluster_type"), "name", "MONOLITHIC")
        if cluster_type != "MONOLITHIC" or replica_config.num_pipeline_stages != 1:
            raise ConfigurationError(
                f"{replica_config.num_pipeline_stages} pipeline stages of a {cluster_type} cluster: "
                "steps are predicted of engines that run whole ones"
            )
        self._backend = backend_of(predictor_config, replica_config, replica_config.attn_tensor_parallel_size)

    def predict_stage_execution_time(
        self, batch: Any, stage_id: int, cluster_type: Any, num_layers: int = 1, layer_id: int = 0
    ) -> Any:
        """The time of a step, all of its layers.

        Args:
            batch: of Frontier's requests.
            stage_id: the only one.
            cluster_type: of one engine.
            num_layers: all.
            layer_id: of none.

        Raises:
            ConfigurationError: the step goes beyond the limits that the model is served with.
        """
        whole = {
            "num_layers_per_pipeline_stage": 1,
            "is_moe": False,
            _WHOLE: 1e3 * self._backend.step_s(requests_of(batch)),
        }
        return ExecutionTime(**{**_NONE, **whole})


# All that is left abstract are parts of a step, which only engines that share one would ask for.
DoolyExecutionTimePredictor.__abstractmethods__ = frozenset()


def register() -> None:
    """Makes the predictor known to Frontier, once or more often."""
    ExecutionTimePredictorRegistry.register(DoolyExecutionTimePredictorConfig.get_type(), DoolyExecutionTimePredictor)
