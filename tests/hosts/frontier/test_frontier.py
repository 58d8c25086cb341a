"""Our predictor within Frontier's interface as recorded, and within Frontier itself where a clone is named."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_dooly
from pytest_dooly.hosts.frontier.__main__ import main
from tests.hosts.frontier import recorded
from tests.hosts.vidur.recorded import request

CLONE, PYTHON = os.environ.get("DOOLY_FRONTIER"), os.environ.get("DOOLY_HOSTS_PYTHON", sys.executable)


def made(db: Path, *, cluster: str = "MONOLITHIC", **changes: Any) -> Any:
    """The predictor, as Frontier makes it from the configuration that it finds."""
    (found,) = recorded.BaseExecutionTimePredictorConfig.__subclasses__()[-1:]
    usual = {"num_pipeline_stages": 1, "attn_tensor_parallel_size": 1, "device": "h100", "model_name": "planned"}
    return recorded.ExecutionTimePredictorRegistry.get(
        found.get_type(),  # type: ignore[attr-defined]
        predictor_config=found(db=str(db)),  # type: ignore[call-arg]
        replica_config=SimpleNamespace(**{**usual, **changes}),
        replica_scheduler_config=None,
        metrics_config=None,
        cluster_type=SimpleNamespace(name=cluster),
        cc_backend=None,
    )


def run(monkeypatch: pytest.MonkeyPatch, simulate: Any) -> None:
    recorded.install(monkeypatch, simulate)
    main()


def test_a_step_of_frontier_takes_what_the_back_end_says(monkeypatch: pytest.MonkeyPatch, db: Path) -> None:
    batch = SimpleNamespace(
        requests=[request(0, prefill_complete=False), request(101, prefill_complete=True)], num_tokens=[64, 1]
    )
    times: list[Any] = []
    run(monkeypatch, lambda: times.append(made(db).predict_stage_execution_time(batch, 0, None, num_layers=32)))
    backend = pytest_dooly.backend("planned", device="h100_sxm", db=db)
    assert [time.total_time for time in times] == pytest.approx([backend.step_s([(64, 0), (1, 100)])])
    assert [time.model_time for time in times] == [time.total_time for time in times]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": "PREFILL"}, "error: 1 pipeline stages of a PREFILL cluster: steps are predicted of engines"),
        ({"num_pipeline_stages": 2}, "error: 2 pipeline stages of a MONOLITHIC cluster"),
        ({"device": "a800"}, "error: unknown device 'a800'"),
        ({"model_name": "other"}, "error: the latency DB has no model 'other'"),
    ],
)
def test_what_it_cannot_predict_is_one_message(
    monkeypatch: pytest.MonkeyPatch, db: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, lambda: made(db, **changes))


def test_what_frontier_itself_says_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ValueError("of Frontier's own")

    with pytest.raises(ValueError, match="of Frontier's own"):
        run(monkeypatch, fails)


def test_where_frontier_is_missing_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "frontier", None)
    monkeypatch.setitem(sys.modules, "frontier.main", None)
    with pytest.raises(SystemExit, match="error: Frontier cannot be imported .*install a clone"):
        main()


@pytest.mark.skipif(CLONE is None, reason="DOOLY_FRONTIER names no clone of NetX-lab/Frontier")
def test_frontier_itself(db: Path, tmp_path: Path) -> None:
    """One request: its first token comes after its prompt's step, and the others one after the other."""
    flags = {
        "--execution_time_predictor_config_type": "dummy",
        "--dooly_execution_time_predictor_config_db": str(db),
        "--dooly_execution_time_predictor_config_model": "planned",
        "--dooly_execution_time_predictor_config_device": "h200_sxm",
        "--request_generator_config_type": "synthetic",
        "--length_generator_config_type": "fixed",
        "--fixed_request_length_generator_config_prefill_tokens": "64",
        "--fixed_request_length_generator_config_decode_tokens": "3",
        "--synthetic_request_generator_config_num_requests": "1",
        "--replica_scheduler_config_type": "vllm_v1",
        "--metrics_config_output_dir": str(tmp_path / "out"),
    }
    command = [PYTHON, "-m", "pytest_dooly.hosts.frontier", *(text for flag in flags.items() for text in flag)]
    path = os.pathsep.join([str(Path(pytest_dooly.__path__[0]).parent), str(CLONE)])
    environment = {**os.environ, "PYTHONPATH": path, "FRONTIER_LOG_LEVEL": "error"}
    subprocess.run([*command, "--no-metrics_config_store_plots"], check=True, env=environment, cwd=CLONE)
    (found,) = (tmp_path / "out").rglob("request_metrics.csv")
    (row,) = csv.DictReader(found.read_text().splitlines())
    backend = pytest_dooly.backend("planned", device="h200_sxm", db=db)
    prompt_s, *decodes_s = backend.steps_s([[(64, 0)], [(1, 64)], [(1, 65)]])
    assert float(row["prefill_e2e_time"]) == pytest.approx(1e3 * prompt_s, rel=1e-6)
    assert float(row["request_e2e_time"]) == pytest.approx(1e3 * (prompt_s + sum(decodes_s)), rel=1e-6)
