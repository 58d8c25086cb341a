"""Runs over time, on a machine made up: where something changed, and what a person is shown of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_dooly import cli
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.history import _points, histories
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.report.history_report import history_document, history_lines
from tests.samples import ENVIRONMENT

RUNS, CHANGED_AT = 14, 9

SHARES = {"rotary": 0.1, "linear": 0.6, "attention": 0.3}

TPOT_S = 10e-3


def document(seed: int, slower: Mapping[str, float], *, level_s: float = TPOT_S) -> dict[str, Any]:
    """What a run has found: changes with half a percent of noise, against a baseline of that level."""
    rng = np.random.default_rng(seed)
    changes = {name: math.expm1(rng.normal(math.log1p(slower.get(name, 0.0)), 0.005)) for name in SHARES}
    now_s = level_s * (1 + sum(share * changes[name] for name, share in SHARES.items()))
    return {
        "figures": [
            {
                "case": "tpot-64+8x4",
                "figure": "tpot",
                "workload": "64+8x4",
                "seconds": {str(Place(name, "T4")): share * level_s for name, share in SHARES.items()},
                "now_s": now_s,
                "error": 0.005,
            }
        ],
        "operations": [
            {
                "case": f"{name}-64",
                "signature": name,
                "shares": {"TPOT of 64+8x4": share},
                "change": changes[name],
                "error": 0.005,
            }
            for name, share in SHARES.items()
        ],
    }


def keep(
    db: LatencyDB,
    place: int,
    found: Mapping[str, Any],
    *,
    accepted: str | None = None,
    outcome: str = "passed",
    commit: str | None = None,
) -> None:
    key = db.begin_gate_run("series", "small", ENVIRONMENT, f"commit{place}" if commit is None else commit)
    outcome = outcome if accepted is None else "accepted"
    db.finish_gate_run(key, outcome, found, is_baseline=place == 0 or accepted is not None, accepted=accepted)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which attention is 10 % slower from the tenth on, and one that was killed."""
    made = tmp_path_factory.mktemp("history") / "latency.db"
    with LatencyDB.open(made) as db:
        for place in range(RUNS):
            keep(db, place, document(100 + place, {"attention": 0.1} if place >= CHANGED_AT else {}))
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
    assert found.tracks[0].latency_s[0] == pytest.approx(TPOT_S)
    assert found.tracks[2].latency_s[-1] == pytest.approx(1.1 * 0.3 * TPOT_S, rel=0.02)
    assert (len(found.runs), found.unfinished) == (RUNS, 1)
    assert histories(db, "unknown") == []


def test_a_baseline_that_was_accepted_is_where_the_next_runs_begin(tmp_path: Path) -> None:
    """Later runs are compared with it, so that their change is 0 and their level is not; no earlier level moves."""
    with LatencyDB.open(tmp_path / "latency.db") as db:
        for place in range(6):
            keep(db, place, document(place, {}))
        (before,) = histories(db, "small")
        moved = {**document(6, {"linear": 0.5}), "figures": document(6, {}, level_s=1.3 * TPOT_S)["figures"]}
        keep(db, 6, moved, accepted="meant")
        for place in range(7, 12):
            keep(db, place, document(place, {}, level_s=1.3 * TPOT_S))
        (found,) = histories(db, "small")
    tpot = found.tracks[0]
    assert tpot.latency_s[:6].tolist() == before.tracks[0].latency_s.tolist()
    assert tpot.latency_s[6:] == pytest.approx([1.3 * TPOT_S] * 6, rel=0.02)
    (point,) = tpot.points
    assert point.run == 6
    assert point.relative == pytest.approx(0.3, abs=0.01)
    assert "    baseline from here on: meant" in history_lines(found)


def test_what_a_run_could_not_tell_from_the_machine_s_doing_is_no_change_point(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "latency.db") as db:
        for place in range(12):
            slow = dict.fromkeys(SHARES, 0.2) if 4 <= place < 8 else {}
            keep(db, place, document(place, slow), outcome="undecided" if slow else "passed", commit="")
        (found,) = histories(db, "small")
        assert [track.points for track in found.tracks] == [()] * 4
        assert found.tracks[0].latency_s[5] == pytest.approx(1.2 * TPOT_S, rel=0.02)
        for place in range(12, 18):
            keep(db, place, document(place, {"linear": 0.3}), commit="")
        (found,) = histories(db, "small")
    (line,) = [line for line in history_lines(found) if line.startswith("  linear-64: +")]
    assert line.count("20") >= 2
    assert " between the runs of 20" in line


def test_a_run_that_lacks_a_workload_leaves_a_gap(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "latency.db") as db:
        keep(db, 0, document(0, {}))
        keep(db, 1, {**document(1, {}), "figures": []})
        (found,) = histories(db, "small")
    assert [np.isnan(track.latency_s).tolist() for track in found.tracks] == [[False, True]] * 4


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("figures", "now_s"),
        ("figures", "seconds"),
        ("figures", "error"),
        ("operations", "error"),
        ("operations", "shares"),
    ],
)
def test_a_run_of_an_earlier_version_that_lacks_something_is_a_gap(tmp_path: Path, kind: str, key: str) -> None:
    with LatencyDB.open(tmp_path / "latency.db") as db:
        keep(db, 0, document(0, {}))
        old = document(1, {})
        for each in old[kind]:
            del each[key]
        keep(db, 1, old)
        keep(db, 2, {"figures": []})
        (found,) = histories(db, "small")
    assert len(found.tracks) == 4
    assert not any(np.isnan(track.latency_s[0]) for track in found.tracks)
    assert all(np.isnan(track.latency_s[2]) for track in found.tracks)
    json.dumps(history_document(found), allow_nan=False)


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
    told = history_document(found)
    (attention,) = (track for track in told["tracks"] if track["name"] == "attention-64")
    assert [point["commit"] for point in attention["change_points"]] == ["commit9"]
    json.dumps(told, allow_nan=False)


def test_the_command_draws_it_and_says_what_there_is_none_of(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "history.png"
    assert cli.main(["history", "small", f"--db={path}", f"--png={png}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "small"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["history", "large", f"--db={path}"]) == 1
    assert "no run of the gate of large has finished" in capsys.readouterr().err
