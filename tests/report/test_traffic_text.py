"""Traffic beside a server, for people."""

from __future__ import annotations

from dataclasses import replace

from pytest_dooly.report.traffic_text import format_traffic_validation
from tests.prediction.test_traffic_validation import validation


def test_a_table_for_each_load_and_a_verdict_for_each_statistic_that_decides() -> None:
    whole = validation({("ttft", "mean"): (0.1, 0.1), ("e2el", "p99"): (0.15, -0.05)}, noise=0.01)
    text = format_traffic_validation(whole)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2] == (
        "1 requests/s (25% of what is sustained), prefixes shared, 50 requests; tokens found in the cache: 0"
    )
    assert lines[4].split() == [
        *("TTFT", "|", "mean", "2.20", "s", "2.00", "s", "+10.0%", "1.0%"),
        *("|", "p99", "2.00", "s", "2.00", "s", "+0.0%", "1.0%"),
    ]
    assert "2 requests/s (67% of what is sustained), nothing shared, 50 requests" in text
    assert "add 2.00 ms to each request in the prediction, found on short requests" in text
    judged = " ".join(text.split())
    assert "mean TTFT: MAPE 10.0% over 2 loads, noise floor 1.0%; MISSES the target of 8%" in judged
    assert "p99 latency: MAPE 10.0% over 2 loads, noise floor 1.0%; meets the target of 20%" in judged


def test_failures_and_named_additions_are_said() -> None:
    whole = replace(validation({}, failed=3), calibrated=False)
    text = format_traffic_validation(whole)
    assert "as named" in text
    assert text.endswith("FAILED: 3 requests failed")


def test_tokens_that_the_server_found_in_its_cache_stand_beside_the_predicted() -> None:
    whole = validation({})
    loads = (replace(whole.loads[0], predicted_cached=1024, measured_cached=1000.0), whole.loads[1])
    assert "1,024 predicted and 1,000 measured" in " ".join(
        format_traffic_validation(replace(whole, loads=loads)).split()
    )
