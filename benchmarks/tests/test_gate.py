"""The gate's benchmark: slowdowns do what they say, runs are counted, simulated runs are judged by the gate's code."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.gate import SLOWDOWNS, Run, nearest, report
from benchmarks.gate_simulation import LIMITS, UNCHANGED, simulated
from benchmarks.slowed_engine import slowed
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.verdict import Outcome
from pytest_dooly.latency_db.db import LatencyDB
from tests.drift.machine import turns
from tests.drift.test_verdict import MODEL, TPOT, verdict
from tests.report.test_gate_report import found
from tests.samples import ENVIRONMENT, LINEAR, SAMPLER


def test_a_slowdown_keeps_the_processor_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]

    def tick() -> float:
        now_s[0] += 0.01
        return now_s[0]

    monkeypatch.setattr(time, "perf_counter", tick)

    def forward(value: int) -> int:
        now_s[0] += 1.0
        return value + 1

    assert slowed(forward, 0.5)(1) == 2
    assert now_s[0] == pytest.approx(1.5, abs=0.1)


def test_operations_are_chosen_by_their_share() -> None:
    shares = {LINEAR.key: 0.5, SAMPLER.key: 0.04}
    assert nearest(MODEL, shares, 0.2).signature == LINEAR
    assert nearest(MODEL, shares, 0.003).signature == SAMPLER


def test_runs_are_counted() -> None:
    slowdown = SLOWDOWNS[0]
    drifted = found(verdict(figure=0.02, linear=0.04))
    runs = [Run(None, None, found(verdict()), 1.0)] * 2
    runs += [Run(slowdown, LINEAR.label, drifted, 1.0), Run(slowdown, SAMPLER.label, drifted, 1.0)]
    lines = report(runs, 20.0).splitlines()
    assert "| nothing |  |  | 2 | 2 | 0 | 0 | 0 | 0 |" in lines
    assert f"| 5% | {LINEAR.label} | 50.0% | 2 | 0 | 0 | 2 | 1 | 1 |" in lines


def test_simulated_runs_are_judged_at_every_limit(tmp_path: Path) -> None:
    """Of turns made up, which stand for recorded ones; few of them, since only what is made of them is tested."""
    key = LINEAR.key
    with LatencyDB.open(tmp_path / "gate.db") as db:
        db.save_model(MODEL, ENVIRONMENT)
        seconds = {str(place): s for place, s in TPOT.seconds.items() if place.signature in (key, SAMPLER.key)}
        figure = {"workload": "64+8x4", "figure": "tpot", "batch": "4x1+64", "seconds": seconds}
        for seed in range(4):
            run = db.begin_gate_run("series", "small", ENVIRONMENT, UNCHANGED)
            for position, turn in enumerate(turns(seed, 16)):
                renamed = {str(Place(key, "T4")): turn.latencies_s["linear T4"]}
                renamed[str(Place(SAMPLER.key, "R4"))] = turn.latencies_s["rotary T4"]
                db.keep_gate_turn(run, position, type(turn)(turn.references_s, renamed, turn.spent_s))
            db.finish_gate_run(run, Outcome.PASSED, json.loads(json.dumps({"figures": [figure]})), is_baseline=False)
    text = simulated(tmp_path / "gate.db", 8, tmp_path / "gate.png")
    assert text.count("| nothing |") == len(LIMITS)
    assert "8 runs made of the turns of 4 real ones" in text
    assert (tmp_path / "gate.png").read_bytes().startswith(b"\x89PNG")
