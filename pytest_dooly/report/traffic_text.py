"""Simulated traffic beside a real server as text."""

from __future__ import annotations

import textwrap

from pytest_dooly.prediction.traffic_validation import METRICS, Load, TrafficRow, TrafficValidation, TrafficVerdict
from pytest_dooly.report.text import format_latency, judgement, percent, signed

__all__ = ["format_traffic_validation"]

_COLUMNS, _LABEL = 100, 7
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "latency"}
_HALVES = (("mean", "p99"), ("p50", "p90"))
"""Statistics that stand side by side; those that decide come first."""


def format_traffic_validation(validation: TrafficValidation) -> str:
    """A table for each load of predicted and measured latencies, and the verdicts below; 100 columns."""
    half = f"{'predicted':>13} {'measured':>9} {'error':>8} {'noise':>6}"
    lines = [f"{'':{_LABEL}} | {half} | {half}"]
    for place, load in enumerate(validation.loads):
        lines += ["", *_wrap(_title(load))]
        for metric in METRICS:
            by_statistic = {row.statistic: row for row in validation.rows if (row.load, row.metric) == (place, metric)}
            lines += [
                f"{_NAMES[metric]:>{_LABEL}} | {_half(by_statistic[first])} | {_half(by_statistic[second])}"
                for first, second in _HALVES
                if by_statistic
            ]
    found = "found on short requests, one after the other" if validation.calibrated else "as named"
    added = format_latency(validation.server_s)
    lines += ["", *_wrap(f"server and client add {added} to each request in the prediction, {found}")]
    for verdict in validation.verdicts():
        lines += _wrap(_verdict(verdict))
    failed = sum(load.failed for load in validation.loads)
    if failed:
        lines.append(f"FAILED: {failed} requests failed")
    return "\n".join(lines)


def _title(load: Load) -> str:
    sharing = "prefixes shared" if load.shared else "nothing shared"
    measured = "" if load.measured_cached is None else f" and {load.measured_cached:,.0f} measured"
    return (
        f"{load.rate:.3g} requests/s ({load.rate / load.capacity:.0%} of what is sustained), {sharing}, "
        f"{load.num_requests} requests; tokens found in the cache: {load.predicted_cached:,} predicted{measured}"
    )


def _half(row: TrafficRow) -> str:
    predicted, measured = format_latency(row.predicted_s), format_latency(row.measured_s)
    return f"{row.statistic:4}{predicted:>9} {measured:>9} {signed(row.error):>8} {percent(row.noise):>6}"


def _verdict(verdict: TrafficVerdict) -> str:
    accuracy = verdict.accuracy
    return (
        f"{verdict.statistic} {_NAMES[verdict.metric]}: MAPE {accuracy.mape:.1%} over {accuracy.count} loads, "
        f"noise floor {accuracy.mean_noise:.1%}; {judgement(accuracy, verdict.target)}"
    )


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
