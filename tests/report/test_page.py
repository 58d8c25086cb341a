"""Reports and plots: the numbers that a reader looks for are there, and text is escaped."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.measurement import Failure
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import DoolyError
from pytest_dooly.prediction.step import predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.validation import Validation, ValidationRow
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.regress.stored import Comparison
from pytest_dooly.report.findings import ModelReport, OperationReport
from pytest_dooly.report.page import write_report
from pytest_dooly.report.plots import save_overview
from pytest_dooly.report.text import format_latency, format_operations, format_step, format_validation
from tests.samples import BATCHES, ENVIRONMENT, LIMITS, REQUESTS, TOKENS, measured, model_and_regressors, served

POINTS = {"num_tokens": TOKENS, "num_reqs": REQUESTS, "batch": BATCHES}


@pytest.fixture(scope="module")
def findings() -> ModelReport:
    return small_report()


def small_report() -> ModelReport:
    """Everything that a page can show, of a small model."""
    model, regressors = model_and_regressors()
    operations = tuple(
        OperationReport(
            operation=operation,
            points=tuple((point, measured(1e-4)) for point in POINTS[operation.signature.swept]),
            failures=((TOKENS[0], Failure("no <kernel> & no luck")),) if operation.signature.name == "linear" else (),
            regressor=regressors[operation.signature.key],
            reused=3,
            new=4,
        )
        for operation in model.operations
    )
    rows = (
        ValidationRow(Workload(64, 8, 1), 1.1e-3, 1e-3, 0.02, 2.2e-4, 2e-4, 0.03),
        ValidationRow(Workload(512, 1, 8), 9e-3, 1e-2, 0.02, None, None, None),
    )
    return ModelReport(
        model=model,
        environment=ENVIRONMENT,
        operations=operations,
        steps=(
            predict_step(model, regressors, Batch.parse("64")),
            predict_step(model, regressors, Batch.parse("8x1+64")),
        ),
        workloads=(
            predict_workload(StepTimes(model, regressors), Workload(64, 8, 1)),
            predict_workload(StepTimes(model, regressors), Workload(64, 1, 1)),
        ),
        validation=Validation(rows),
        spent_s=12.0,
        saved_s=34.0,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234, "1.23 s"),
        (0.4567, "457 ms"),
        (0.01234, "12.3 ms"),
        (0.001, "1.00 ms"),
        (4.56e-5, "45.6 µs"),
        (2e-7, "0.20 µs"),
    ],
)
def test_latencies_read_as_people_write_them(seconds: float, text: str) -> None:
    assert format_latency(seconds) == text


def test_the_page_says_everything_and_needs_nothing_else(findings: ModelReport, tmp_path: Path) -> None:
    page = write_report(findings, tmp_path / "reports" / "small").read_text(encoding="utf-8")
    for text in (
        "small",
        "SmallForCausalLM",
        "linear-64x128-bf16",
        "attention-4h2kv16-bf16",
        "+10.0%",
        "-10.0%",
        "noise floor",
    ):
        assert text in page
    assert "no &lt;kernel&gt; &amp; no luck" in page
    assert page.count("<svg") == 4
    assert not re.search(r"<script[^>]|<link(?! rel=.icon. href=.data:,)|<img|@import|url\(\s*['\"]?http", page)
    assert "input bf16 [num_tokens, 64]" in page


def test_somebody_else_s_estimator_has_a_column_of_its_own(findings: ModelReport, tmp_path: Path) -> None:
    linear, *others = (row.operation.signature for row in findings.operations)
    comparison = Comparison("a:Forest", {linear.key: 0.123}, {others[0].key: "no luck"})
    page = write_report(replace(findings, comparison=comparison), tmp_path).read_text(encoding="utf-8")
    assert '<th class="n">a:Forest</th>' in page
    assert page.count("12.3%") == 1
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| held-out error | a:Forest | regressor |" in summary
    (row,) = (line for line in summary.splitlines() if linear.label in line and "12.3%" in line)
    assert row.split(" | ")[-2] == "12.3%"
    assert "a:Forest" not in write_report(findings, tmp_path).read_text(encoding="utf-8")


def test_the_summary_is_markdown(findings: ModelReport, tmp_path: Path) -> None:
    write_report(findings, tmp_path)
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("# small on CPU\n")
    assert "| linear-64x128-bf16 | 3 | 10 | 1 | 3 |" in summary
    assert "| 64 | 8 | 1 |" in summary
    assert "- TTFT: MAPE 10.0% (95% interval 10.0% to 10.0%), median error 10.0%, noise floor 2.0%" in summary


def test_a_report_without_measurements_is_a_report(findings: ModelReport, tmp_path: Path) -> None:
    bare = tuple(replace(row, points=(), failures=(), regressor=None) for row in findings.operations)
    empty = replace(findings, operations=bare, steps=(), workloads=(), validation=None)
    page = write_report(empty, tmp_path).read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "noise floor" not in page
    assert "What could not be timed" not in page


def test_points_without_a_fit_are_drawn_without_a_line(findings: ModelReport, tmp_path: Path) -> None:
    unfitted = tuple(replace(row, regressor=None) for row in findings.operations)
    assert "<svg" in write_report(replace(findings, operations=unfitted, steps=()), tmp_path).read_text(
        encoding="utf-8"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_directory_is_one_clear_error(findings: ModelReport, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(DoolyError, match="cannot write the report"):
        write_report(findings, tmp_path / "new")


def test_a_file_in_the_way_is_one_clear_error(findings: ModelReport, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DoolyError, match=r"cannot write the report to .*taken.*; name another directory"):
        write_report(findings, tmp_path / "taken")


def test_nothing_half_written_stays(findings: ModelReport, tmp_path: Path) -> None:
    write_report(findings, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "summary.md"]


def test_a_step_is_listed_by_what_it_costs(findings: ModelReport) -> None:
    lines = format_step(findings.steps[0]).splitlines()
    assert lines[0] == "step of 1 requests, 64 tokens: 2.02 ms"
    assert lines[3].split()[:2] == ["3", "linear-64x128-bf16"]
    assert max(map(len, lines)) <= 100


def test_a_validation_shows_the_noise_beside_the_error(findings: ModelReport) -> None:
    assert findings.validation is not None
    lines = format_validation(findings.validation).splitlines()
    assert "+10.0%" in lines[2]
    assert "2.0%" in lines[2]
    assert lines[3].rstrip().endswith("-")
    assert lines[4].startswith("TTFT: MAPE 10.0% (95% interval 10.0% to 10.0%), median error 10.0%, noise floor 2.0%")
    assert lines[5] == "  2 workloads; MISSES the target of 5% or 1.2 x the noise floor"
    assert max(map(len, lines)) <= 100


def test_origins_wrap_within_a_terminal(findings: ModelReport) -> None:
    operation = findings.model.operations[0]
    long = " + ".join(f"number_{i}*another_{i}" for i in range(12))
    wide = replace(operation, origins=(("weight", "bf16", (long, "hidden_size")),))
    text = format_operations(served(wide, limits=LIMITS))
    assert max(map(len, text.splitlines())) <= 100
    assert "hidden_size]" in text
    assert "method unquantized" in text


def test_the_overview_is_a_picture(findings: ModelReport, tmp_path: Path) -> None:
    save_overview(findings, tmp_path / "overview.png")
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
