"""What a run writes for people: an HTML page and a Markdown summary. Reads, never computes."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from pytest_dooly.errors import DoolyError, refusal_of
from pytest_dooly.prediction.validation import (
    Validation,
)
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.report import plots
from pytest_dooly.report.findings import ModelReport
from pytest_dooly.report.text import (
    IN_SITU_COLUMNS,
    details,
    format_latency,
    format_machine,
    in_situ_cells,
    in_situ_total,
    percent,
    remarks,
    signed,
    step_name,
    tensors,
    validation_cells,
    verdicts,
)

__all__ = ["ReportError", "format_latency", "write_report"]


class ReportError(DoolyError):
    """A report that cannot be written: name another directory."""


def write_report(report: ModelReport, directory: Path) -> Path:
    """Writes `index.html` (self-contained) and `summary.md` into the directory, each whole or not at all.

    Returns:
        path of the page.

    Raises:
        ReportError: the directory cannot be written.
    """
    page, summary = _page(report), _summary(report)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / "summary.md", summary)
        _replace(directory / "index.html", page)
    except OSError as error:
        reason = refusal_of(error)
        raise ReportError(f"cannot write the report to {directory}: {reason}; name another directory") from error
    return directory / "index.html"


def _page(report: ModelReport) -> str:
    # Neither is needed to load the plugin, which every project pays for that has us installed.
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    templates = Templates(
        loader=PackageLoader("pytest_dooly.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(latency=format_latency, percent=percent, signed=signed, tensors=tensors, details=details)
    return templates.get_template("page.html.jinja").render(
        report=report,
        sort=resources.files("pytest_dooly.report").joinpath("sort.js").read_text(encoding="utf-8"),
        machine="" if report.machine is None else format_machine(report.machine),
        held_out=_held_out(report),
        runners_up={row.operation.signature.key: _runner_up(row.regressor) for row in report.operations},
        verdicts=[] if report.validation is None else [*verdicts(report.validation), *remarks(report.validation)],
        cells=validation_cells,
        in_situ_header=IN_SITU_COLUMNS,
        in_situ_cells=in_situ_cells,
        in_situ_total=in_situ_total,
        step_name=step_name,
        extrapolated=_extrapolated(report),
        curves=plots.latency_curves(report),
        breakdown=plots.step_breakdown(report),
        accuracy=plots.predicted_against_measured(report),
        isolation=plots.isolated_against_in_situ(report),
        fitted=plots.fitted_against_measured(report),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _summary(report: ModelReport) -> str:
    """Markdown for a CI job's summary."""
    blocks = [
        f"# {_markdown(report.model.name)} on {_markdown(report.environment.device)}",
        _markdown(str(report.environment)),
        _counts(report),
        *([] if report.machine is None else [_markdown(format_machine(report.machine))]),
    ]
    blocks += [f"- {_markdown(line)}" for line in report.unread]
    if report.workloads:
        rows = [
            (w.workload.prompt_len, w.workload.output_len, w.workload.at_once, format_latency(w.ttft_s), tpot)
            for w in report.workloads
            for tpot in ["-" if w.tpot_s is None else format_latency(w.tpot_s)]
        ]
        blocks += ["## Predicted", _table(("prompt", "output", "at once", "TTFT", "TPOT"), rows, text=0)]
    if report.steps:
        steps = [(step_name(step.batch), format_latency(step.latency_s)) for step in report.steps]
        blocks.append(_table(("step", "latency"), steps))
    blocks += [f"- extrapolated: {_markdown(line)}" for line in _extrapolated(report)]
    if report.validation is not None:
        blocks += ["## Against the real engine", _validation_table(report.validation)]
        blocks.append("\n".join(f"- {line}" for line in (*verdicts(report.validation), *remarks(report.validation))))
    if report.in_situ is not None:
        blocks.append("## Alone and within a real step")
        for step in report.in_situ.steps:
            lines = [*(in_situ_cells(step, row) for row in step.rows), in_situ_total(step)]
            blocks += [f"Step of {_markdown(step.batch)}:", _table(IN_SITU_COLUMNS, lines)]
    blocks += ["## Operations", _operation_table(report)]
    failures = [
        (row.operation.signature.label, str(point), failure.reason)
        for row in report.operations
        for point, failure in row.failures
    ]
    if failures:
        blocks += ["## What could not be timed", _table(("operation", "point", "why"), failures, text=3)]
    return "\n\n".join(blocks) + "\n"


def _validation_table(validation: Validation) -> str:
    half = ("predicted", "measured", "error", "noise floor")
    header = ("prompt", "at once", "output", *(f"TTFT {name}" for name in half), *(f"TPOT {name}" for name in half))
    rows = []
    for row in validation.rows:
        ttft, tpot = validation_cells(row)
        rows.append((row.workload.prompt_len, row.workload.at_once, row.workload.output_len, *ttft, *tpot))
    return _table(header, rows, text=0)


def _operation_table(report: ModelReport) -> str:
    other = report.comparison
    others = () if other is None else (other.name,)
    header = ("operation", "times", "points", "failed", "reused", "held-out error", *others, "regressor")
    rows = []
    for row in report.operations:
        method, error = row.predicted_from or "-", "-"
        if row.regressor is not None:
            method, error = row.regressor.method, percent(row.regressor.error)
        counts = row.operation.multiplicity, len(row.points), len(row.failures), row.reused
        cells = () if other is None else (percent(other.errors.get(row.operation.signature.key)),)
        rows.append((row.operation.signature.label, *counts, error, *cells, method))
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1) -> str:
    """A GitHub-flavoured table whose first `text` columns are aligned left and all others right."""
    rule = [":---" if i < text else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(_markdown(str(cell)) for cell in row)} |" for row in (header, rule, *rows))


def _markdown(text: str) -> str:
    """The text on one line, shown as it is in Markdown and inside of a table."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _counts(report: ModelReport) -> str:
    new, reused = (sum(getattr(row, name) for row in report.operations) for name in ("new", "reused"))
    line = f"{sum(len(row.points) for row in report.operations)} measurements"
    if new or reused:
        line += f"; {new} cases timed in {report.spent_s:.0f} s, {reused} reused, which saved {report.saved_s:.0f} s"
    error = _held_out(report)
    return line if error is None else f"{line}; median held-out error {error:.1%}"


def _held_out(report: ModelReport) -> float | None:
    errors: list[float | None] = [row.regressor.error for row in report.operations if row.regressor is not None]
    known = [error for error in errors if error is not None]
    return statistics.median(known) if known else None


def _runner_up(regressor: Regressor | None) -> tuple[str, float] | None:
    """Name and held-out error of the next best candidate."""
    others = [] if regressor is None else [pair for pair in regressor.candidates if pair[0] != regressor.method]
    return min(others, key=lambda pair: pair[1], default=None)


def _extrapolated(report: ModelReport) -> list[str]:
    """What was predicted outside of the measured range, each line once."""
    lines = [line for step in report.steps for line in step.out_of_range]
    lines += [line for workload in report.workloads for line in workload.out_of_range]
    return list(dict.fromkeys(lines))


def _replace(path: Path, text: str) -> None:
    """Writes the file whole or not at all: a reader, or a full disk, never leaves half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
