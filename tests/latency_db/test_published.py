"""Latencies of others, file by file."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import (
    ATTENTION,
    CPU,
    GPU,
    MEASUREMENT,
    OTHER_POINT,
    POINT,
    SOURCE,
    contents,
    dump,
    linear,
    row,
    table,
)


def test_what_was_published_is_read_back(db: LatencyDB) -> None:
    both = PublishedTable(
        SOURCE, {GPU: (row(), row(2e-3, ATTENTION, point=OTHER_POINT)), CPU: (row(3e-3),)}, {"odd": 4}
    )
    assert db.publish(both) == 3
    assert db.published(GPU) == {linear().key: [row()], ATTENTION.key: [row(2e-3, ATTENTION, point=OTHER_POINT)]}
    assert db.published(GPU, [ATTENTION.key, "unknown"]).keys() == {ATTENTION.key}
    assert db.published(GPU, []) == {}
    assert db.published(CPU) == {linear().key: [row(3e-3)]}
    assert db.published_counts(GPU) == {linear().key: 1, ATTENTION.key: 1}
    assert db.published(dataclasses.replace(GPU, driver="1")) == {}
    assert db.unmapped() == {SOURCE.file: {"odd": 4}}
    assert db.signatures() == {linear().key: linear(), ATTENTION.key: ATTENTION}


def test_sources_are_counted_by_environment_and_by_signature(db: LatencyDB) -> None:
    other = dataclasses.replace(SOURCE, file="h200/attention.parquet")
    db.publish(PublishedTable(SOURCE, {GPU: (row(), row(1e-3, linear(8))), CPU: (row(),)}, {}))
    db.publish(table(row(1e-3, ATTENTION), source=other))
    assert db.sources() == {other: 1, SOURCE: 3}
    assert db.sources(GPU) == {other: 1, SOURCE: 2}
    assert db.sources(CPU) == {SOURCE: 1}
    assert db.sources(GPU, [ATTENTION.key]) == {other: 1}
    assert db.sources(GPU, [linear(8).key]) == {SOURCE: 1}


def test_publishing_the_same_file_again_changes_nothing(path: Path) -> None:
    with LatencyDB.open(path) as db:
        assert db.publish(table(row(), row(2e-3, linear(8)), odd=4)) == 2
    before = contents(path.parent)
    with LatencyDB.open(path) as db:
        assert db.publish(table(row(), row(2e-3, linear(8)), odd=4)) == 0
    assert contents(path.parent) == before


@pytest.mark.parametrize("change", [{"version": "2.0"}, {"sha256": "def"}, {"mapping": 2}])
def test_a_newer_file_takes_the_place_of_the_older_one(db: LatencyDB, change: dict[str, Any]) -> None:
    newer = dataclasses.replace(SOURCE, **change)
    neighbour = dataclasses.replace(SOURCE, file="h200/moe.parquet")
    db.publish(table(row(9e-3), source=neighbour, odd=1))
    db.publish(table(row(), row(1e-3, linear(8)), odd=4))
    assert db.publish(table(row(5e-3), source=newer, where=CPU, even=1)) == 1
    assert db.published(GPU) == {linear().key: [row(9e-3)]}
    assert db.published(CPU) == {linear().key: [row(5e-3)]}
    assert db.sources() == {newer: 1, neighbour: 1}
    assert db.unmapped() == {SOURCE.file: {"even": 1}, neighbour.file: {"odd": 1}}


def test_the_same_file_of_another_package_is_kept_beside_it(db: LatencyDB) -> None:
    other = dataclasses.replace(SOURCE, package="others")
    db.publish(table(row()))
    db.publish(table(row(2e-3), source=other))
    assert sorted(latency.latency_s for latency in db.published(GPU)[linear().key]) == [1e-3, 2e-3]
    assert db.sources().keys() == {SOURCE, other}


def test_kernels_and_variants_of_one_point_are_kept_apart(db: LatencyDB) -> None:
    rows = [row(), row(2e-3, kernel="triton"), row(3e-3, variant="balanced")]
    db.publish(table(*rows))
    assert sorted(db.published(GPU)[linear().key], key=lambda each: each.latency_s) == rows


def test_our_own_measurement_and_a_published_latency_leave_each_other_alone(db: LatencyDB) -> None:
    db.record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
    db.publish(table(row()))
    db.publish(table(row(2e-3), source=dataclasses.replace(SOURCE, version="2.0")))
    assert db.outcomes(GPU) == {linear().key: {POINT: MEASUREMENT}}
    assert db.spent_s(GPU) == {linear().key: {POINT: 1.0}}
    db.record(linear(), GPU, POINT, dataclasses.replace(MEASUREMENT, rounds=20), spent_s=1.0)
    assert db.published(GPU) == {linear().key: [row(2e-3)]}


def test_a_file_that_cannot_be_kept_leaves_what_was_there(path: Path) -> None:
    with LatencyDB.open(path) as db:
        db.publish(table(row(), odd=4))
    before = dump(path)
    newer = dataclasses.replace(SOURCE, version="2.0")
    with LatencyDB.open(path) as db, pytest.raises(DatabaseError, match="NOT NULL constraint failed"):
        db.publish(table(row(5e-3), row(math.nan, linear(8)), source=newer))
    assert dump(path) == before


def test_a_disk_that_is_full_leaves_what_was_there(path: Path) -> None:
    rows = [row(1e-3, point=SweepPoint(num_tokens=num_tokens)) for num_tokens in range(1, 1000)]
    newer = dataclasses.replace(SOURCE, version="2.0")
    with LatencyDB.open(path) as db:
        db.publish(table(row()))
        pages = db._db.execute("PRAGMA page_count").fetchone()[0]
        db._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(DatabaseError, match="database or disk is full"):
            db.publish(table(*rows, source=newer))
        assert db.published(GPU) == {linear().key: [row()]}
        assert db.sources() == {SOURCE: 1}
        db._db.execute("PRAGMA max_page_count = 1000000")
        assert db.publish(table(*rows, source=newer)) == len(rows)


PUBLISHING = """
import dataclasses, sys
from pathlib import Path
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import SOURCE, SweepPoint, row, table
rows = [row(1e-3, point=SweepPoint(num_tokens=num_tokens)) for num_tokens in range(1, 301)]
with LatencyDB.open(Path(sys.argv[1])) as db:
    for file in range(1_000_000):
        print("file", flush=True)
        db.publish(table(*rows, source=dataclasses.replace(SOURCE, file=str(file)), odd=7))
"""


@pytest.mark.parametrize("alive_for", [1, 2, 5])
def test_a_killed_import_has_each_file_whole_or_not_at_all(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PUBLISHING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(alive_for):
            process.stdout.readline()
        process.kill()
        started = alive_for + len(process.stdout.read().splitlines())
    assert process.returncode == -9
    with LatencyDB.open(path, create=False) as db:
        sources = db.sources()
        assert started - 1 <= len(sources) <= started
        assert set(sources.values()) <= {300}
        assert db.unmapped() == {source.file: {"odd": 7} for source in sources}
        assert sum(db.published_counts(GPU).values()) == 300 * len(sources)
