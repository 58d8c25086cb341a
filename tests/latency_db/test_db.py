"""The file as a whole: what people see in it, equal keys everywhere, and runs that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.measurement import Failure
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.tables import Tables
from tests.latency_db.samples import (
    ATTENTION,
    CPU,
    GPU,
    MEASUREMENT,
    OTHER_POINT,
    POINT,
    SOURCE,
    contents,
    linear,
    row,
    sqlite,
    table,
)

# What people browse


def test_people_see_labels_seconds_and_utc(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        db.record(ATTENTION, CPU, SweepPoint(batch=Batch.parse("8x1+512,128")), Failure("no kernel"), spent_s=1.0)
    with sqlite(recorded) as connection:
        rows = connection.execute(
            "SELECT signature, sweep_point, num_tokens, num_reqs, median_s, reason, environment FROM latency "
            "WHERE num_tokens >= 100 ORDER BY num_tokens"
        ).fetchall()
        (measured_at,) = connection.execute("SELECT max(measured_at) FROM measurement").fetchone()
    assert rows == [
        ("linear-1024x4096-bf16", "T100", 100, None, 0.2, None, str(CPU)),
        ("attention-32h8kv128-bf16", "8x1+512,128+0", 136, 9, None, "no kernel", str(CPU)),
    ]
    assert datetime.fromisoformat(measured_at).utcoffset() == timedelta(0)
    assert datetime.now(UTC) - datetime.fromisoformat(measured_at) < timedelta(days=1)


def test_people_see_a_published_latency_with_its_source(path: Path) -> None:
    with LatencyDB.open(path) as db:
        db.record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
        db.publish(table(row(), row(2e-3, ATTENTION, point=OTHER_POINT)))
    with sqlite(path) as connection:
        rows = connection.execute(
            "SELECT signature, sweep_point, num_tokens, num_reqs, median_s, mean_s, rounds, reason, environment, "
            "source FROM latency ORDER BY source, signature"
        ).fetchall()
    assert rows == [
        ("linear-1024x4096-bf16", "T128", 128, None, 0.2, 0.3, 10, None, str(GPU), None),
        ("attention-32h8kv128-bf16", "8x1+512", 8, 8, None, 2e-3, None, None, str(GPU), SOURCE.name),
        ("linear-1024x4096-bf16", "T128", 128, None, None, 1e-3, None, None, str(GPU), SOURCE.name),
    ]


def test_keys_are_equal_in_every_db(tmp_path: Path) -> None:
    keys = []
    for name, order in [("one", [1, 2]), ("other", [2, 1])]:
        with LatencyDB.open(tmp_path / name) as db:
            for num_tokens in order:
                db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        with sqlite(tmp_path / name) as connection:
            keys.append(set(connection.execute("SELECT environment, signature, sweep_point FROM measurement")))
    assert len(keys[0]) == 2
    assert keys[0] == keys[1]


# Killed and interrupted


KILLED = """
import sys
from pathlib import Path
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import CPU, MEASUREMENT, SweepPoint, linear
with LatencyDB.open(Path(sys.argv[1])) as db:
    for num_tokens in range(1, 1_000_000):
        db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        print(num_tokens, flush=True)
"""


@pytest.mark.parametrize("alive_for", [1, 2, 50, 700])
def test_a_killed_run_loses_the_case_in_flight_at_most(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(alive_for)]
        process.kill()
        printed += [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -9
    assert path.with_name(f"{path.name}-wal").exists()
    with LatencyDB.open(path, create=False) as db:
        survivors = sorted(point.num_tokens or 0 for point in db.outcomes(CPU)[linear().key])
        assert survivors in (printed, [*printed, len(printed) + 1])
        db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert list(contents(path.parent)) == [str(path)]


def test_a_run_that_is_interrupted_in_a_write_keeps_nothing_of_it(
    db: LatencyDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tables, "_now", staticmethod(interrupt))
        db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert (db.outcomes(CPU), db.signatures()) == ({}, {})
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert db.outcomes(CPU) == {linear().key: {POINT: MEASUREMENT}}
