"""Published runs of engines: what is read of them, and what a prediction is compared with."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from benchmarks.engines import RUNS, Run, report
from pytest_dooly.core.configuration import aliases
from pytest_dooly.core.device import device_named
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.workload import WorkloadPrediction

TIMED = Run("0.19.0", "llama3", "h100_sxm", 1, Workload(280, 378, 1), 0.03, 0.006, None)
WHOLE = Run("", "mixtral-8x7b", "a100_sxm", 2, Workload(32, 128, 8), None, None, 4.0)


def predicted(workload: Workload, *, ttft_s: float = 0.02, tpot_s: float = 0.0066) -> WorkloadPrediction:
    return WorkloadPrediction(workload, ttft_s, tpot_s, num_steps=9, duration_s=3.0)


def test_every_published_run_says_what_was_measured_where_and_by_whom() -> None:
    with RUNS.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 30
    for row in rows:
        run = Run.of(row)
        assert run.model in aliases()
        assert device_named(run.device).name == run.device
        assert (run.tpot_s is None) != (run.duration_s is None)
        assert row["source"].startswith("https://")
        assert 1e-3 < (run.tpot_s or run.duration_s or 0.0) < 10


def test_a_prediction_is_compared_with_what_was_published() -> None:
    assert TIMED.error(predicted(TIMED.workload)) == pytest.approx(0.1)
    assert WHOLE.error(predicted(WHOLE.workload)) == pytest.approx(-0.25)


def test_runs_are_told_apart_by_whether_long_prompts_arrive_among_decodes() -> None:
    many = replace(TIMED, workload=Workload(280, 378, 80))
    long = replace(TIMED, workload=Workload(8000, 378, 1))
    mixed = replace(TIMED, workload=Workload(8000, 378, 10))
    assert TIMED.group == many.group == long.group != mixed.group
    assert WHOLE.group not in (TIMED.group, mixed.group)


def test_a_report_has_every_run_and_the_errors_of_each_group() -> None:
    slow = replace(TIMED, tpot_s=0.0055)
    runs = [TIMED, WHOLE, slow]
    lines = list(report(runs, [predicted(run.workload) for run in runs]))
    assert [line for line in lines if line.endswith("%") and "runs:" in line] == [
        "2 runs: MAPE 15.0%, median 15.0%, largest 20.0%, mean with its sign +15.0%",
        "1 runs: MAPE 25.0%, median 25.0%, largest 25.0%, mean with its sign -25.0%",
    ]
    assert sum("llama3" in line for line in lines) == 2
    assert max(map(len, lines)) <= 120
