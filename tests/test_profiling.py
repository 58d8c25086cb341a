"""Selective profiling where others have published latencies of the device; the rest is shown through the plugin."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration, resolve
from pytest_dooly.core.environment import CUDA_GRAPH, REPEATED, Environment
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import Signature
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.profiling import Profiling
from pytest_dooly.report.findings import model_report
from pytest_dooly.report.page import write_report
from tests.models import LLAMA, write


class OnH200(FakeEngine):
    """The fake engine where the driver says H200."""

    def environment(self, configuration: ModelConfiguration) -> Environment:
        return dataclasses.replace(super().environment(configuration), device="NVIDIA H200")


def linears(sizes: Sequence[tuple[int, int]], *, engine_version: str = "0.24.0") -> PublishedTable:
    """Published latencies of single-precision linears, n x k, that grow with the work."""
    environment = Environment(
        "NVIDIA H200", 1, "unknown", "vllm", engine_version, "unknown", "cuda_event", REPEATED, CUDA_GRAPH
    )
    rows = tuple(
        PublishedLatency(
            Signature(
                OperationKind.LINEAR,
                "linear",
                (("input_", "bf16", ("num_tokens", k)), ("weight", "fp32", (n, k))),
                (("method", "unquantized"),),
                "num_tokens",
            ),
            SweepPoint(num_tokens=m),
            3e-6 + 1e-12 * m * n * k,
            "gemm",
        )
        for n, k in sizes
        for m in (1, 4, 16, 64, 256, 1024)
    )
    source = Source("tables", "1", "Apache-2.0", f"{len(rows)}.parquet", "00", 1)
    return PublishedTable(source, {environment: rows}, {})


@pytest.fixture
def model(tmp_path: Path) -> ModelConfiguration:
    return resolve(str(write(tmp_path / "model", LLAMA)))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        yield opened


@contextmanager
def profiling(db: LatencyDB, model: ModelConfiguration, *, share: float, refresh: bool = False) -> Iterator[Profiling]:
    run = Profiling(OnH200(), [model], db, share=share, refresh=refresh)
    try:
        yield run
    finally:
        run.close()


def predicted(run: Profiling) -> set[str]:
    return {case.operation.signature.label for case in run.plan.predicted}


def measure(run: Profiling) -> None:
    """As if every case had been timed."""
    for case in run.plan.new:
        outcome = Measurement.of([1e-3 + 1e-6 * (case.point.num_tokens or 1)] * 5)
        run.db.record(case.operation.signature, run.plan.environment, case.point, outcome, spent_s=1.0)


def test_a_linear_that_others_have_measured_is_not_timed(db: LatencyDB, model: ModelConfiguration) -> None:
    db.publish(linears([(512, 256), (704, 256)]))
    with profiling(db, model, share=0.05) as run:
        assert predicted(run) == {"linear-256x512-fp32", "linear-256x704-fp32"}
        timed = {case.operation.signature.label for case in (*run.plan.new, *run.plan.possible)}
        assert "linear-704x256-fp32" in timed
        assert not timed & predicted(run)


def test_nothing_stands_in_where_it_may_not(db: LatencyDB, model: ModelConfiguration) -> None:
    db.publish(linears([(512, 256)]))
    with profiling(db, model, share=0) as run:
        assert not run.plan.predicted
    with profiling(db, model, share=0.05, refresh=True) as run:
        assert not run.plan.predicted


def test_nothing_stands_in_for_a_device_of_which_nothing_is_published(db: LatencyDB, model: ModelConfiguration) -> None:
    with profiling(db, model, share=0.05) as run:
        assert not run.plan.predicted


def test_other_sizes_stand_in_where_they_are_many_and_the_error_is_small(
    db: LatencyDB, model: ModelConfiguration
) -> None:
    around = [(n, k) for n in (128, 256, 384, 448, 640, 768, 896, 1024) for k in (128, 192, 320, 384, 512, 768, 1024)]
    db.publish(linears(around))
    with profiling(db, model, share=0.9) as run:
        assert "linear-256x512-fp32" in predicted(run)  # 512 and 256 lie between the sizes
        assert "linear-256x2048-fp32" not in predicted(run)  # 2048 lies beyond them


def test_few_sizes_stand_in_for_no_other_however_small_the_error_seems(
    db: LatencyDB, model: ModelConfiguration
) -> None:
    db.publish(linears([(n, k) for n in (128, 1024) for k in (128, 1024)]))
    with profiling(db, model, share=0.9) as run:
        assert not run.plan.predicted


def test_the_summary_predicts_with_what_stands_in(db: LatencyDB, model: ModelConfiguration, tmp_path: Path) -> None:
    sizes = [(512, 256), (256, 256), (704, 256), (256, 704), (2048, 256)]
    db.publish(linears(sizes))
    with profiling(db, model, share=0.05) as run:
        assert len(predicted(run)) == len(sizes)
        measure(run)
        summary = run.summarise(tmp_path / "reports")
    assert not any("linear" in run.db.signatures()[key].label for key in summary.regressors)
    (workloads,) = summary.workloads.values()
    assert all(workload.ttft_s > 0 for workload in workloads)
    (page,) = summary.reports[0].parent.glob("*.md")
    assert "published latencies of gemm fp32" in page.read_text()


def test_a_report_that_is_written_again_says_what_the_run_said(
    db: LatencyDB, model: ModelConfiguration, tmp_path: Path
) -> None:
    def rounds(run: Callable[[], object], before: Callable[[], None], *_: object) -> list[float]:
        before()
        run()
        return [1e-3, 1.1e-3, 1.2e-3]

    with profiling(db, model, share=0) as run:
        for case in run.plan.new[:7]:
            assert isinstance(run.time(case, rounds), Measurement)
        summary = run.summarise(tmp_path / "reports")
    assert summary.timed == 7
    assert summary.machine is not None
    again = model_report(run.plan.models[0], db, run.plan.environment, summary.regressors)
    assert sum(operation.new for operation in again.operations) == 7
    assert (again.spent_s, again.machine) == (summary.spent_s, summary.machine)
    written = write_report(again, tmp_path / "again")
    before = summary.reports[0]
    for text in (written.with_name("summary.md"), before.with_name("summary.md")):
        assert "; 7 cases timed in " in text.read_text()
        assert "from case to case" in text.read_text()
    assert "from case to case" in written.read_text()

    with profiling(db, model, share=0) as second:
        nothing = second.summarise(tmp_path / "reports")
    again = model_report(run.plan.models[0], db, run.plan.environment, summary.regressors)
    assert sum(operation.reused for operation in again.operations) == 7
    assert sum(operation.new for operation in again.operations) == nothing.timed == 0
    assert again.saved_s == pytest.approx(sum(case.spent_s for case in second.plan.reused))
    assert nothing.machine is again.machine is None


def test_every_record_is_kept_and_every_line_said_where_a_report_cannot_be_written(
    db: LatencyDB, model: ModelConfiguration, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    other = resolve(str(write(tmp_path / "other", LLAMA, intermediate_size=512)))
    run = Profiling(OnH200(), [model, other], db, share=0)
    run.close()
    summary = run.summarise(tmp_path / "file" / "reports")
    assert not summary.reports
    assert [line.startswith("cannot write the report to") for line in summary.unwritten] == [True, True]
    assert all(db.load_finding("profiled", each.key, run.plan.environment) for each in run.plan.models)


def test_a_damaged_finding_is_left_out_of_the_report_and_named(
    db: LatencyDB, model: ModelConfiguration, tmp_path: Path
) -> None:
    with profiling(db, model, share=0) as run:
        run.summarise(tmp_path)
    served, environment = run.plan.models[0], run.plan.environment
    for kind in ("profiled", "validation", "in_situ"):
        db.save_finding(kind, served.key, environment, {"rows": 3, "timed": 3})
    report = model_report(served, db, environment, {})
    assert (report.validation, report.in_situ, report.spent_s) == (None, None, 0.0)
    remedies = ["pytest --dooly-model", "dooly validate", "dooly validate"]
    assert all(remedy in line for remedy, line in zip(remedies, report.unread, strict=True))
    page = write_report(report, tmp_path / "again")
    for text in (page.read_text(), page.with_name("summary.md").read_text()):
        assert "a kept Validation cannot be read" in text.replace("\\", "")


def test_without_lightgbm_everything_is_timed_and_a_line_says_why(
    db: LatencyDB, model: ModelConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.publish(linears([(512, 256), (704, 256)]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said: list[str] = []
    run = Profiling(OnH200(), [model], db, share=0.05, progress=said.append)
    run.close()
    assert not run.plan.predicted
    assert [line for line in said if "for lightgbm" in line]


def test_what_we_have_measured_of_few_sizes_stands_in_for_no_other(db: LatencyDB, model: ModelConfiguration) -> None:
    with profiling(db, model, share=0.9) as run:
        measure(run)
    wider = resolve(str(write(Path(model.name).parent / "wider", LLAMA, intermediate_size=768)))
    said: list[str] = []
    run = Profiling(OnH200(), [wider], db, share=0.9, progress=said.append)
    run.close()
    assert run.plan.new
    assert not run.plan.predicted
    assert not any("fitting" in line for line in said)
