"""Frontier's interface as of a4b22df, in as few lines: what our adapter derives from and is called by."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import Any

import pytest


class ExecutionTimePredictorType(IntEnum):
    DUMMY = 1
    RANDOM_FORREST = 2


@dataclass
class BaseExecutionTimePredictorConfig:
    enable_dummy_mode: bool = field(default=False)


class ExecutionTime:
    """Components of one layer in milliseconds; those with a default need not be named."""

    def __init__(
        self,
        num_layers_per_pipeline_stage: int,
        attention_layer_pre_proj_execution_time: float,
        attn_norm_time: float,
        schedule_time: float,
        is_moe: bool,
        moe_grouped_gemm_time: float = 0.0,
    ) -> None:
        layer_ms = attention_layer_pre_proj_execution_time + attn_norm_time + moe_grouped_gemm_time
        self.model_time = num_layers_per_pipeline_stage * layer_ms * 1e-3
        self.total_time = self.model_time + schedule_time * 1e-3
        self.is_moe = is_moe


class BaseExecutionTimePredictor(ABC):
    def __init__(
        self, predictor_config: Any, replica_config: Any, replica_scheduler_config: Any, metrics_config: Any
    ) -> None:
        assert not predictor_config.enable_dummy_mode

    @abstractmethod
    def predict_stage_execution_time(
        self, batch: Any, stage_id: int, cluster_type: Any, num_layers: int = 1, layer_id: int = 0
    ) -> Any: ...

    @abstractmethod
    def predict_allreduce_time(self, data_size_bytes: int, num_devices: int, cluster_type: Any) -> float: ...


class ExecutionTimePredictorRegistry:
    _registry: dict[Any, Any] = {}  # noqa: RUF012 - as Frontier has it

    @classmethod
    def register(cls, key: Any, implementation_class: Any) -> None:
        cls._registry.setdefault(key, implementation_class)

    @classmethod
    def get(cls, key: Any, **named: Any) -> Any:
        """What goes wrong is a ValueError of Frontier's."""
        try:
            return cls._registry[key](**named)
        except Exception as error:  # noqa: BLE001 - as Frontier has it
            raise ValueError(f"Failed to create predictor of type '{key}': {error}")  # noqa: B904


def install(monkeypatch: pytest.MonkeyPatch, main: Any = None) -> None:
    """Lets `import frontier` find these, and our adapter be imported anew."""
    for name in [name for name in sys.modules if name.startswith("pytest_dooly.hosts.frontier.")]:
        monkeypatch.delitem(sys.modules, name)
    ExecutionTimePredictorRegistry._registry.clear()
    package = "frontier.execution_time_predictor"
    modules: dict[str, dict[str, Any]] = {
        "frontier": {},
        "frontier.config": {"BaseExecutionTimePredictorConfig": BaseExecutionTimePredictorConfig},
        "frontier.types": {"ExecutionTimePredictorType": ExecutionTimePredictorType},
        "frontier.entities": {"ExecutionTime": ExecutionTime},
        package: {},
        f"{package}.base_execution_time_predictor": {"BaseExecutionTimePredictor": BaseExecutionTimePredictor},
        f"{package}.execution_time_predictor_registry": {
            "ExecutionTimePredictorRegistry": ExecutionTimePredictorRegistry
        },
        "frontier.main": {"main": main},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
