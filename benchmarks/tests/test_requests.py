"""Published requests: what is kept of them, and what is said of them beside a simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.request_runs import Measured, common, read_runs
from benchmarks.requests import ENGINES, KEPT, Compared, picture, report
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.published.llmservingsim import Bundle
from pytest_dooly.scheduling.clock import Simulated, StepRecord


def test_every_run_has_its_engine_and_300_requests_in_the_order_of_what_happens_to_them() -> None:
    runs = read_runs()
    assert list(runs) == list(ENGINES)
    for measured in runs.values():
        sent_s = np.array([request.arrival_s for request in measured.traffic.requests])
        assert len(sent_s) == 300
        times_s = np.column_stack([sent_s, measured.queued_s, measured.scheduled_s, measured.first_s, measured.last_s])
        assert (np.diff(times_s, axis=1) >= -1e-6).all()
        assert (measured.queued_s - sent_s).min() == pytest.approx(0, abs=1e-5)
    first = runs["RTX4090/Llama-3.1-8B"].traffic.requests[0]
    assert (first.prompt_len, first.output_len) == (2358, 531)


def test_the_bundle_that_is_kept_is_that_of_the_rtx_4090() -> None:
    bundle = Bundle.open(KEPT / ENGINES["RTX4090/Llama-3.1-8B"].bundle)
    assert (bundle.model, bundle.device, bundle.ranks) == ("meta-llama/Llama-3.1-8B", "NVIDIA GeForce RTX 4090", 1)


def test_prompts_share_whole_blocks_and_nothing_is_said_of_one_that_shares_none() -> None:
    shared, other = list(range(40)), list(range(100, 150))
    first, second, third = common([[*shared, 1, 2], [*shared[:36], *other], other])
    assert first[0] == second[0]
    assert [length for _, length in first] == [32, 10]
    assert [length for _, length in second] == [32, 54]
    assert first[1][0] != second[1][0]
    assert third == []


def compared(*, factor: float = 1.0) -> Compared:
    sent_s = np.arange(6, dtype=np.float64)
    traffic = Traffic([TrafficRequest(at, 100, 11) for at in sent_s.tolist()])
    wait_s = np.array([0.5, 1.0, 2.0, 1.5, 0.7, 0.001])
    measured = Measured(traffic, sent_s, sent_s + wait_s, sent_s + wait_s + 0.2, sent_s + wait_s + 1.2)
    scheduled_s = sent_s + factor * wait_s
    steps = [StepRecord(0.0, 1.5, 100, 0, 1, 0, 1, 0), StepRecord(1.5, 0.5, 3, 3, 1, 0, 1, 0)]
    first_s, last_s = scheduled_s + factor * 0.2, scheduled_s + factor * 1.2
    zeros = np.zeros(6, dtype=np.int64)
    return Compared("a/b", measured, Simulated(traffic, sent_s, scheduled_s, first_s, last_s, zeros, zeros, steps), ())


def test_each_figure_is_compared_request_by_request() -> None:
    lines = {line[:47].split()[-1]: line[47:].split() for line in report([compared(factor=1.1)])}
    for name in ("queue", "TTFT", "prefill", "TPOT", "latency"):
        assert lines[name][:2] == ["10.0%", "+10.0%"]  # the wait of a millisecond is too short to be judged
    assert lines["TPOT"][5:7] == ["0.1000", "0.1100"]
    text = "\n".join(report([compared()]))
    assert "2 steps; 1.5 s of 2.0 s in those with prompts" in text
    assert "measured 6.20 s, predicted 6.20 s (+0.0%)" in text


def test_a_picture_has_a_panel_a_metric(tmp_path: Path) -> None:
    picture([compared()], tmp_path / "requests.png")
    assert (tmp_path / "requests.png").stat().st_size > 10_000
