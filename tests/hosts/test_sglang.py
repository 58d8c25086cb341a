"""Our predictor within SGLang Simulator's interface as recorded (2026-08), and within itself where a clone is named."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pytest_dooly
from pytest_dooly.errors import ConfigurationError, MissingExtraError
from tests.models import LLAMA, write

CLONE, PYTHON = os.environ.get("DOOLY_SGLANG"), os.environ.get("DOOLY_HOSTS_PYTHON", sys.executable)


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

    def run_simulator_scheduler_process(*args: Any, **kwargs: Any) -> Any:
        return ConfigManager.get_inference_time_predictor(*args, **kwargs)

    for name, names in {
        "sglang_simulator": {},
        "sglang_simulator.simulation": {},
        "sglang_simulator.simulation.sglang": {},
        "sglang_simulator.simulation.sglang.hook_bootstrap": {
            "run_simulator_scheduler_process": run_simulator_scheduler_process
        },
        "sglang_simulator.simulation.manager": {},
        "sglang_simulator.simulation.manager.config": {"ConfigManager": ConfigManager},
        "sglang_simulator.time_predictor": {},
        "sglang_simulator.time_predictor.base": {"InferTimePredictor": InferTimePredictor},
    }.items():
        module = ModuleType(name)
        vars(module).update(names)  # type: ignore[call-overload]
        monkeypatch.setitem(sys.modules, name, module)
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)
    monkeypatch.delitem(sys.modules, "pytest_dooly.hosts.sglang.predictor", raising=False)
    adapter = importlib.import_module("pytest_dooly.hosts.sglang.predictor")
    adapter.register()
    adapter.register()
    return ConfigManager


def served(hw: str = "h100_sxm", **sizes: int) -> tuple[Any, Any, Any]:
    """A model, a GPU and a deployment with as much as the simulator says of each."""
    config = SimpleNamespace(**{"tp_size": 1, "pp_size": 1, "dp_size": 1, "cp_size": 1, **sizes})
    return SimpleNamespace(model_path="planned"), SimpleNamespace(name=hw), config


def chosen(manager: Any, *, hw: str = "h100_sxm", **sizes: int) -> Any:
    return manager.get_inference_time_predictor(*served(hw, **sizes))


def test_it_is_chosen_by_its_name_and_others_as_before(manager: Any, db: Path) -> None:
    manager.raw = {"predictor": {"name": "aiconfigurator"}}
    assert chosen(manager) == "theirs"
    manager.raw = {"predictor": {"name": "dooly", "db": str(db)}}
    predictor = chosen(manager)
    batch = ScheduleBatch([ScheduleRequest(1, 101), ScheduleRequest(64, 0), ScheduleRequest(16, 48)])
    backend = pytest_dooly.backend("planned", device="h100_sxm", db=db)
    assert predictor.predict_infer_time(batch) == backend.step_s([(1, 100), (64, 0), (16, 48)])
    assert predictor.predict_infer_time(ScheduleBatch()) == 0.0


def test_its_own_names_come_first(manager: Any, db: Path) -> None:
    named = {"name": "dooly", "db": str(db), "device": "b200_sxm", "model": "planned"}
    manager.raw = {"predictor": named}
    step = ScheduleBatch([ScheduleRequest(1, 101)])
    backend = pytest_dooly.backend("planned", device="b200_sxm", db=db)
    assert chosen(manager, hw="h20_sxm").predict_infer_time(step) == backend.step_s([(1, 100)])
    manager.raw = {"predictor": {**named, "options": "max-tokens=1"}}
    with pytest.raises(ConfigurationError, match="'max-tokens' is not one of"):
        chosen(manager)


def test_a_process_that_the_simulator_starts_knows_it(manager: Any, db: Path) -> None:
    manager.raw = {"predictor": {"name": "dooly", "db": str(db)}}
    del manager.knows_dooly
    manager.get_inference_time_predictor = classmethod(lambda cls, *_: "theirs")  # as a new process has it
    predictor = sys.modules["pytest_dooly.hosts.sglang.predictor"].run_scheduler_process(*served())
    assert type(predictor).__name__ == "DoolyTimePredictor"


def test_its_server_starts_such_a_process(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: started.append(name))
    importlib.import_module("pytest_dooly.hosts.sglang.__main__").main()
    assert started == ["sglang_simulator.simulation.sglang.launch_server"]
    bootstrap = sys.modules["sglang_simulator.simulation.sglang.hook_bootstrap"]
    ours = sys.modules["pytest_dooly.hosts.sglang.predictor"].run_scheduler_process
    assert bootstrap.run_simulator_scheduler_process is ours


def test_what_it_cannot_predict_is_one_message(manager: Any, db: Path) -> None:
    manager.raw = {"predictor": {"name": "dooly", "db": str(db)}}
    with pytest.raises(ConfigurationError, match="unknown device 'h20_sxm'"):
        chosen(manager, hw="h20_sxm")
    with pytest.raises(ConfigurationError, match="pp_size 2: steps are predicted of tensor-parallel ranks"):
        chosen(manager, pp_size=2)


def test_where_it_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_dooly.hosts.sglang.predictor", raising=False)
    monkeypatch.setitem(sys.modules, "sglang_simulator", None)
    with pytest.raises(MissingExtraError, match="SGLang Simulator cannot be imported .*install tools/sglang-simulator"):
        importlib.import_module("pytest_dooly.hosts.sglang.predictor")
    with pytest.raises(SystemExit, match="error: SGLang Simulator cannot be imported"):
        importlib.import_module("pytest_dooly.hosts.sglang.__main__").main()


ENGINE = """
import asyncio, json, sys
from pytest_dooly.hosts.sglang.predictor import run_scheduler_process
from sglang_simulator.compat import apply_simulator_server_args
from sglang_simulator.simulation.sglang.engine import SGLangSimulationEngine

class Engine(SGLangSimulationEngine):
    run_scheduler_process_func = staticmethod(run_scheduler_process)

options = {"model_path": sys.argv[1], "load_format": "dummy", "device": "cpu", "sampling_backend": "pytorch"}
options |= {"skip_tokenizer_init": True, "max_total_tokens": 4096, "chunked_prefill_size": 512}
apply_simulator_server_args(options)
engine = Engine(**options)

async def send():
    await engine.tokenizer_manager.start_profile()
    sent = []
    for at_s, prompt, output in ((0.0, 64, 3), (50.0, 300, 1)):
        simulation = {"total_request": 2, "created_time": at_s}
        sampling = {"ignore_eos": True, "max_new_tokens": output, "custom_params": {"simulation": simulation}}
        sent.append(engine.async_generate(input_ids=[prompt] * prompt, sampling_params=sampling))
    await asyncio.gather(*sent)
    await engine.tokenizer_manager.start_profile()

engine.loop.run_until_complete(send())
engine.shutdown()
"""


@pytest.mark.skipif(CLONE is None, reason="DOOLY_SGLANG names no clone of sgl-project/sglang")
def test_sglang_simulator_itself(db: Path, tmp_path: Path) -> None:
    """Two requests, one after the other: SGLang's scheduler makes the steps, and each takes what the back end says."""
    configuration = {
        "platform": {"accelerator": {"name": "h200_sxm"}},
        "predictor": {"name": "dooly", "db": str(db), "model": "planned"},
        "scheduler": {"tp_size": 1},
    }
    (tmp_path / "simulator.json").write_text(json.dumps(configuration))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(pytest_dooly.__path__[0]).parent), str(Path(str(CLONE)) / "tools/sglang-simulator/src")]
        ),
        "CUDA_VISIBLE_DEVICES": "",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_SIMULATOR_BOOTSTRAP": "1",
        "SGLANG_SIMULATOR_CONFIG_PATH": str(tmp_path / "simulator.json"),
        "SGLANG_SIMULATOR_OUTPUT_DIR": str(tmp_path),
    }
    model = write(tmp_path / "model", LLAMA)
    subprocess.run([PYTHON, "-c", ENGINE, str(model)], check=True, env=environment, cwd=tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "iteration.jsonl").read_text().splitlines()]
    assert [step["requests"] for step in steps] == [[[64, 0]], [[1, 65]], [[1, 66]], [[300, 0]]]
    backend = pytest_dooly.backend("planned", device="h200_sxm", db=db)
    expected = backend.steps_s([[(64, 0)], [(1, 64)], [(1, 65)], [(300, 0)]])
    assert [step["forward_latency"] for step in steps] == pytest.approx(expected)
