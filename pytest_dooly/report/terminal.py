"""What the plugin and the CLI say in a terminal: lines of text, at most 100 columns where the content allows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from pytest_dooly.core.configuration import aliases, resolve
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.latency_db.merge import Merged, Outcome
from pytest_dooly.prediction.interval import Interval
from pytest_dooly.prediction.workload import WorkloadPrediction
from pytest_dooly.regress.stored import Comparison
from pytest_dooly.report.findings import Summary
from pytest_dooly.report.text import format_interval, format_latency, format_machine
from pytest_dooly.sweep.plan import Case, Plan

__all__ = [
    "header_lines",
    "import_lines",
    "merge_lines",
    "model_lines",
    "plan_lines",
    "skip_reason",
    "summary_lines",
    "workload_line",
]

_LISTED = 20
"""Conflicts that are shown; --json has all."""


def model_lines() -> list[str]:
    """One line for each shipped model."""
    lines = []
    for alias in aliases():
        document = resolve(alias).document
        lines.append(
            f"{alias:20} {document['architectures'][0]:28} hidden {document['hidden_size']:>5}, "
            f"{document['num_hidden_layers']:>3} layers, vocabulary {document['vocab_size']:>6}"
        )
    return lines


def import_lines(files: Sequence[tuple[PublishedTable, int]]) -> list[str]:
    """What each published file holds, what of it is new, and what no operation stands for.

    Args:
        files: each with the number of its latencies that are new.
    """
    lines = []
    for table, new in files:
        state = f"{new:,} new" if new else "as before" if table.num_rows else "nothing to keep"
        lines.append(f"{table.source.file:72} {table.num_rows:>8,} latencies, {state}")
        lines += [f"    {num_rows:,} rows left out: {reason}" for reason, num_rows in table.unmapped.items()]
    kept, left_out = sum(table.num_rows for table, _ in files), sum(sum(t.unmapped.values()) for t, _ in files)
    names = sorted({f"{table.source.package} {table.source.version} ({table.source.licence})" for table, _ in files})
    total = f"{kept:,} latencies from {', '.join(names)}, {sum(new for _, new in files):,} of them new"
    return [*lines, "", f"{total}; {left_out:,} rows left out"]


def merge_lines(into: Path, merged: Sequence[Merged]) -> list[str]:
    """What each latency DB has brought into another, which outcomes gave way, and what has to be fitted again."""
    lines = []
    for each in merged:
        changes = ", ".join(f"{rows:,} {what}" for what, rows in each.changes.items() if what != "superseded")
        lines.append(f"{each.source} into {into}: {changes or 'nothing new'}")
        if each.conflicts:
            lines.append(f"  {len(each.conflicts):,} cases had another outcome in each; the other one is superseded:")
        for conflict in each.conflicts[:_LISTED]:
            lines.append(f"    {conflict.signature} at {conflict.sweep_point}, {conflict.environment}:")
            lines.append(f"      {_outcome(conflict.stays)} stays; superseded: {_outcome(conflict.superseded)}")
        if len(each.conflicts) > _LISTED:
            lines.append(f"    and {len(each.conflicts) - _LISTED:,} more, which --json lists")
        if each.to_fit:
            lines.append(f"  {len(each.to_fit):,} to fit again, by the next run: {', '.join(each.to_fit)}")
    return lines


def _outcome(outcome: Outcome) -> str:
    result = outcome.outcome
    if isinstance(result, Failure):
        return f"failure ({result.reason}) of {outcome.file}"
    return f"{format_latency(result.median_s)} ({result.rounds} rounds) of {outcome.file}"


def header_lines(plan: Plan, db: Path) -> list[str]:
    """Model, environment, latency DB and how many cases are new."""
    return [
        *(f"dooly: {model.name} ({model.architecture}), {len(model.operations)} operations" for model in plan.models),
        f"dooly: on {plan.environment}",
        f"dooly: {db}: {counts(plan)}",
    ]


def counts(plan: Plan) -> str:
    """How many cases are to be timed, about how long that takes, and how many are reused."""
    about = f" (about {_duration(plan.estimate_s)})" if plan.new else ""
    more = f", up to {len(plan.possible)} more where the held-out error asks for them" if plan.possible else ""
    unneeded = f", {len(plan.unneeded)} not needed" if plan.unneeded else ""
    predicted = f", {len(plan.predicted)} predicted from published latencies" if plan.predicted else ""
    return f"{len(plan.new)} to time{about}, {len(plan.reused)} reused{unneeded}{predicted}{more}"


def plan_lines(plan: Plan) -> list[str]:
    """What is missing, operation by operation, and about how long it would take."""
    lines = [*(f"{model.name} ({model.architecture})" for model in plan.models), f"on {plan.environment}", ""]
    lines.append(f"{'operation':44} {'swept over':12} {'new':>5} {'reused':>7} {'failed':>7} {'about':>8}")
    for operation in dict.fromkeys(case.operation for case in plan.cases):
        reused = sum(case.operation == operation for case in plan.reused)
        new = [case for case in plan.new if case.operation == operation]
        failed = sum(isinstance(case.outcome, Failure) for case in new)
        about = _duration(sum(case.spent_s for case in new)) if new else "-"
        label = operation.signature.label
        lines.append(f"{label:44} {operation.signature.swept:12} {len(new):5} {reused:7} {failed:7} {about:>8}")
    return [*lines, "", counts(plan)]


def skip_reason(case: Case, db: str) -> str:
    """Why a case is not timed; empty where it is."""
    if case.use == "unneeded" and not case.reused:
        return "not needed: the sweep's held-out error was within its target without it"
    if case.use == "predicted" and not case.reused:
        error = "" if case.error is None else f" to about {case.error:.1%}"
        return f"predicted{error} from published latencies; --dooly-share=0 times it"
    if not isinstance(case.outcome, Measurement) or not case.reused:
        return ""
    return f"measured: {format_latency(case.outcome.median_s)} in {db}; --dooly-refresh times it again"


def summary_lines(summary: Summary, *, verbosity: int = 0) -> list[str]:
    """What a profiling run has come to."""
    plan = summary.plan
    signatures = {operation.signature for model in plan.models for operation in model.operations}
    failed = f", {summary.failed} failed" if summary.failed else ""
    saved = f", which saved {_duration(plan.saved_s)}" if plan.reused else ""
    lines = [
        f"{len(signatures)} operations, {len(plan.cases)} points: {summary.timed} timed in "
        f"{_duration(summary.spent_s)}{failed}, {len(plan.reused)} reused{saved}, {summary.unneeded} not needed"
    ]
    if summary.regressors:
        errors = [regressor.error for regressor in summary.regressors.values() if regressor.error is not None]
        lines.append(f"{len(summary.regressors)} regressors")
        if errors:
            lines[-1] += f", held-out error: {_median_and_worst(errors)}"
    if summary.comparison is not None:
        lines += _comparison_lines(summary.comparison)
    if summary.machine is not None:
        lines.append(format_machine(summary.machine))
    if verbosity >= 0:
        lines += [f"  {line}" for line in _regressor_lines(summary)]
    lines += summary.lacking
    for name, predictions in summary.workloads.items():
        lines += [f"{name}: {workload_line(prediction)}" for prediction in predictions]
    return [*lines, *(f"report: {path}" for path in summary.reports), *summary.unwritten]


def workload_line(prediction: WorkloadPrediction, ttft: Interval | None = None, tpot: Interval | None = None) -> str:
    """TTFT and TPOT of a workload, each with its interval where there is one."""
    workload = prediction.workload
    decoding = "" if prediction.tpot_s is None else f", TPOT {format_latency(prediction.tpot_s)}{_within(tpot)}"
    return (
        f"prompt {workload.prompt_len}, output {workload.output_len}, {workload.at_once} at once: "
        f"TTFT {format_latency(prediction.ttft_s)}{_within(ttft)}{decoding}"
    )


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f" ({format_interval(interval)})"


def _regressor_lines(summary: Summary) -> Sequence[str]:
    labels = {
        operation.signature.key: operation.signature.label
        for model in summary.plan.models
        for operation in model.operations
    }
    grid = Counter(case.operation.signature.key for case in summary.plan.cases if case.use != "held out")
    lines = []
    for label, key in sorted((labels[key], key) for key in summary.regressors):
        regressor = summary.regressors[key]
        others = sorted(error for name, error in regressor.candidates if name != regressor.method)
        runner_up = f", next best {others[0]:.1%}" if others else ""
        held_out = "too few to hold one out" if regressor.error is None else f"{regressor.error:.1%}"
        points = f"{regressor.num_points:4} of {max(grid[key], regressor.num_points):4} points"
        lines.append(f"{label:44} {points}  {regressor.method}: {held_out}{runner_up}")
        if summary.comparison is not None and key in summary.comparison.errors:
            lines[-1] += f"; {summary.comparison.name} {summary.comparison.errors[key]:.1%}"
        if key in summary.held_out:
            lines[-1] += "; {} unseen points: {:.1%}".format(*summary.held_out[key])
    return lines


def _comparison_lines(comparison: Comparison) -> list[str]:
    """How an estimator did that is not ours, and one reason for what it could not do."""
    lines = []
    if comparison.errors:
        of = f"of {len(comparison.errors)} operations"
        lines.append(f"{comparison.name} {of}: {_median_and_worst(comparison.errors.values())}; it is not kept")
    if comparison.refused:
        others = f" (and {len(comparison.refused) - 1} operations more)" if len(comparison.refused) > 1 else ""
        lines.append(f"not compared: {next(iter(comparison.refused.values()))}{others}")
    return lines


def _median_and_worst(errors: Collection[float]) -> str:
    return f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
