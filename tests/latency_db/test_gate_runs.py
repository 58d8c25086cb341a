"""Runs of the gate with their turns, kept and brought into another latency DB."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.core.turn import Turn
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.merge import merge
from tests.latency_db.samples import CPU, GPU, sqlite

TURN = Turn({"product": 1.23456789e-4}, {"aa T4": 0.25, "bb 4x1+16": 1e-6}, spent_s=0.5)


def test_a_run_is_kept_turn_by_turn_and_finished_at_the_end(db: LatencyDB) -> None:
    key = db.begin_gate_run("series", "llama3", CPU, "c0ffee")
    db.keep_gate_turn(key, 0, TURN)
    (run,) = db.gate_runs()
    assert (run.finished_at, run.outcome, run.is_baseline, run.document) == (None, None, False, {})
    assert db.gate_turns(key) == [Turn({"product": 1.23457e-4}, TURN.latencies_s, 0.5)]
    db.finish_gate_run(key, "accepted", {"limit": 0.03}, is_baseline=True, accepted="newer kernels")
    (run,) = db.gate_runs("series")
    assert (run.outcome, run.is_baseline, run.accepted) == ("accepted", True, "newer kernels")
    assert (run.model, run.environment, run.commit, run.document) == ("llama3", CPU, "c0ffee", {"limit": 0.03})
    assert run.finished_at is not None
    assert run.finished_at > run.started_at


def test_runs_of_a_series_come_in_their_order(db: LatencyDB) -> None:
    keys = [db.begin_gate_run(series, "llama3", GPU, "") for series in ("one", "other", "one")]
    assert [run.key for run in db.gate_runs("one")] == [keys[0], keys[2]]
    assert [run.key for run in db.gate_runs()] == keys
    assert db.gate_turns(keys[0]) == []


def test_a_damaged_turn_says_so(db: LatencyDB, path: Path) -> None:
    key = db.begin_gate_run("series", "llama3", CPU, "")
    db.keep_gate_turn(key, 0, TURN)
    with sqlite(path) as connection:
        connection.execute("UPDATE gate_turn SET document = '{'")
    with pytest.raises(DocumentError, match="a kept turn of a gate cannot be read"):
        db.gate_turns(key)


def test_a_run_that_was_copied_while_it_ran_is_finished_by_a_merge(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "there.db") as there:
        key = there.begin_gate_run("series", "llama3", CPU, "")
        there.keep_gate_turn(key, 0, TURN)
        there._db.execute("VACUUM INTO ?", [str(tmp_path / "here.db")])
        there.keep_gate_turn(key, 1, TURN)
        there.finish_gate_run(key, "baseline", {}, is_baseline=True)
    (merged,) = merge(tmp_path / "here.db", [tmp_path / "there.db"])
    assert merged.changes == {"runs of the gate": 1, "turns of the gate": 1}
    with LatencyDB.open(tmp_path / "here.db") as here:
        (run,) = here.gate_runs()
        assert run.is_baseline
        assert len(here.gate_turns(key)) == 2
