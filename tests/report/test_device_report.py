"""Tables of predictions for a device: every figure that decides is there, and fits on a terminal."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.comparison import candidate
from pytest_dooly.prediction.interval import Interval
from pytest_dooly.prediction.shares import bases_at
from pytest_dooly.prediction.step import StepPrediction, predict_step
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.budget import budget_of
from pytest_dooly.published.estimate import Estimate
from pytest_dooly.report import device_report
from pytest_dooly.report.device_report import (
    format_budgets,
    format_candidates,
    format_footprint,
    format_founded_step,
    format_shares,
    save_candidates,
)
from pytest_dooly.report.figure import new_figure
from tests.prediction.test_comparison import FOUNDED, MODEL, MODELS, SIGNATURES
from tests.samples import served, uses
from tests.traced import DEVICE, NORM, linear

TIMED = linear(1024, 1024)
BASES = {
    TIMED: Basis("estimate", 0, ("data sheet of Toy GPU",), None),
    linear(2048, 1024): Basis("across sizes", 1234, ("there",), 0.034),
    NORM: Basis("measured", 9, ("ours",), 0.01),
}
KNOWN = {each.key: Foundation(Estimate(each, DEVICE), basis) for each, basis in BASES.items()}
WITHIN = Interval(1e-3, 2e-3)
AT_STEP = bases_at(MODEL, FOUNDED, Batch.uniform(4, 1, 64))
PROFILED = served(*map(uses, BASES))


def test_a_step_with_what_each_prediction_rests_on() -> None:
    step = predict_step(MODEL, MODELS, Batch.uniform(4, 1, 64))
    lines = format_founded_step(step, AT_STEP, WITHIN).splitlines()
    assert lines[0].startswith("step of 4 requests, 4 tokens: ")
    assert lines[0].endswith("(90 %: 1.00 ms to 2.00 ms)")
    (product,) = (line for line in lines if SIGNATURES[0].label in line)
    assert product.split()[-4:] == ["published,", "9", "rows", "10.0%"]
    assert lines[3].split()[1] == "step"  # the longest first
    assert lines[-1] == "  there"
    assert lines[-2].startswith("rests on: ")
    assert "% estimate; expected error of an operation 10.0%, estimates apart" in lines[-2]
    assert max(map(len, lines)) <= 120


def test_a_step_that_takes_no_time_has_no_shares() -> None:
    step = predict_step(MODEL, MODELS, Batch.uniform(1, 1))
    operations = tuple(dataclasses.replace(each, latency_s=0.0) for each in step.operations)
    text = format_founded_step(StepPrediction(step.batch, operations), AT_STEP, WITHIN)
    assert "0.0%" in text
    assert "rests on: \n" in text


def test_only_kinds_that_a_step_rests_on_are_named() -> None:
    shares = candidate(MODEL, FOUNDED, DEVICE, Workload(64, 8, 1)).shares
    only = dataclasses.replace(shares, by_kind={"measured": 0.0, "estimate": 1.0}, error=None)
    assert format_shares(only) == "rests on: 100.0% estimate"


def test_the_budget_of_one_model_names_its_operations() -> None:
    budgets = budget_of([PROFILED], [KNOWN], DEVICE)
    lines = format_budgets(budgets).splitlines()
    need = budgets[0].needs[0]
    assert lines[1].split() == [
        TIMED.label,
        "to",
        "time",
        "estimate",
        str(need.cases),
        "to",
        str(need.most_cases),
        f"{need.device_s:.0f}",
        "to",
        f"{need.most_device_s:.0f}",
    ]
    assert lines[2].split() == ["linear-1024x2048-bf16", "predicted", "across", "sizes,", "1,234", "rows", "3.4%"]
    assert lines[3].split()[-4:] == ["measured,", "9", "rows", "1.0%"]
    assert (
        f"all together: {budgets[0].device_s / 60:.1f} to {budgets[0].most_device_s / 60:.1f} device minutes"
        in lines[-3]
    )
    assert "at" not in lines[-3].split()
    assert max(map(len, lines)) <= 120


def test_the_budget_of_several_models_is_a_line_each_and_has_a_price() -> None:
    budgets = budget_of([PROFILED, dataclasses.replace(PROFILED, name="again")], [KNOWN, KNOWN], DEVICE)
    lines = format_budgets(budgets, price=36.0).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "small", "again"]
    assert lines[2].split() == ["again", "1", "1", "1", "0", "0", "to", "0", "0"]
    low_s, high_s = (sum(of) for of in zip(*((b.device_s, b.most_device_s) for b in budgets), strict=True))
    assert lines[-3].endswith(f"on Toy GPU, {low_s / 100:.2f} to {high_s / 100:.2f} at 36 an hour")


def test_ways_to_serve_a_workload_the_fastest_first() -> None:
    slow = dataclasses.replace(DEVICE, name="slow")
    estimated = {key: Foundation(each.model, Basis("estimate", 0, (), None)) for key, each in FOUNDED.items()}
    workload = Workload(64, 8, 2)
    fast_way = candidate(MODEL, FOUNDED, DEVICE, workload)
    prediction = dataclasses.replace(fast_way.prediction, duration_s=9.0, tpot_s=None)
    slow_way = dataclasses.replace(candidate(MODEL, estimated, slow, workload, ranks=4), prediction=prediction)
    lines = format_candidates([slow_way, fast_way]).splitlines()
    assert lines[0] == "2 requests of 64 prompt and 8 output tokens"
    first, second = (line.split() for line in lines[3:5])
    assert first[:3] == ["small", "toy", "1"]
    assert re.fullmatch(r"×÷\d\.\d+", first[5])
    assert re.fullmatch(r"×÷\d\.\d+", first[8])
    assert first[-3:] == ["0.0", "of", "9"]
    assert second[:3] == ["small", "slow", "4"]
    assert second[-6:-3] == ["0%", "0%", "100%"]
    assert sum(word.startswith("×÷") for word in second) == 1  # one token each has no TPOT
    assert max(map(len, lines)) <= 120


def test_a_way_without_the_memory_has_no_latencies_and_comes_last() -> None:
    small = dataclasses.replace(DEVICE, name="small", memory_bytes=1e6)
    workload = Workload(64, 8, 2)
    lacking = candidate(MODEL, FOUNDED, small, workload)
    prediction = dataclasses.replace(lacking.prediction, duration_s=0.0)
    lacking = dataclasses.replace(lacking, prediction=prediction)
    lines = format_candidates([lacking, candidate(MODEL, FOUNDED, DEVICE, workload)]).splitlines()
    assert lines[3].split()[1] == "toy"
    assert lines[4].split() == ["small", "small", "1", "does", "not", "fit", "in", "memory", "0.0", "of", "0"]
    assert "does not fit" in format_footprint(lacking.footprint)
    assert "does not fit" not in format_footprint(candidate(MODEL, FOUNDED, DEVICE, workload).footprint)


@pytest.mark.parametrize("ways", [1, 14])
def test_ways_to_serve_are_drawn_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: int) -> None:
    figure = new_figure(12, 4.6)
    monkeypatch.setattr(device_report, "new_figure", lambda *_: figure)
    workload = Workload(128, 16, 4)
    first = candidate(MODEL, FOUNDED, DEVICE, workload)
    only_prefill = dataclasses.replace(first, prediction=dataclasses.replace(first.prediction, tpot_s=None))
    others = [dataclasses.replace(candidate(MODEL, FOUNDED, DEVICE, workload), ranks=2**i) for i in range(1, ways)]
    # Of which there is one way only.
    missing = dataclasses.replace(first, model=dataclasses.replace(MODEL, name="another $model$"))
    save_candidates([only_prefill, *others, missing], tmp_path / "candidates.png")
    width, _ = struct.unpack(">II", (tmp_path / "candidates.png").read_bytes()[16:24])
    assert width == 1600
    ttft, tpot = figure.axes
    assert [ax.get_title(loc="left") for ax in (ttft, tpot)] == ["TTFT, ms", "TPOT, ms"]
    assert [label.get_text() for label in ttft.get_yticklabels()] == ["small", "another $model$"]
    drawn: Any = ttft.collections[1].get_offsets()
    assert list(drawn[:, 0]) == pytest.approx([1e3 * first.prediction.ttft_s] * (ways + 1))
    assert list(drawn[:, 1]) == [*range(ways), ways + 0.5]
    assert len(tpot.texts) == ways  # one of them has no TPOT
    assert figure.get_supxlabel() == ""


@pytest.mark.parametrize("others", [0, 1])
def test_ways_without_the_memory_are_counted_and_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    figure = new_figure(12, 4.6)
    monkeypatch.setattr(device_report, "new_figure", lambda *_: figure)
    workload = Workload(128, 16, 4)
    lacking = candidate(MODEL, FOUNDED, dataclasses.replace(DEVICE, memory_bytes=1e3), workload)
    save_candidates([lacking, *[candidate(MODEL, FOUNDED, DEVICE, workload)] * others], tmp_path / "ways.png")
    assert figure.get_supxlabel() == "1 that do not fit in memory are left out"
    assert [len(ax.texts) for ax in figure.axes] == [others, others]
