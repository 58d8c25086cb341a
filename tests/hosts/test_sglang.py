"""Our predictor within SGLang Simulator's interface as recorded (`tools/sglang-simulator`, 2026-08)."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pytest_dooly
from pytest_dooly.errors import ConfigurationError, MissingExtraError


@dataclass
class ScheduleRequest:
    extend_length: int = 0
    past_kv_length: int = 0


@dataclass
class ScheduleBatch:
    reqs: list[ScheduleRequest] = field(default_factory=list)

    def is_empty(self) -> bool:
        return len(self.reqs) == 0


class InferTimePredictor:
    def __init__(self, model: Any, hw: Any, config: Any) -> None:
        self.model, self.hw, self.config = model, hw, config


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The simulator's, which knows one predictor and reads a configuration that a test sets."""

    class ConfigManager:
        raw: dict[str, Any] = {}  # noqa: RUF012 - set by each test

        @classmethod
        def _get_raw_config(cls) -> dict[str, Any]:
            return cls.raw

        @classmethod
        def get_inference_time_predictor(cls, model: Any, hw: Any, sched_config: Any) -> Any:
            return "theirs"

    for name, names in {
        "sglang_simulator": {},
        "sglang_simulator.simulation": {},
        "sglang_simulator.simulation.manager": {},
        "sglang_simulator.simulation.manager.config": {"ConfigManager": ConfigManager},
        "sglang_simulator.time_predictor": {},
        "sglang_simulator.time_predictor.base": {"InferTimePredictor": InferTimePredictor},
    }.items():
        module = ModuleType(name)
        vars(module).update(names)  # type: ignore[call-overload]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "pytest_dooly.hosts.sglang", raising=False)
    adapter = importlib.import_module("pytest_dooly.hosts.sglang")
    adapter.register()
    adapter.register()
    return ConfigManager


def chosen(manager: Any, *, hw: str = "h100_sxm", **sizes: int) -> Any:
    config = SimpleNamespace(**{"tp_size": 1, "pp_size": 1, "dp_size": 1, "cp_size": 1, **sizes})
    return manager.get_inference_time_predictor(SimpleNamespace(name="planned"), SimpleNamespace(name=hw), config)


def test_it_is_chosen_by_its_name_and_others_as_before(manager: Any, db: Path) -> None:
    manager.raw = {"predictor": {"name": "aiconfigurator"}}
    assert chosen(manager) == "theirs"
    manager.raw = {"predictor": {"name": "dooly", "db": str(db)}}
    predictor = chosen(manager)
    batch = ScheduleBatch([ScheduleRequest(1, 100), ScheduleRequest(64, 0), ScheduleRequest(16, 48)])
    backend = pytest_dooly.backend("planned", device="h100_sxm", db=db)
    assert predictor.predict_infer_time(batch) == backend.step_s([(1, 100), (64, 0), (16, 48)])
    assert predictor.predict_infer_time(ScheduleBatch()) == 0.0


def test_its_own_names_come_first(manager: Any, db: Path) -> None:
    named = {"name": "dooly", "db": str(db), "device": "b200_sxm", "model": "planned"}
    manager.raw = {"predictor": named}
    step = ScheduleBatch([ScheduleRequest(1, 100)])
    backend = pytest_dooly.backend("planned", device="b200_sxm", db=db)
    assert chosen(manager, hw="h20_sxm").predict_infer_time(step) == backend.step_s([(1, 100)])
    manager.raw = {"predictor": {**named, "options": "max-tokens=1"}}
    with pytest.raises(ConfigurationError, match="'max-tokens' is not one of"):
        chosen(manager)


def test_what_it_cannot_predict_is_one_message(manager: Any, db: Path) -> None:
    manager.raw = {"predictor": {"name": "dooly", "db": str(db)}}
    with pytest.raises(ConfigurationError, match="unknown device 'h20_sxm'"):
        chosen(manager, hw="h20_sxm")
    with pytest.raises(ConfigurationError, match="pp_size 2: steps are predicted of tensor-parallel ranks"):
        chosen(manager, pp_size=2)


def test_where_it_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_dooly.hosts.sglang", raising=False)
    monkeypatch.setitem(sys.modules, "sglang_simulator", None)
    with pytest.raises(MissingExtraError, match="SGLang Simulator cannot be imported .*install tools/sglang-simulator"):
        importlib.import_module("pytest_dooly.hosts.sglang")
