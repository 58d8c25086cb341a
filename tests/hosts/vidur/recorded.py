"""Vidur's interface as of 7d47513, in as few lines: what our adapter derives from and is called by."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class BaseIntEnum(IntEnum):
    def __str__(self) -> str:
        return self.name.lower()


class ActivationType(BaseIntEnum):
    GELU = 0
    SILU = 1


class NormType(BaseIntEnum):
    LAYER_NORM = 0
    RMS_NORM = 1


class DeviceSKUType(BaseIntEnum):
    H100 = 3


@dataclass
class BaseExecutionTimePredictorConfig(ABC):  # noqa: B024 - as Vidur has it
    no_cache: bool = field(default=False)


@dataclass
class BaseDeviceSKUConfig(ABC):
    fp16_tflops: int
    total_memory_gb: int


@dataclass
class H100DeviceSKUConfig(BaseDeviceSKUConfig):
    fp16_tflops: int = 1000
    total_memory_gb: int = 80

    @staticmethod
    def get_type() -> DeviceSKUType:
        return DeviceSKUType.H100


@dataclass
class BaseModelConfig(ABC):
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    embedding_dim: int
    mlp_hidden_dim: int
    max_position_embeddings: int
    use_gated_mlp: bool
    use_bias: bool
    use_qkv_bias: bool
    activation: ActivationType
    norm: NormType
    post_attn_norm: bool
    vocab_size: int
    rope_theta: float | None = None


@dataclass
class Llama2ModelConfig(BaseModelConfig):
    @staticmethod
    def get_name() -> str:
        return "meta-llama/Llama-2-Config"


class ExecutionTime:
    def __init__(self, num_layers_per_pipeline_stage: int, *components: float) -> None:
        assert len(components) == 19
        self.num_layers = num_layers_per_pipeline_stage

    @property
    def model_time(self) -> float:
        raise NotImplementedError

    @property
    def total_time(self) -> float:
        raise NotImplementedError


class BaseExecutionTimePredictor(ABC):
    def __init__(
        self, predictor_config: Any, replica_config: Any, replica_scheduler_config: Any, metrics_config: Any
    ) -> None:
        self._config = predictor_config

    def get_execution_time(self, batch: Any, pipeline_stage: int) -> ExecutionTime:
        raise NotImplementedError

    @abstractmethod
    def _get_attention_rope_execution_time(self, batch: Any) -> float: ...


class ExecutionTimePredictorRegistry:
    _registry: dict[Any, Any] = {}  # noqa: RUF012 - as Vidur has it

    @classmethod
    def register(cls, key: Any, implementation_class: Any) -> None:
        cls._registry.setdefault(key, implementation_class)


def request(processed: int, *, prefill_complete: bool) -> SimpleNamespace:
    return SimpleNamespace(num_processed_tokens=processed, is_prefill_complete=prefill_complete)


def install(monkeypatch: pytest.MonkeyPatch, main: Any = None) -> None:
    """Lets `import vidur` find these, and our adapter be imported anew."""
    for name in [name for name in sys.modules if name.startswith("pytest_dooly.hosts.vidur.")]:
        monkeypatch.delitem(sys.modules, name)
    modules: dict[str, dict[str, Any]] = {
        "vidur": {},
        "vidur.config": {"BaseExecutionTimePredictorConfig": BaseExecutionTimePredictorConfig},
        "vidur.config.device_sku_config": {"BaseDeviceSKUConfig": BaseDeviceSKUConfig},
        "vidur.config.model_config": {"BaseModelConfig": BaseModelConfig},
        "vidur.types": {"ActivationType": ActivationType, "BaseIntEnum": BaseIntEnum, "NormType": NormType},
        "vidur.entities": {"ExecutionTime": ExecutionTime},
        "vidur.execution_time_predictor": {
            "BaseExecutionTimePredictor": BaseExecutionTimePredictor,
            "ExecutionTimePredictorRegistry": ExecutionTimePredictorRegistry,
        },
        "vidur.main": {"main": main},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
