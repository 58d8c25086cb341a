"""What a run writes for people: terminal tables, an HTML page and a Markdown summary. Reads, never computes."""

from __future__ import annotations

import os
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pytest_dooly import plots
from pytest_dooly.diff import Difference, Pair
from pytest_dooly.errors import DoolyError
from pytest_dooly.findings import ModelReport
from pytest_dooly.isolation import InSitu, InSituRow, InSituStep
from pytest_dooly.operation import Coverage
from pytest_dooly.plots import format_latency, step_name
from pytest_dooly.prediction import StepPrediction, Workload
from pytest_dooly.regress import Regressor
from pytest_dooly.signature import ModelOperation, ServedModel
from pytest_dooly.validation import NOISE_FACTOR, TPOT_TARGET, TTFT_TARGET, Accuracy, Validation, ValidationRow

__all__ = [
    "ReportError",
    "clip_label",
    "format_coverage",
    "format_diff",
    "format_in_situ",
    "format_latency",
    "format_operations",
    "format_step",
    "format_validation",
    "write_report",
]

_COLUMNS = 100
_LABEL = 64
_NARROW = 51


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
        reason = error.strerror or str(error)
        raise ReportError(f"cannot write the report to {directory}: {reason}; name another directory") from error
    return directory / "index.html"


def format_operations(model: ServedModel) -> str:
    """A table of the model's operations with the origin of every dimension, at most 100 columns wide."""
    lines = [f"{model.name} ({model.architecture})", "", f"{'kind':10}  {'times':>5}  operation"]
    for operation in model.operations:
        signature = operation.signature
        head = f"{signature.kind:10}  {operation.multiplicity:5}  {signature.label} per {signature.swept}"
        lines += _wrap(head, "", " " * 21)
        for line in (*_tensors(operation), _details(operation)):
            lines += _wrap(line, " " * 21, " " * 25)
    return "\n".join(lines)


def format_coverage(coverage: Coverage) -> str:
    """What share of a real forward pass the trace covers, and what it does not."""
    line = f"covers {coverage.share:.1%} of {coverage.ops:,} operators of a real forward pass in small"
    outside = ", ".join(f"{times} x {name}" for name, times in coverage.outside)
    return "\n".join(_wrap(f"{line}; outside: {outside or 'nothing'}", "", "  "))


def format_diff(first: ServedModel, second: ServedModel, difference: Difference) -> str:
    """Shared and differing operations of two models and the profiling time saved, at most 100 columns wide."""
    lines = [f"{first.name} -> {second.name}", ""]
    lines += _section("shared", [(op.signature.label, ()) for op in difference.shared])
    lines += _section("differing", [(_renamed(pair), pair.changes) for pair in difference.differing])
    for model, only in ((first, difference.only_first), (second, difference.only_second)):
        lines += _section(f"only in {model.name}", [(op.signature.label, ()) for op in only])
    lines.append(
        f"{len(difference.shared)} of {len(second.operations)} operations shared: profiling {second.name} after "
        f"{first.name} saves {difference.share_saved:.0%} of its time"
    )
    return "\n".join([*lines[:-1], *_wrap(lines[-1], "", "")])


def _renamed(pair: Pair) -> str:
    first, second = pair.first.signature.label, pair.second.signature.label
    return first if first == second else f"{first} -> {second}"


def _section(title: str, entries: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [f"{title} ({len(entries)})"]
    for label, changes in entries:
        lines += _wrap(label, "  ", "      ")
        for change in changes:
            lines += _wrap(change, "      ", "        ")
    return [*lines, ""]


def format_step(step: StepPrediction) -> str:
    """A table of a step's operations and their shares, the dearest first, at most 100 columns wide."""
    operations = sorted(step.operations, key=lambda operation: -operation.latency_s)
    labels = [clip_label(operation.label) for operation in operations]
    width = max(map(len, [*labels, "operation"]))
    batch = step.batch
    lines = [f"step of {batch.num_reqs} requests, {batch.num_tokens} tokens: {format_latency(step.latency_s)}", ""]
    lines.append(f"{'times':>5}  {'operation':{width}}  {'together':>10}  {'share':>6}")
    for operation, label in zip(operations, labels, strict=True):
        share = operation.latency_s / step.latency_s if step.latency_s else 0.0
        together = format_latency(operation.latency_s)
        lines.append(f"{operation.multiplicity:5}  {label:{width}}  {together:>10}  {share:6.1%}")
    return "\n".join(lines)


def format_validation(validation: Validation) -> str:
    """A table of predicted and measured TTFT and TPOT, and how near they are beside the noise; 100 columns."""
    half = f"{'predicted':>10} {'measured':>10} {'error':>8} {'noise':>6}"
    lines = [
        f"{'workload':>20} | {'TTFT':37} | {'TPOT':37}".rstrip(),
        f"{'prompt x reqs -> out':>20} | {half} | {half}",
    ]
    lines += [_validation_line(row) for row in validation.rows]
    for line in (*_verdicts(validation), *_remarks(validation)):
        lines += _wrap(line, "", "  ")
    return "\n".join(lines)


def format_in_situ(in_situ: InSitu) -> str:
    """For each batch a table of operations alone and within a step, the dearest first, at most 100 columns wide."""
    lines = []
    for step in in_situ.steps:
        lines += _wrap(f"alone and within a step of {step.batch}", "", "  ")
        lines.append(_in_situ_line(_IN_SITU))
        lines += [_in_situ_line(_in_situ_cells(step, row)) for row in step.rows]
        lines += [_in_situ_line(_in_situ_total(step)), ""]
    return "\n".join(lines[:-1])


_IN_SITU = ("operation", "times", "isolated", "in situ", "difference", "share", "noise")


def _in_situ_line(cells: Sequence[str]) -> str:
    numbers = " ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], (5, 8, 8, 10, 6, 6), strict=True))
    label = cells[0] if len(cells[0]) <= _NARROW else f"{cells[0][: _NARROW - 1]}…"
    return f"{label:{_NARROW}} {numbers}".rstrip()


def _in_situ_cells(step: InSituStep, row: InSituRow) -> tuple[str, ...]:
    times = str(row.multiplicity), format_latency(row.isolated_s), format_latency(row.in_situ_s)
    return (row.label, *times, _signed(row.error), _percent(step.share(row)), _percent(row.noise))


def _in_situ_total(step: InSituStep) -> tuple[str, ...]:
    together = format_latency(step.isolated_s), format_latency(step.in_situ_s), _signed(step.error)
    return ("all together", "", *together, _percent(1.0), "")


def _validation_line(row: ValidationRow) -> str:
    ttft, tpot = _cells(row)
    return f"{_workload(row.workload):>20} | {_right(ttft)} | {_right(tpot)}"


def _workload(workload: Workload) -> str:
    return f"{workload.prompt_len} x {workload.at_once} -> {workload.output_len}"


def _right(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, (10, 10, 8, 6), strict=True))


def _cells(row: ValidationRow) -> tuple[Sequence[str], Sequence[str]]:
    """Predicted, measured, error and noise floor of TTFT and of TPOT; dashes for one output token."""
    ttft = (
        format_latency(row.predicted_ttft_s),
        format_latency(row.measured_ttft_s),
        _signed(row.ttft_error),
        _percent(row.ttft_noise),
    )
    if row.predicted_tpot_s is None or row.measured_tpot_s is None or row.tpot_error is None or row.tpot_noise is None:
        return ttft, ("-",) * 4
    return ttft, (
        format_latency(row.predicted_tpot_s),
        format_latency(row.measured_tpot_s),
        _signed(row.tpot_error),
        _percent(row.tpot_noise),
    )


def _verdicts(validation: Validation) -> list[str]:
    """One line on TTFT and one on TPOT: how far off, and whether that is near enough."""
    lines = [_verdict("TTFT", validation.ttft, TTFT_TARGET)]
    return lines if validation.tpot is None else [*lines, _verdict("TPOT", validation.tpot, TPOT_TARGET)]


def _verdict(name: str, accuracy: Accuracy, target: float) -> str:
    verb = "meets" if accuracy.passes(target, NOISE_FACTOR) else "MISSES"
    return f"{_accuracy_line(name, accuracy)}; {verb} the target of {target:.0%} or {NOISE_FACTOR:g} x the noise floor"


def _accuracy_line(name: str, accuracy: Accuracy) -> str:
    return (
        f"{name}: MAPE {accuracy.mape:.1%} (95% interval {accuracy.low:.1%} to {accuracy.high:.1%}), "
        f"median error {accuracy.median:.1%}, noise floor {accuracy.mean_noise:.1%} (median {accuracy.noise:.1%}), "
        f"{accuracy.count} workloads"
    )


def _remarks(validation: Validation) -> list[str]:
    """What the budget excluded, and what the machine did meanwhile."""
    lines = []
    if validation.replaced:
        pairs = ", ".join(f"{_workload(pair.asked)} to {_workload(pair.ran)}" for pair in validation.replaced)
        lines.append(f"too dear for the budget, and shrunk: {pairs}")
    if validation.drift:
        lines.append(
            f"later rounds against the first, the machine's own drift: {', '.join(map(_signed, validation.drift))}"
        )
    return lines


def _page(report: ModelReport) -> str:
    # Neither is needed to load the plugin, which every project pays for that has us installed.
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    templates = Templates(
        loader=PackageLoader("pytest_dooly", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        latency=format_latency, percent=_percent, signed=_signed, tensors=_tensors, details=_details
    )
    return templates.get_template("report.html.jinja").render(
        report=report,
        held_out=_held_out(report),
        runners_up={row.operation.signature.key: _runner_up(row.regressor) for row in report.operations},
        verdicts=[] if report.validation is None else [*_verdicts(report.validation), *_remarks(report.validation)],
        cells=_cells,
        in_situ_header=_IN_SITU,
        in_situ_cells=_in_situ_cells,
        in_situ_total=_in_situ_total,
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
    ]
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
        blocks.append("\n".join(f"- {line}" for line in (*_verdicts(report.validation), *_remarks(report.validation))))
    if report.in_situ is not None:
        blocks.append("## Alone and within a real step")
        for step in report.in_situ.steps:
            lines = [*(_in_situ_cells(step, row) for row in step.rows), _in_situ_total(step)]
            blocks += [f"Step of {_markdown(step.batch)}:", _table(_IN_SITU, lines)]
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
        ttft, tpot = _cells(row)
        rows.append((row.workload.prompt_len, row.workload.at_once, row.workload.output_len, *ttft, *tpot))
    return _table(header, rows, text=0)


def _operation_table(report: ModelReport) -> str:
    header = ("operation", "times", "points", "failed", "reused", "held-out error", "regressor")
    rows = []
    for row in report.operations:
        method, error = row.predicted_from or "-", "-"
        if row.regressor is not None:
            method, error = row.regressor.method, _percent(row.regressor.error)
        counts = row.operation.multiplicity, len(row.points), len(row.failures), row.reused
        rows.append((row.operation.signature.label, *counts, error, method))
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


def _tensors(operation: ModelOperation) -> list[str]:
    return [f"{role} {dtype} [{', '.join(shape)}]" for role, dtype, shape in operation.origins]


def _details(operation: ModelOperation) -> str:
    return ", ".join(f"{name} {value}" for name, value in operation.signature.attributes if name != "swept")


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def clip_label(label: str) -> str:
    """The label as a table has room for it."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _replace(path: Path, text: str) -> None:
    """Writes the file whole or not at all: a reader, or a full disk, never leaves half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _signed(share: float) -> str:
    return f"{share:+.1%}"
