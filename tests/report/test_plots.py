"""Plots: what a reader looks for is drawn and named, in both themes, and the process is left as it was."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.step import OperationLatency, StepPrediction
from pytest_dooly.prediction.validation import Validation, ValidationRow
from pytest_dooly.prediction.workload import WorkloadPrediction
from pytest_dooly.regress.fit import fit
from pytest_dooly.report import plots
from pytest_dooly.report.findings import ModelReport, OperationReport
from pytest_dooly.report.text import format_latency, step_name

LONG = " + ".join(f"factor_{i}*head_dim" for i in range(9))
ROW = ValidationRow(Workload(512, 16, 8), 0.055, 0.050, 0.02, 0.0060, 0.0080, 0.03)


def signature(kind: OperationKind, name: str, swept: str, *attributes: tuple[str, str | int]) -> Signature:
    tensors = (("x", "bf16", (swept, 64)), ("weight", "bf16", (128, 64)))
    return Signature(kind, name, tensors, tuple(attributes), swept)  # type: ignore[arg-type]


LINEAR = signature(OperationKind.LINEAR, "linear", "num_tokens")
LOGITS = signature(OperationKind.LOGITS, "logits", "num_reqs")
ATTENTION = signature(
    OperationKind.ATTENTION, "attention", "batch", ("head_size", 16), ("num_heads", 4), ("num_kv_heads", 2)
)
TOKENS = [SweepPoint(num_tokens=2**i) for i in range(8)]
REQUESTS = [SweepPoint(num_reqs=2**i) for i in range(5)]
PREFILLS = [SweepPoint(batch=Batch.uniform(1, query, 0)) for query in (16, 64, 256)]
DECODES = [SweepPoint(batch=Batch.uniform(n, 1, context)) for n in (1, 2, 4, 8, 16) for context in (16, 64, 256)]
MIXTURES = [SweepPoint(batch=Batch.parse("4x1+64,128"))]


def measured(median_s: float) -> Measurement:
    return Measurement(9, 0.9 * median_s, median_s, 1.1 * median_s, 0.2 * median_s)


def by_size(point: SweepPoint) -> float:
    batch = point.batch
    return 1e-5 * (1 + (batch.num_tokens + batch.num_reqs if batch else point.num_tokens or point.num_reqs or 0))


def row(
    of: Signature,
    points: Sequence[SweepPoint],
    latency_s: Callable[[SweepPoint], float] = by_size,
    failures: tuple[tuple[SweepPoint, Failure], ...] = (),
) -> OperationReport:
    outcomes = tuple((point, measured(latency_s(point))) for point in points)
    regressor = fit(of, dict(outcomes)) if len(points) >= 3 else None
    operation = ModelOperation(of, 12, ("layers.0",), (("weight", "bf16", ("hidden_size", LONG)),))
    return OperationReport(operation, outcomes, failures, regressor, 3, 4)


def step(batch: str, *shares: tuple[OperationKind, float]) -> StepPrediction:
    return StepPrediction(Batch.parse(batch), tuple(OperationLatency(kind.value, kind, 1, s) for kind, s in shares))


def report(*rows: OperationReport, **changes: object) -> ModelReport:
    found = ModelReport(
        model=ServedModel(
            "key", "llama", "LlamaForCausalLM", Limits(512, 32, 1024), tuple(each.operation for each in rows)
        ),
        environment=Environment("a CPU", 2, "avx512", "vllm", "0.32.0", "2.13.0", "perf_counter", "rotated", "eager"),
        operations=rows,
        steps=(step("128", (OperationKind.LINEAR, 6e-3), (OperationKind.ATTENTION, 2e-3)),),
        workloads=(WorkloadPrediction(Workload(128, 16, 4), 0.0123, 0.00456, 16, 0.0807),),
        validation=Validation((ROW,)),
        spent_s=12.0,
        saved_s=34.0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def texts(svg: str) -> list[str]:
    elements = ET.fromstring(svg).iter()  # noqa: S314 - our own SVG, whose well-formedness this checks too
    return ["".join(element.itertext()) for element in elements if element.tag.endswith("text")]


@pytest.fixture(scope="module")
def full() -> ModelReport:
    return report(row(LINEAR, TOKENS), row(LOGITS, REQUESTS), row(ATTENTION, [*PREFILLS, *DECODES, *MIXTURES]))


def test_prefill_and_decode_have_an_axis_of_their_own(full: ModelReport) -> None:
    said = texts(plots.latency_curves(full))
    assert said.count("attention-4h2kv16-bf16") == 2
    assert {"query_len of one request", "context_len of each request", "tokens", "requests"} <= set(said)
    assert [text for text in said if re.fullmatch(r"\d+ requests?", text)] == [
        "1 request",
        "2 requests",
        "8 requests",
        "16 requests",
    ]
    assert any(text.startswith("prefill · 12 per step · held-out error") for text in said)


def test_decodes_at_one_context_are_drawn_over_the_number_of_requests() -> None:
    said = texts(
        plots.latency_curves(report(row(ATTENTION, [SweepPoint(batch=Batch.uniform(n, 1, 16)) for n in (1, 2, 8)])))
    )
    assert any(text.startswith("decode at context_len 16") for text in said)
    assert "requests" in said


def test_batches_that_lie_on_no_line_are_left_to_the_scatter() -> None:
    mixed = report(row(ATTENTION, [SweepPoint(batch=Batch.parse(f"{n}x1+64,128")) for n in (1, 2, 4)]))
    assert plots.latency_curves(mixed) == ""
    assert "attention" in texts(plots.fitted_against_measured(mixed))


def test_the_unit_follows_the_size() -> None:
    assert "latency, µs" in texts(plots.latency_curves(report(row(LINEAR, TOKENS, lambda _: 5e-6))))
    assert "latency, ms" in texts(plots.latency_curves(report(row(LINEAR, TOKENS, lambda _: 5e-3))))


def test_one_point_and_equal_points_still_have_an_axis() -> None:
    said = texts(plots.latency_curves(report(row(LINEAR, TOKENS[:1]), row(LOGITS, REQUESTS, lambda _: 1e-4))))
    assert any(text.endswith("too few points") for text in said)
    assert len([text for text in said if re.fullmatch(r"[\d.]+", text)]) >= 12


def test_ticks_are_plain_numbers(full: ModelReport) -> None:
    for svg in (
        plots.latency_curves(full),
        plots.predicted_against_measured(full),
        plots.fitted_against_measured(full),
    ):
        assert not [text for text in texts(svg) if re.search(r"10\^|×\s*10|e[+-]\d", text)]


def test_the_dearest_operation_comes_first() -> None:
    said = texts(plots.latency_curves(report(row(LINEAR, TOKENS, lambda _: 1e-6), row(LOGITS, REQUESTS))))
    assert said.index("logits-64x128-bf16") < said.index("linear-64x128-bf16")


def test_a_breakdown_names_what_matters_and_the_total() -> None:
    small = (OperationKind.NORM, 1e-4), (OperationKind.SAMPLER, 6e-4)
    steps = step("128", (OperationKind.LINEAR, 7.3e-3), (OperationKind.ATTENTION, 2e-3), *small), step("8x1+64")
    said = texts(plots.step_breakdown(report(steps=steps)))
    assert {"linear 73%", "attention 20%", "6%", "10.0 ms", "prefill: 1 request, 128 tokens"} <= set(said)
    assert "1%" not in said
    assert "norm" in said
    assert "0.00 µs" in said


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        ("512", "prefill: 1 request, 512 tokens"),
        ("1", "prefill: 1 request, 1 token"),
        ("8x1+64", "decode: 8 requests, 8 tokens"),
        ("8x1+64,256", "mixed: 9 requests, 264 tokens"),
    ],
)
def test_a_step_is_named_by_what_it_does(batch: str, name: str) -> None:
    assert step_name(Batch.parse(batch)) == name


def test_points_outside_of_the_band_are_named(full: ModelReport) -> None:
    near = replace(ROW, workload=Workload(64, 16, 2), predicted_ttft_s=0.051, predicted_tpot_s=0.0081)
    high = replace(ROW, workload=Workload(32, 16, 1), predicted_ttft_s=0.060, predicted_tpot_s=0.0099)
    said = texts(plots.predicted_against_measured(replace(full, validation=Validation((ROW, near, high)))))
    assert said.count("32 × 1") == 2
    assert said.count("512 × 8") == 2
    assert "64 × 2" not in said
    assert {"band: ±5 %", "band: ±8 %"} <= set(said)


def test_without_tpot_only_ttft_is_drawn(full: ModelReport) -> None:
    single = replace(ROW, predicted_tpot_s=None, measured_tpot_s=None, tpot_noise=None)
    said = texts(plots.predicted_against_measured(replace(full, validation=Validation((single,)))))
    assert "TTFT" in said
    assert "TPOT" not in said


def test_plots_follow_light_and_dark_and_share_a_page(full: ModelReport) -> None:
    for svg in (plots.latency_curves(full), plots.step_breakdown(full), plots.fitted_against_measured(full)):
        assert "var(--ink)" in svg
        assert "#1d2430" not in svg
        assert '<g id="' not in svg
        assert "<metadata" not in svg


def test_the_backend_and_the_style_of_the_process_stay_as_they_are() -> None:
    code = """
import sys, tests.report.test_plots as t, matplotlib as mpl
def style():  # without the backend: to look at it chooses one
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}
before = style()
t.plots.step_breakdown(t.report())
assert "matplotlib.pyplot" not in sys.modules
assert style() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("steps", [True, False])
def test_the_overview_is_1600_pixels_wide(full: ModelReport, tmp_path: Path, steps: bool) -> None:
    plots.save_overview(full if steps else replace(full, steps=()), tmp_path / "overview.png")
    width, _ = struct.unpack(">II", (tmp_path / "overview.png").read_bytes()[16:24])
    assert width == 1600


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 µs"),
        (9.996e-3, "10.0 ms"),
        (0.9996e-3, "1.00 ms"),
        (0.9996, "1.00 s"),
        (123.4, "123 s"),
        (45e-6, "45.0 µs"),
    ],
)
def test_latencies_keep_three_digits_where_they_round_up(seconds: float, text: str) -> None:
    assert format_latency(seconds) == text


def test_labels_are_shown_as_they_are_written() -> None:
    odd = signature(OperationKind.LINEAR, "<b>$x_1$|y</b>", "num_tokens")
    assert "<b>$x_1$|y</b>-64x128-bf16" in texts(plots.latency_curves(report(row(odd, TOKENS))))


def test_a_fit_without_a_held_out_error_is_drawn_and_says_so(full: ModelReport) -> None:
    few = full.operations[0]
    assert few.regressor is not None
    changes: dict[str, Any] = {"error": None, "candidates": ()}
    said = texts(plots.latency_curves(report(replace(few, regressor=replace(few.regressor, **changes)))))
    assert "12 per step · too few points" in said
