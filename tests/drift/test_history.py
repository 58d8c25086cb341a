"""Runs over time, on a machine made up: where something changed, and what a person is shown of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_dooly import cli
from pytest_dooly.drift.history import _points, histories
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.report.history_report import history_document, history_lines
from tests.drift.machine import LATENCIES_S, turns
from tests.samples import ENVIRONMENT

RUNS, CHANGED_AT = 14, 9

DOCUMENT = {
    "figures": [
        {
            "case": "tpot-64+8x4",
            "figure": "tpot",
            "workload": "64+8x4",
            "batch": "4x1+64",
            "seconds": {str(place): latency_s for place, latency_s in LATENCIES_S.items()},
        }
    ],
    "operations": [
        {"case": f"{name}-64", "signature": name, "shares": {"TPOT of 64+8x4": share}}
        for name, share in (("rotary", 0.1), ("linear", 0.6), ("attention", 0.3))
    ],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which attention is 10 % slower from the tenth on, and one that was killed."""
    made = tmp_path_factory.mktemp("history") / "latency.db"
    with LatencyDB.open(made) as db:
        for place in range(RUNS):
            key = db.begin_gate_run("series", "small", ENVIRONMENT, f"commit{place}")
            slower = {"attention": 0.1} if place >= CHANGED_AT else {}
            for position, turn in enumerate(turns(100 + place, 16, slower=slower)):
                db.keep_gate_turn(key, position, turn)
            accepted = "meant" if place == CHANGED_AT + 1 else None
            db.finish_gate_run(key, "passed", DOCUMENT, is_baseline=place == 0, accepted=accepted)
        db.begin_gate_run("series", "small", ENVIRONMENT, "killed")
    return made


@pytest.fixture
def db(path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(path) as opened:
        yield opened


def test_a_change_is_found_where_it_is(db: LatencyDB) -> None:
    (found,) = histories(db, "small")
    assert [track.name for track in found.tracks] == ["TPOT of 64+8x4", "linear-64", "attention-64", "rotary-64"]
    points = {track.name: track.points for track in found.tracks}
    assert points["linear-64"] == points["rotary-64"] == ()
    (point,) = points["attention-64"]
    assert point.run == CHANGED_AT
    assert point.relative == pytest.approx(0.1, abs=0.02)
    assert found.tracks[0].latency_s[0] == pytest.approx(sum(LATENCIES_S.values()), rel=0.1)
    assert (len(found.runs), found.unfinished) == (RUNS, 1)
    assert histories(db, "unknown") == []


def test_runs_that_differ_by_what_runs_differ_by_have_no_change_between_them() -> None:
    """Three runs of one engine that the gate had let pass made 21 change points, one of -4.3 %."""
    logs, errors = np.log([1.38, 1.32, 1.4, 1.33, 1.39, 1.34]), np.full(6, 0.004)
    assert _points(logs[:3], errors[:3]) == ()
    assert _points(logs, errors) == ()
    (point,) = _points(np.append(logs, logs + 0.4), np.full(12, 0.004))
    assert point.run == 6


def test_it_is_told_in_lines_and_as_json(db: LatencyDB) -> None:
    (found,) = histories(db, "small")
    lines = history_lines(found)
    assert lines[0] == "14 runs on CPU x2, and 1 that did not finish"
    assert any(line.startswith("  attention-64: +") and "between commit8 and commit9" in line for line in lines)
    assert "    baseline from here on: meant" in lines
    document = history_document(found)
    (attention,) = (track for track in document["tracks"] if track["name"] == "attention-64")
    assert [point["commit"] for point in attention["change_points"]] == ["commit9"]
    json.dumps(document, allow_nan=False)


def test_the_command_draws_it_and_says_what_there_is_none_of(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "history.png"
    assert cli.main(["history", "small", f"--db={path}", f"--png={png}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "small"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["history", "large", f"--db={path}"]) == 1
    assert "no run of the gate of large has finished" in capsys.readouterr().err
