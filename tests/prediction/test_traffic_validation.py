"""Traffic beside a server: what decides, and that it is kept as data."""

from __future__ import annotations

import json

import pytest

from pytest_dooly.prediction.traffic_validation import METRICS, STATISTICS, Load, TrafficRow, TrafficValidation
from pytest_dooly.prediction.validation import Verdict


def validation(
    errors: dict[tuple[str, str], tuple[float, ...]], *, noise: float = 0.0, failed: int = 0
) -> TrafficValidation:
    """Two loads; every statistic is met but for the errors named."""
    loads = (Load(1.0, True, 50, 4.0), Load(2.0, False, 50, 3.0, failed=failed))
    rows = tuple(
        TrafficRow(place, metric, statistic, 2 * (1 + errors.get((metric, statistic), (0.0, 0.0))[place]), 2.0, noise)
        for place in range(2)
        for metric in METRICS
        for statistic in STATISTICS
    )
    return TrafficValidation(loads, rows, 0.002, True, 2)


@pytest.mark.parametrize(
    ("errors", "noise", "verdict"),
    [
        ({}, 0.0, Verdict.MEETS),
        ({("ttft", "mean"): (0.1, -0.05)}, 0.0, Verdict.MEETS),
        ({("ttft", "mean"): (0.1, -0.1)}, 0.0, Verdict.MISSES),
        ({("e2el", "mean"): (0.1, -0.1)}, 0.09, Verdict.MEETS),
        ({("tpot", "p99"): (0.25, 0.1)}, 0.0, Verdict.MEETS),
        ({("tpot", "p99"): (0.25, 0.2)}, 0.0, Verdict.MISSES),
        ({("tpot", "p90"): (9.0, 9.0), ("ttft", "p50"): (9.0, 9.0)}, 0.0, Verdict.MEETS),
    ],
)
def test_means_and_p99_of_every_metric_decide(
    errors: dict[tuple[str, str], tuple[float, ...]], noise: float, verdict: Verdict
) -> None:
    assert validation(errors, noise=noise).verdict() is verdict


def test_a_failed_request_fails_it() -> None:
    assert validation({}, failed=1).verdict() is Verdict.MISSES


def test_verdicts_are_over_the_loads_and_leave_out_what_nobody_has() -> None:
    whole = validation({("ttft", "mean"): (0.1, -0.2)})
    first = next(whole.verdicts())
    assert (first.metric, first.statistic, first.accuracy.count) == ("ttft", "mean", 2)
    assert first.accuracy.mape == pytest.approx(0.15)
    assert first.verdict is Verdict.MISSES
    single_tokens = TrafficValidation(whole.loads, tuple(r for r in whole.rows if r.metric != "tpot"), 0.0, False, 2)
    assert {verdict.metric for verdict in single_tokens.verdicts()} == {"ttft", "e2el"}


def test_it_is_kept_as_json() -> None:
    whole = validation({("ttft", "p99"): (0.1, -0.2)}, noise=0.01)
    assert TrafficValidation.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_rows_are_of_something() -> None:
    with pytest.raises(ValueError, match="at least one load"):
        TrafficValidation((), (), 0.0, False, 2)
    with pytest.raises(ValueError, match="above 0"):
        TrafficRow(0, "ttft", "mean", 1.0, 0.0, 0.0)
