"""The requests that Vidur and we are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hosts import Served, told, trace_of
from pytest_dooly.simulation.traces import read_trace


def test_requests_that_fit_come_at_the_rate_that_is_named(tmp_path: Path) -> None:
    source = tmp_path / "conv.csv"
    rows = ["1.0,10,5", "2.0,4000,97", "3.0,20,6", "5.0,30,7", "9.0,40,8"]
    source.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows, ""]))
    requests = read_trace(trace_of(source, tmp_path / "out.csv", 3, 0.5)).traffic.requests
    assert [(r.prompt_len, r.output_len) for r in requests] == [(10, 5), (20, 6), (30, 7)]
    assert [r.arrival_s for r in requests] == pytest.approx([0, 3, 6])


def test_means_are_told_beside_our_own() -> None:
    theirs = Served("theirs", [0.2, 0.4], [0.02], 10.0, 9.0)
    own = Served("ours", [0.1, 0.3], [0.02], 1.0, 1.0)
    assert told([theirs, own]) == "Beside our own simulation: theirs: mean TTFT +50.0%, mean TPOT +0.0%."
    assert theirs.row == "| theirs | 300.0 | 300.0 | 398.0 | 20.00 | 20.00 | 10.0 | 9.0 |"
