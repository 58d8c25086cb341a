"""What a run writes for people: terminal tables, an HTML page and a Markdown summary. Reads, never computes."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pytest_dooly.errors import DoolyError
from pytest_dooly.findings import ModelReport
from pytest_dooly.predict import StepPrediction
from pytest_dooly.regress import Regressor
from pytest_dooly.signature import ServedModel
from pytest_dooly.validation import Validation, ValidationRow

__all__ = [
    "format_latency",
    "format_operations",
    "format_step",
    "format_validation",
    "write_report",
]

_COLUMNS = 100


def write_report(report: ModelReport, directory: Path) -> Path:
    """Writes `index.html` (self-contained) and `summary.md` into the directory; returns the path of the page.

    Raises:
        DoolyError: the directory cannot be written.
    """
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    from pytest_dooly import plots

    templates = Templates(loader=PackageLoader("pytest_dooly", "."), autoescape=True, undefined=StrictUndefined)
    templates.filters.update(latency=format_latency, percent=_percent, signed=_signed)
    page = templates.get_template("report.html.jinja").render(
        report=report,
        regressors=_regressors(report),
        curves=plots.latency_curves(report),
        breakdown=plots.step_breakdown(report),
        accuracy=plots.predicted_against_measured(report),
        fitted=plots.fitted_against_measured(report),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / "summary.md", _summary(report))
        _replace(directory / "index.html", page)
    except OSError as error:
        raise DoolyError(f"cannot write the report to {directory}: {error.strerror}; name another directory") from error
    return directory / "index.html"


def format_latency(seconds: float) -> str:
    """Three significant digits in the unit that a person reads: `1.23 ms`, `45.6 µs`."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        value = seconds * factor
        if value >= 1 or unit == "µs":
            digits = max(0, 2 - len(str(int(value))) + 1)
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def format_operations(model: ServedModel) -> str:
    """A table of the model's operations with the origin of every dimension."""
    lines = [f"{model.name} ({model.architecture})", ""]
    lines.append(f"{'times':>5}  {'kind':10}  operation")
    for operation in model.operations:
        signature = operation.signature
        lines.append(f"{operation.multiplicity:5}  {signature.kind:10}  {signature.label}  per {signature.swept}")
        for role, dtype, shape in operation.origins:
            text = f"{role} {dtype} [{', '.join(shape)}]"
            lines += textwrap.wrap(text, _COLUMNS, initial_indent=" " * 19, subsequent_indent=" " * 23)
        details = ", ".join(f"{name} {value}" for name, value in signature.attributes if name != "swept")
        if details:
            lines += textwrap.wrap(details, _COLUMNS, initial_indent=" " * 19, subsequent_indent=" " * 23)
    return "\n".join(lines)


def format_step(step: StepPrediction) -> str:
    """A table of a step's operations and their shares."""
    lines = [
        f"step of {step.batch.num_reqs} requests, {step.batch.num_tokens} tokens: {format_latency(step.latency_s)}"
    ]
    lines += ["", f"{'times':>5}  {'operation':48} {'together':>10} {'share':>7}"]
    for operation in sorted(step.operations, key=lambda operation: -operation.latency_s):
        share = operation.latency_s / step.latency_s if step.latency_s else 0.0
        together = format_latency(operation.latency_s)
        lines.append(f"{operation.multiplicity:5}  {operation.label:48} {together:>10} {share:7.1%}")
    return "\n".join(lines)


def format_validation(validation: Validation) -> str:
    """A table of predicted and measured TTFT and TPOT, with the noise floor beside the error."""
    lines = [
        f"{'workload':>22} | {'TTFT pred.':>10} {'measured':>10} {'error':>7} {'noise':>6}"
        f" | {'TPOT pred.':>10} {'measured':>10} {'error':>7} {'noise':>6}",
        f"{'prompt x batch -> out':>22} |" + " " * 37 + "|",
    ]
    lines += [_validation_line(row) for row in validation.rows]
    for name, accuracy in (("TTFT", validation.ttft), ("TPOT", validation.tpot)):
        if accuracy is not None:
            lines.append(
                f"{name}: median error {accuracy.median:.1%}, MAPE {accuracy.mape:.1%}, "
                f"noise floor {accuracy.noise:.1%}, {accuracy.count} workloads"
            )
    return "\n".join(lines)


def _validation_line(row: ValidationRow) -> str:
    workload = row.workload
    name = f"{workload.prompt_len} x {workload.concurrency} -> {workload.output_len}"
    line = (
        f"{name:>22} | {format_latency(row.predicted_ttft_s):>10} {format_latency(row.measured_ttft_s):>10} "
        f"{row.ttft_error:+7.1%} {row.ttft_noise:6.1%}"
    )
    if row.predicted_tpot_s is None or row.measured_tpot_s is None or row.tpot_error is None or row.tpot_noise is None:
        return f"{line} | {'-':>10}"
    return (
        f"{line} | {format_latency(row.predicted_tpot_s):>10} {format_latency(row.measured_tpot_s):>10} "
        f"{row.tpot_error:+7.1%} {row.tpot_noise:6.1%}"
    )


def _summary(report: ModelReport) -> str:
    """Markdown for a CI job's summary."""
    lines = [f"# {report.model.name} on {report.environment.device}", "", str(report.environment), ""]
    if report.workloads:
        lines += ["| prompt | output | at once | TTFT | TPOT |", "| ---: | ---: | ---: | ---: | ---: |"]
        for prediction in report.workloads:
            workload = prediction.workload
            tpot = "-" if prediction.tpot_s is None else format_latency(prediction.tpot_s)
            lines.append(
                f"| {workload.prompt_len} | {workload.output_len} | {workload.concurrency} "
                f"| {format_latency(prediction.ttft_s)} | {tpot} |"
            )
        lines.append("")
    if report.validation is not None:
        lines += ["```", format_validation(report.validation), "```", ""]
    lines += ["| operation | times | points | failed | reused | regressor | held-out error |"]
    lines += ["| :--- | ---: | ---: | ---: | ---: | :--- | ---: |"]
    for row in report.operations:
        regressor = row.regressor
        fit = f"{regressor.method} | {regressor.error:.1%}" if regressor else "- | -"
        lines.append(
            f"| {row.operation.signature.label} | {row.operation.multiplicity} | {len(row.points)} "
            f"| {len(row.failures)} | {row.reused} | {fit} |"
        )
    return "\n".join(lines) + "\n"


def _regressors(report: ModelReport) -> Sequence[tuple[str, Regressor, float | None]]:
    """Label, regressor and held-out error of the next best candidate."""
    rows = []
    for row in report.operations:
        if row.regressor is not None:
            others = [error for name, error in row.regressor.candidates if name != row.regressor.method]
            rows.append((row.operation.signature.label, row.regressor, min(others, default=None)))
    return rows


def _replace(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(path)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _signed(share: float) -> str:
    return f"{share:+.1%}"
