"""Outcomes are kept as they are."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import ATTENTION, CPU, GPU, MEASUREMENT, POINT, linear

points = (
    st.builds(SweepPoint, num_tokens=st.integers(1, 100_000))
    | st.builds(SweepPoint, num_reqs=st.integers(1, 1_000))
    | st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5).map(
        lambda pairs: SweepPoint(batch=Batch.of(pairs))
    )
)
seconds = st.floats(0, allow_nan=False, allow_infinity=False)
outcomes = st.builds(Measurement, st.integers(3, 10_000), seconds, seconds, seconds, seconds) | st.builds(
    Failure, st.text()
)
cases = st.tuples(st.sampled_from([linear(), ATTENTION]), st.sampled_from([CPU, GPU]), points)


@given(st.dictionaries(cases, st.tuples(outcomes, seconds), max_size=6))
def test_what_was_recorded_is_read_back(
    recording: dict[tuple[Signature, Environment, SweepPoint], tuple[Measurement | Failure, float]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "latencies.sqlite"
        with LatencyDB.open(path) as db:
            for (signature, environment, point), (outcome, spent_s) in recording.items():
                db.record(signature, environment, point, outcome, spent_s=spent_s)
        with LatencyDB.open(path, create=False) as db:
            for environment in (CPU, GPU):
                assert {
                    (key, point): (outcome, db.spent_s(environment)[key][point])
                    for key, by_point in db.outcomes(environment).items()
                    for point, outcome in by_point.items()
                } == {
                    (signature.key, point): recording[signature, where, point]
                    for signature, where, point in recording
                    if where == environment
                }
            assert db.signatures() == {signature.key: signature for signature, _, _ in recording}
            assert set(db.environments()) == {environment for _, environment, _ in recording}


@pytest.mark.parametrize(
    ("earlier", "later", "kept"),
    [
        (MEASUREMENT, dataclasses.replace(MEASUREMENT, rounds=20), "later"),
        (Failure("out of memory"), MEASUREMENT, "later"),
        (Failure("out of memory"), Failure("killed"), "later"),
        (MEASUREMENT, Failure("out of memory"), "earlier"),
    ],
)
def test_a_failure_never_replaces_a_measurement(
    db: LatencyDB, earlier: Measurement | Failure, later: Measurement | Failure, kept: str
) -> None:
    db.record(linear(), CPU, POINT, earlier, spent_s=1.0)
    db.record(linear(), CPU, POINT, later, spent_s=2.0)
    outcome, spent_s = (later, 2.0) if kept == "later" else (earlier, 1.0)
    assert db.outcomes(CPU) == {linear().key: {POINT: outcome}}
    assert db.spent_s(CPU) == {linear().key: {POINT: spent_s}}


def test_what_is_held_out_is_kept_apart(db: LatencyDB) -> None:
    other = SweepPoint(num_tokens=77)
    noisy = dataclasses.replace(MEASUREMENT, noise=0.04)
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.record(linear(), CPU, other, noisy, spent_s=2.0, held_out=True)
    assert db.outcomes(CPU) == {linear().key: {POINT: MEASUREMENT}}
    assert db.outcomes(CPU, held_out=True) == {linear().key: {other: noisy}}
    assert db.spent_s(CPU, held_out=True) == {linear().key: {other: 2.0}}
    db.record(linear(), CPU, other, noisy, spent_s=2.0)  # a sweep may take it after all
    assert db.outcomes(CPU, held_out=True) == {}


def test_a_settled_sweep_is_read_back_and_replaced(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.settle(linear().key, CPU, target=0.1, error=None, grid="old")
    db.settle(linear().key, CPU, target=0.05, error=0.03, grid="new")
    assert db.settled(CPU) == {linear().key: (0.05, "new")}
    assert db.settled(GPU) == {}


def test_an_environment_without_outcomes_has_none(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert db.outcomes(GPU) == {} == db.spent_s(GPU)


def test_outcomes_are_one_query_however_many_there_are(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        statements: list[str] = []
        db._db.conn.set_trace_callback(statements.append)
        assert len(db.outcomes(CPU)[linear().key]) == 100
    assert sum("SELECT" in statement for statement in statements) == 1


def test_a_latency_that_is_no_number_is_refused_and_nothing_of_the_case_kept(db: LatencyDB) -> None:
    with pytest.raises(
        DatabaseError, match="cannot write to latency DB .*: CHECK constraint failed: latencies_or_reason"
    ):
        db.record(linear(), CPU, POINT, dataclasses.replace(MEASUREMENT, mean_s=math.nan), spent_s=1.0)
    assert (db.outcomes(CPU), db.signatures(), db.environments()) == ({}, {}, [])
