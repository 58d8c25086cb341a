"""Our predictor within Vidur's interface as recorded, and within Vidur itself where a clone is named."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pytest_dooly
from pytest_dooly.errors import ConfigurationError, UnknownModelError
from pytest_dooly.hosts.vidur.__main__ import main
from pytest_dooly.hosts.vidur_family import requests_of
from tests.hosts.conftest import planned
from tests.hosts.vidur import recorded
from tests.models import LLAMA, write

TYPE = "--execution_time_predictor_config_type"
CLONE, PYTHON = os.environ.get("DOOLY_VIDUR"), os.environ.get("DOOLY_HOSTS_PYTHON", sys.executable)


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    recorded.install(monkeypatch)
    return importlib.import_module("pytest_dooly.hosts.vidur.predictor")


@pytest.fixture
def configs(predictor: ModuleType) -> ModuleType:
    return sys.modules["pytest_dooly.hosts.vidur.configs"]


def models() -> list[Any]:
    """Classes that Vidur finds models by."""
    return recorded.BaseModelConfig.__subclasses__()


def gpus() -> list[Any]:
    """Classes that Vidur finds GPUs by."""
    return recorded.BaseDeviceSKUConfig.__subclasses__()


def replica(**changes: Any) -> SimpleNamespace:
    usual = {"num_pipeline_stages": 1, "tensor_parallel_size": 1, "device": "h100", "model_name": "planned"}
    return SimpleNamespace(**{**usual, **changes})


def made(predictor: ModuleType, db: Path, *, num_blocks: int | None = None, **changes: Any) -> Any:
    config = sys.modules["pytest_dooly.hosts.vidur.configs"].DoolyExecutionTimePredictorConfig(db=str(db))
    scheduler = SimpleNamespace(num_blocks=num_blocks, block_size=16, batch_size_cap=128)
    made = predictor.DoolyExecutionTimePredictor(config, replica(**changes), scheduler, None)
    return made, scheduler


def test_a_step_of_vidur_takes_what_the_back_end_says(predictor: ModuleType, db: Path) -> None:
    batch = SimpleNamespace(
        requests=[
            recorded.request(0, prefill_complete=False),
            recorded.request(48, prefill_complete=False),
            recorded.request(101, prefill_complete=True),
        ],
        num_tokens=[64, 16.0, 1],
    )
    assert requests_of(batch) == [(64, 0), (16, 48), (1, 100)]
    ours, _ = made(predictor, db)
    step = ours.get_execution_time(batch, 0)
    backend = pytest_dooly.backend("planned", device="h100_sxm", db=db)
    assert step.total_time == step.model_time == backend.step_s([(64, 0), (16, 48), (1, 100)])


def test_it_has_the_blocks_of_the_engine_where_none_are_named(predictor: ModuleType, db: Path) -> None:
    from pytest_dooly.core.device import device_named
    from pytest_dooly.published.footprint import cache_room

    _, scheduler = made(predictor, db, device="h200_sxm")
    assert scheduler.num_blocks == cache_room(planned(), device_named("h200_sxm")).num_blocks
    _, scheduler = made(predictor, db, num_blocks=77)
    assert scheduler.num_blocks == 77


def test_what_it_cannot_predict_is_one_message(predictor: ModuleType, db: Path) -> None:
    with pytest.raises(ConfigurationError, match="2 pipeline stages: steps are predicted of one"):
        made(predictor, db, num_pipeline_stages=2)
    with pytest.raises(ConfigurationError, match="unknown device 'abacus'"):
        made(predictor, db, device="abacus")


def test_it_is_registered_once_with_models_and_gpus(predictor: ModuleType, configs: ModuleType, tmp_path: Path) -> None:
    model = str(write(tmp_path / "model", LLAMA))
    predictor.register(model)
    predictor.register(model)
    registry = recorded.ExecutionTimePredictorRegistry._registry
    assert registry[configs.Dooly.DOOLY].__name__ == "DoolyExecutionTimePredictor"
    assert str(configs.DoolyExecutionTimePredictorConfig.get_type()) == "dooly"
    found = [each for each in models() if each.get_name() == model]
    assert [(each().num_kv_heads, each().mlp_hidden_dim, each().rope_theta) for each in found] == [(2, 704, None)]
    known = {str(each.get_type()): each() for each in gpus()}
    assert (known["h200_sxm"].fp16_tflops, known["h200_sxm"].total_memory_gb) == (989, 139)
    assert known["h100"].fp16_tflops == 1000


def test_a_mixture_is_as_wide_as_its_experts_together(configs: ModuleType, tmp_path: Path) -> None:
    document = {**LLAMA, "num_experts": 8, "moe_intermediate_size": 96, "n_shared_experts": 2, "hidden_act": "gelu_new"}
    name = str(write(tmp_path / "mixture", document))
    configs.add_model(name)
    (found,) = [each() for each in models() if each.get_name() == name]
    assert found.mlp_hidden_dim == 10 * 96
    assert found.activation is recorded.ActivationType.GELU


def test_a_model_that_nobody_knows_is_one_message(configs: ModuleType, tmp_path: Path) -> None:
    configs.add_model("meta-llama/Llama-2-Config")  # Vidur's own
    with pytest.raises(ConfigurationError, match="Vidur has no model 'someone/Some-8B': name a directory"):
        configs.add_model("someone/Some-8B")
    with pytest.raises(UnknownModelError, match="unknown model 'nothing'"):
        configs.add_model("nothing")
    less = {key: value for key, value in LLAMA.items() if key != "vocab_size"}
    with pytest.raises(ConfigurationError, match="does not say 'vocab_size', which Vidur needs"):
        configs.add_model(str(write(tmp_path / "less", less)))


def test_vidur_s_command_line_runs_with_the_model_that_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = str(write(tmp_path / "named", LLAMA))
    seen: list[bool] = []
    recorded.install(
        monkeypatch,
        lambda: seen.append(any(each.get_name() == model for each in models())),
    )
    monkeypatch.setattr(sys, "argv", ["vidur", TYPE, "dooly", "--replica_config_model_name", model])
    main()
    assert seen == [True]
    monkeypatch.setattr(sys, "argv", ["vidur", f"--replica_config_model_name={tmp_path}"])
    with pytest.raises(SystemExit, match=r"error: cannot read .*config\.json"):
        main()


def test_where_vidur_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vidur", None)
    monkeypatch.setitem(sys.modules, "vidur.main", None)
    with pytest.raises(SystemExit, match="error: Vidur cannot be imported .*put a clone of .* on PYTHONPATH"):
        main()


@pytest.mark.skipif(CLONE is None, reason="DOOLY_VIDUR names no clone of microsoft/vidur")
def test_vidur_itself(db: Path, tmp_path: Path) -> None:
    """Two requests, one after the other: their first tokens come after their prompts' steps, and so on."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,64,3\n50.0,300,1\n")
    flags = {
        TYPE: "dooly",
        "--dooly_execution_time_predictor_config_db": str(db),
        "--dooly_execution_time_predictor_config_model": "planned",
        "--replica_config_model_name": "llama3",
        "--replica_config_device": "h200_sxm",
        "--request_generator_config_type": "trace_replay",
        "--trace_request_generator_config_trace_file": str(trace),
        "--trace_request_generator_config_max_tokens": "512",
        "--replica_scheduler_config_type": "sarathi",
        "--sarathi_scheduler_config_batch_size_cap": "8",
        "--metrics_config_output_dir": str(tmp_path / "out"),
    }
    command = [PYTHON, "-m", "pytest_dooly.hosts.vidur", *(text for flag in flags.items() for text in flag)]
    path = os.pathsep.join([str(Path(pytest_dooly.__path__[0]).parent), str(CLONE)])
    environment = {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "disabled"}
    subprocess.run([*command, "--no-metrics_config_store_plots"], check=True, env=environment, cwd=tmp_path)
    (found,) = (tmp_path / "out").glob("*/request_metrics.csv")
    first, second = csv.DictReader(found.read_text().splitlines())
    backend = pytest_dooly.backend("planned", device="h200_sxm", db=db)
    prompt_s, *decodes_s = backend.steps_s([[(64, 0)], [(1, 64)], [(1, 65)]])
    assert float(first["prefill_e2e_time"]) == pytest.approx(prompt_s)
    assert float(first["request_e2e_time"]) == pytest.approx(prompt_s + sum(decodes_s[:2]))
    assert float(second["request_e2e_time"]) == pytest.approx(backend.step_s([(300, 0)]))
