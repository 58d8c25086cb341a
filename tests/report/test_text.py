"""Reports: text is escaped, files are whole or absent, verdicts and extrapolations are said."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.in_situ import InSitu
from pytest_dooly.core.measurement import Failure
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.profiled import MachineNoise
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.draw import Replacement
from pytest_dooly.prediction.step import OperationLatency, StepPrediction
from pytest_dooly.prediction.validation import Validation
from pytest_dooly.report.findings import ModelReport
from pytest_dooly.report.page import ReportError, write_report
from pytest_dooly.report.text import format_in_situ, format_machine, format_operations, format_step, format_validation
from tests.core.test_in_situ import IN_SITU
from tests.report.test_plots import LINEAR, ROW, TOKENS, report, row, signature


@pytest.fixture(scope="module")
def full() -> ModelReport:
    return report(row(LINEAR, TOKENS))


def test_the_machine_s_noise_widens_the_intervals() -> None:
    text = format_machine(MachineNoise(spread=0.05, precision=0.02, waited_s=1.25))
    assert "differs by 5.0% from case to case" in text
    assert "know to ±2.0% is known to ±10.0% at another time; cases waited 1.2 s" in text
    assert "waited" not in format_machine(MachineNoise(0.05, 0.02, 0.0))


def test_a_fit_without_a_held_out_error_says_so(full: ModelReport, tmp_path: Path) -> None:
    rows = []
    for each in full.operations:
        assert each.regressor is not None
        changes: dict[str, Any] = {"error": None, "candidates": ()}
        rows.append(replace(each, regressor=replace(each.regressor, **changes)))
    page = write_report(replace(full, operations=tuple(rows)), tmp_path).read_text(encoding="utf-8")
    assert "too few points" in page
    assert "median held-out error" not in page
    assert "| linear-64x128-bf16 | 12 | 8 | 0 | 3 | - |" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_matplotlib_and_jinja_load_only_when_a_report_is_written() -> None:
    code = (
        "import sys, pytest_dooly.report.page; assert not {'matplotlib', 'jinja2', 'torch', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    odd = signature(OperationKind.LINEAR, "<b>$x_1$|y</b>", "num_tokens")
    failure = SweepPoint(num_tokens=8), Failure("<script>alert(1)</script> a|b\nsecond `line`")
    found = report(row(odd, TOKENS, failures=(failure,)))
    page = write_report(replace(found, model=replace(found.model, name="<i>&")), tmp_path).read_text(encoding="utf-8")
    assert page.count("<script") == 1  # that sorts tables
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>$x_1$" not in page
    assert "&lt;b&gt;$x_1$|y&lt;/b&gt;" in page
    assert "&lt;i&gt;&amp;" in page
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert r"\<script\>alert(1)\</script\> a\|b second \`line\`" in summary
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 6, 8, 12) for line in summary.splitlines() if line[:1] == "|"
    )


def test_the_page_needs_no_network_and_no_script_but_its_own(full: ModelReport, tmp_path: Path) -> None:
    page = write_report(full, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]|<link(?! rel=.icon. href=.data:,)|<img|@import|src=|url\((?!#)", page)
    assert {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"} >= set(re.findall(r"https?://[^\"' ]+", page))
    assert page.index("</style>") < page.index("<body>") < page.index("<h1>llama</h1>") < page.index("<svg")
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("error", "noise", "judged"),
    [
        (0.4, 0.02, "MISSES the target of 5% or 1.2 x the noise floor"),
        (0.4, 0.35, "UNDECIDED: beside such noise nobody can tell whether 5% are met; run it on a quieter machine"),
        (0.1, 0.1, "misses 5%, but within 1.2 x the noise floor"),
        (0.04, 0.01, "meets the target of 5%"),
    ],
)
def test_the_page_and_the_summary_say_whether_the_target_is_met(
    full: ModelReport, tmp_path: Path, error: float, noise: float, judged: str
) -> None:
    predicted_s = (1 + error) * ROW.measured_ttft_s
    off = Validation((replace(ROW, predicted_ttft_s=predicted_s, ttft_noise=noise),))
    page = write_report(replace(full, validation=off), tmp_path).read_text(encoding="utf-8")
    said = f"1 workloads; {judged}"
    assert said in page
    assert said in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_an_extrapolation_is_said_once(full: ModelReport, tmp_path: Path) -> None:
    line = "linear: size 9,999 is outside of the measured 1 to 128"
    far = replace(full.steps[0], out_of_range=(line,)), replace(full.steps[0], out_of_range=(line,))
    page = write_report(replace(full, steps=far), tmp_path).read_text(encoding="utf-8")
    assert page.count(line) == 1
    assert f"extrapolated: {line}" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_report(
    full: ModelReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(full, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ReportError, match="No space left on device; name another directory"):
        write_report(replace(full, spent_s=99.0), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_terminal_tables_keep_to_100_columns() -> None:
    odd = signature(OperationKind.LINEAR, "a" * 150, "num_tokens")
    wide = replace(ROW, workload=Workload(131072, 4096, 256), predicted_ttft_s=99.9, measured_ttft_s=9.0)
    label = OperationLatency("b" * 150, OperationKind.LINEAR, 96, 1.0)
    tables = (
        format_operations(report(row(odd, TOKENS)).model),
        format_step(StepPrediction(Batch.parse("512"), (label,))),
        format_validation(Validation((wide, ROW))),
    )
    for table in tables:
        assert max(map(len, table.splitlines())) <= 100
    assert "131072 x 256 -> 4096" in tables[2]
    assert "factor_8*head_dim" in tables[0]
    assert "bbb…" in tables[1]


def test_what_the_budget_excluded_and_how_the_machine_drifted_is_said(full: ModelReport, tmp_path: Path) -> None:
    replaced = Replacement(Workload(2048, 128, 32), Workload(300, 20, 9))
    validation = Validation((ROW,), (replaced,), (0.012, -0.003))
    lines = (
        "too dear for the budget, and shrunk: 2048 x 32 -> 128 to 300 x 9 -> 20",
        "later rounds against the first, the machine's own drift: +1.2%, -0.3%",
    )
    page = write_report(replace(full, validation=validation), tmp_path).read_text(encoding="utf-8")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    for line in lines:
        assert line in format_validation(validation)
        assert line.replace(">", "&gt;").replace("'", "&#39;") in page
        assert f"- {line}" in summary


def test_operations_alone_stand_beside_those_within_a_step(full: ModelReport, tmp_path: Path) -> None:
    text = format_in_situ(IN_SITU)
    assert text.splitlines()[:5] == [
        "alone and within a step of 8x1+512",
        "operation                                           times isolated  in situ difference  share  noise",
        "attention-4h2kv16-bf16                                  2  30.0 µs  35.0 µs     -14.3%  70.0%   1.0%",
        "linear-64x128-bf16                                      3  11.0 µs  10.0 µs     +10.0%  30.0%   2.0%",
        "all together                                               93.0 µs   100 µs      -7.0% 100.0%",
    ]
    wide = replace(IN_SITU.rows[0], label="a" * 150, batch=",".join(["1+512"] * 40))
    assert max(map(len, format_in_situ(InSitu((wide,))).splitlines())) <= 100
    page = write_report(replace(full, in_situ=IN_SITU), tmp_path).read_text(encoding="utf-8")
    assert "Latency alone against latency within a step" in page
    assert page.index("Step of 8x1+512") < page.index("Step of 512")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| attention-4h2kv16-bf16 | 2 | 30.0 µs | 35.0 µs | -14.3% | 70.0% | 1.0% |" in summary
    assert "| all together |  | 6.00 ms | 7.50 ms | -20.0% | 100.0% |  |" in summary


def test_a_validation_without_tpot_says_nothing_of_it() -> None:
    single = replace(ROW, predicted_tpot_s=None, measured_tpot_s=None, tpot_noise=None)
    assert "TPOT: " not in format_validation(Validation((single,)))
