"""Outcomes of searches are kept by key, and what they rest on is known."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.merge import merge
from tests.samples import ENVIRONMENT, LINEAR, SAMPLER, TOKENS, measured, published


def test_outcomes_are_kept_by_key(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "latency.db") as db:
        db.save_search_outcome("a", "one", {"rate": 1.0})
        db.save_search_outcome("b", "two", {"rate": 2.0})
        db.save_search_outcome("a", "one", {"rate": 3.0})
        assert db.load_search_outcomes(["a", "c"]) == {"a": {"rate": 3.0}}
    with closing(sqlite3.connect(tmp_path / "latency.db")) as connection, connection:
        connection.execute("UPDATE search_outcome SET document = 'no JSON' WHERE key = 'a'")
    with LatencyDB.open(tmp_path / "latency.db") as db:
        assert db.load_search_outcomes(["a", "b"]) == {"b": {"rate": 2.0}}


def test_what_is_known_of_a_device_has_a_state_of_its_own(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "latency.db") as db:
        states = [db.latencies_of(ENVIRONMENT.device)]
        db.record(LINEAR, ENVIRONMENT, TOKENS[0], measured(1e-3), spent_s=1.0)
        states.append(db.latencies_of(ENVIRONMENT.device))
        db.record(LINEAR, ENVIRONMENT, TOKENS[0], measured(2e-3), spent_s=1.0)
        states.append(db.latencies_of(ENVIRONMENT.device))
        table = published({(SAMPLER, TOKENS[0]): 1e-6})
        (environment,) = table.rows
        before = db.latencies_of(environment.device)
        db.publish(table)
        assert before != db.latencies_of(environment.device)
        if environment.device != ENVIRONMENT.device:
            states.append(db.latencies_of(environment.device))
    assert len(set(states)) == len(states)


def test_outcomes_are_merged_and_the_later_one_stays(tmp_path: Path) -> None:
    for name, rate in (("one", 1.0), ("two", 2.0)):
        with LatencyDB.open(tmp_path / f"{name}.db") as db:
            db.save_search_outcome("a", "same", {"rate": rate})
            db.save_search_outcome(name, name, {})
    merge(tmp_path / "one.db", [tmp_path / "two.db"])
    with LatencyDB.open(tmp_path / "one.db") as db:
        assert db.load_search_outcomes(["a", "one", "two"]) == {"a": {"rate": 2.0}, "one": {}, "two": {}}
