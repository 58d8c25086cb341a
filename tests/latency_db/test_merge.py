"""Merging: the union of all outcomes, whatever the order; conflicts are kept and reported; nothing else changes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from pytest_dooly import cli
from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.core.signature import Signature
from pytest_dooly.errors import ConfigurationError, DatabaseError
from pytest_dooly.latency_db import file as db_file
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.merge import Merged, merge
from pytest_dooly.latency_db.migrations import APPLICATION_ID, MIGRATIONS
from pytest_dooly.latency_db.tables import Tables
from tests.latency_db.samples import contents
from tests.latency_db.test_file import ordinary_user
from tests.samples import (
    ATTENTION,
    ENVIRONMENT,
    LINEAR,
    PUBLISHED,
    SAMPLER,
    TOKENS,
    measured,
    published,
    served,
    uses,
)

__all__ = ["ordinary_user"]

GPU = dataclasses.replace(ENVIRONMENT, device="NVIDIA H200")
FAILURE = Failure("out of memory")


def slow(rounds: int = 20) -> Measurement:
    return dataclasses.replace(measured(2e-3), rounds=rounds)


Recording = Callable[[LatencyDB], object]


@pytest.fixture
def new(tmp_path: Path) -> Callable[..., Path]:
    """Makes a latency DB of a name, in a directory of its own, with what is done to it at a time of its own."""

    def make(name: str, *recordings: Recording, at: int = 0) -> Path:
        path = tmp_path / name / f"{name}.db"
        with LatencyDB.open(path) as db:
            for second, recording in enumerate(recordings, start=at):
                with mock.patch.object(
                    Tables, "_now", staticmethod(lambda second=second: f"2025-01-01T00:00:{second:02}")
                ):
                    recording(db)
        return path

    return make


def record(
    signature: Signature = LINEAR,
    environment: Environment = ENVIRONMENT,
    point: SweepPoint = TOKENS[0],
    outcome: Measurement | Failure | None = None,
    *,
    held_out: bool = False,
) -> Recording:
    return lambda db: db.record(
        signature, environment, point, outcome or measured(1e-3), spent_s=1.0, held_out=held_out
    )


def fit(signature: Signature = LINEAR, slope: int = 1) -> Recording:
    return lambda db: db.save_regressor(signature.key, ENVIRONMENT, {"slope": slope}, error=0.1)


def settle(signature: Signature = LINEAR, grid: str = "grid") -> Recording:
    return lambda db: db.settle(signature.key, ENVIRONMENT, target=0.05, error=0.01, grid=grid)


def fit_family(slope: int = 1) -> Recording:
    return lambda db: db.save_family_regressor(
        "family", PUBLISHED, {"slope": slope}, name="linear, bf16", error=0.1, fitted_to="these"
    )


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


TABLES = (
    "environment",
    "signature",
    "sweep_point",
    "measurement",
    "superseded",
    "settled_sweep",
    "model_configuration",
    "model_operation",
    "regressor",
    "finding",
    "source",
    "published_measurement",
    "unmapped",
    "family_regressor",
    "search_outcome",
    "gate_run",
    "gate_turn",
)


def tables(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    """Every row of every table."""
    return {table: set(rows(path, f"SELECT * FROM {table}")) for table in TABLES}  # noqa: S608 - names of ours


def test_every_table_is_looked_at(new: Callable[..., Path]) -> None:
    known = {name for (name,) in rows(new("a"), "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {name for name in known if not name.startswith(("_sqlite", "sqlite"))} == set(TABLES)


def only(merged: Sequence[Merged]) -> Merged:
    (one,) = merged
    return one


# Outcomes


Row = tuple[Measurement | Failure, int, bool]
"""Outcome, second of recording, and whether it is held out."""

figures = st.sampled_from([1e-3, 2e-3])
outcomes = st.builds(Measurement, st.sampled_from([7, 20]), figures, figures, figures, figures) | st.builds(
    Failure, st.sampled_from(["killed", "out of memory"])
)
cases = st.tuples(st.sampled_from([LINEAR, SAMPLER]), st.sampled_from([ENVIRONMENT, GPU]), st.sampled_from(TOKENS[:2]))
recordings = st.dictionaries(cases, st.tuples(outcomes, st.integers(0, 2), st.booleans()), max_size=8)


def record_all(path: Path, recording: Mapping[tuple[Signature, Environment, SweepPoint], Row]) -> Path:
    with LatencyDB.open(path) as db:
        for (signature, environment, point), (outcome, second, held_out) in recording.items():
            with mock.patch.object(Tables, "_now", return_value=f"2025-01-01T00:00:0{second}"):
                db.record(signature, environment, point, outcome, spent_s=1.0, held_out=held_out)
    return path


COLUMNS = (
    "environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s, reason, spent_s, measured_at, noise, "
    "held_out"
)


def outcomes_of(paths: Iterable[Path], table: str = "measurement") -> set[tuple[Any, ...]]:
    return {row for path in paths for row in rows(path, f"SELECT {COLUMNS} FROM {table}")}  # noqa: S608 - names of ours


@given(recordings, recordings, recordings)
def test_merging_loses_nothing_depends_on_no_order_and_is_done_once(first: Any, second: Any, third: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        originals = [record_all(place / f"{i}.db", each) for i, each in enumerate((first, second, third))]
        recorded = outcomes_of(originals)

        def merged(name: str, order: Sequence[int], *, one_by_one: bool) -> Path:
            into, *others = [Path(shutil.copy(originals[i], place / f"{name}-{i}.db")) for i in order]
            if one_by_one:  # the last into the one before it, and so on
                for path, other in zip([into, *others[:-1]][::-1], others[::-1], strict=True):
                    merge(path, [other])
            else:
                merge(into, others)
            return into

        one, other = merged("one", (0, 1, 2), one_by_one=False), merged("other", (2, 0, 1), one_by_one=True)
        stay, superseded = outcomes_of([one]), outcomes_of([one], "superseded")
        assert stay | superseded == recorded
        assert not stay & superseded
        assert (stay, superseded) == (outcomes_of([other]), outcomes_of([other], "superseded"))
        for table in ("environment", "signature", "sweep_point"):
            assert tables(one)[table] == tables(other)[table]

        def rank(row: tuple[Any, ...]) -> tuple[bool, int, str]:
            return row[8] is None, row[3] or 0, row[10]

        best = {row[:3]: rank(row) for row in sorted(recorded, key=rank)}
        assert {row[:3]: rank(row) for row in stay} == best

        before = tables(one)
        for again in merge(one, [originals[1], originals[2], other]):
            assert again.changes == {}
            assert not again.conflicts
            assert not again.to_fit
        assert tables(one) == before


@pytest.mark.parametrize(
    ("ours", "theirs", "stays"),
    [
        (FAILURE, measured(1e-3), "theirs"),
        (slow(), FAILURE, "ours"),
        (slow(21), measured(1e-3), "ours"),
        (slow(19), measured(1e-3), "theirs"),
        (slow(), measured(1e-3), "theirs"),  # as many rounds: the later one
        (FAILURE, Failure("killed"), "theirs"),
    ],
)
def test_of_two_outcomes_one_stays_and_the_other_is_kept_aside(
    new: Callable[..., Path], ours: Measurement | Failure, theirs: Measurement | Failure, stays: str
) -> None:
    into, source = new("a", record(outcome=ours)), new("b", record(outcome=theirs), at=1)
    merged = only(merge(into, [source]))
    kept = {"ours": (ours, into, 0), "theirs": (theirs, source, 1)}
    lost = kept.pop("ours" if stays == "theirs" else "theirs")
    (conflict,) = merged.conflicts
    assert (conflict.environment, conflict.signature, conflict.sweep_point) == (str(ENVIRONMENT), LINEAR.label, "T1")
    for outcome, (expected, file, second) in ((conflict.stays, kept[stays]), (conflict.superseded, lost)):
        assert dataclasses.astuple(outcome)[1:] == (f"2025-01-01T00:00:0{second}", str(file))
        assert outcome.outcome == expected
    with LatencyDB.open(into) as db:
        assert db.outcomes(ENVIRONMENT) == {LINEAR.key: {TOKENS[0]: kept[stays][0]}}
    assert rows(into, "SELECT median_s, rounds, reason, file FROM superseded") == [
        (
            getattr(lost[0], "median_s", None),
            getattr(lost[0], "rounds", None),
            getattr(lost[0], "reason", None),
            str(lost[1]),
        )
    ]
    assert rows(into, "SELECT superseded_at FROM superseded")[0][0] > "2025"


def test_what_is_held_out_stays_so_and_equal_outcomes_are_no_conflict(new: Callable[..., Path]) -> None:
    both = record(held_out=True)
    into, source = new("a", both), new("b", both)
    assert only(merge(into, [source])).changes == {}
    other = new("c", record(point=TOKENS[1], held_out=True))
    merged = only(merge(into, [other]))
    assert (merged.conflicts, merged.to_fit) == ((), ())
    assert merged.changes == {"measurements": 1, "sweep points": 1}
    with LatencyDB.open(into) as db:
        assert db.outcomes(ENVIRONMENT) == {}
        assert db.outcomes(ENVIRONMENT, held_out=True)[LINEAR.key].keys() == {TOKENS[0], TOKENS[1]}


def test_what_was_superseded_elsewhere_comes_along_and_may_come_back(new: Callable[..., Path]) -> None:
    into, source = new("a", record(outcome=slow(30))), new("b", record(outcome=slow(20)))
    merge(into, [source])
    third = new("c")
    merge(third, [into])
    assert outcomes_of([third], "superseded") == outcomes_of([source])
    assert rows(third, "SELECT file FROM superseded") == [(str(source),)]
    with LatencyDB.open(into) as db:  # timed again, with fewer rounds
        record(outcome=slow(10))(db)
    merge(into, [source])
    assert outcomes_of([into]) == outcomes_of([source])
    assert {row[3] for row in outcomes_of([into], "superseded")} == {10}


# What is derived from outcomes


def derived(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[float, str]]]:
    with LatencyDB.open(path) as db:
        return db.load_regressors(ENVIRONMENT), db.settled(ENVIRONMENT)


@pytest.mark.parametrize(
    "arriving",
    [record(point=TOKENS[1]), record(outcome=slow(30)), record(outcome=slow(30), held_out=True)],
    ids=["another point", "another measurement", "held out there"],
)
def test_a_regressor_goes_where_measurements_have_changed_and_only_there(
    new: Callable[..., Path], arriving: Recording
) -> None:
    ours = [record(), record(point=TOKENS[2]), record(SAMPLER), fit(), fit(SAMPLER), settle(), settle(SAMPLER)]
    into, source = new("a", *ours), new("b", arriving, fit(slope=2), settle(grid="other"), at=20)
    merged = only(merge(into, [source]))
    assert merged.to_fit == (LINEAR.label,)
    assert derived(into) == ({SAMPLER.key: {"slope": 1}}, {SAMPLER.key: (0.05, "grid")})
    assert only(merge(into, [source])).to_fit == ()


@pytest.mark.parametrize(
    "arriving",
    [record(point=TOKENS[1], outcome=FAILURE), record(point=TOKENS[1], held_out=True), record(outcome=slow(3))],
    ids=["a failure", "a point that is held out", "an outcome that gives way"],
)
def test_a_regressor_stays_where_nothing_that_it_rests_on_has_changed(
    new: Callable[..., Path], arriving: Recording
) -> None:
    into, source = new("a", record(), fit(), settle()), new("b", arriving, fit(slope=2), settle(grid="other"), at=20)
    merged = only(merge(into, [source]))
    assert merged.to_fit == ()
    assert derived(into) == ({LINEAR.key: {"slope": 1}}, {LINEAR.key: (0.05, "grid")})


def test_a_regressor_comes_along_where_it_rests_on_all_that_there_is(new: Callable[..., Path]) -> None:
    theirs = [record(), record(point=TOKENS[1]), record(SAMPLER), fit(slope=2), fit(SAMPLER, slope=2), settle()]
    into, source = new("a", record(), fit(), settle(grid="old")), new("b", *theirs)
    merged = only(merge(into, [source]))
    assert merged.to_fit == ()
    assert derived(into) == derived(source)
    assert derived(into)[0] == {LINEAR.key: {"slope": 2}, SAMPLER.key: {"slope": 2}}


def test_of_two_regressors_of_the_same_measurements_the_later_stays(new: Callable[..., Path]) -> None:
    same = record()
    one, other = new("a", same, fit(), settle()), new("b", same, fit(slope=2), settle(grid="later"))
    with LatencyDB.open(other) as db:
        fit(slope=3)(db)
        settle(grid="latest")(db)
    merge(one, [other])
    assert derived(one) == ({LINEAR.key: {"slope": 3}}, {LINEAR.key: (0.05, "latest")})
    before = derived(other)
    assert only(merge(other, [one])).changes == {}
    assert derived(other) == before


# Models


def test_the_model_that_was_saved_last_stays_and_findings_of_both(new: Callable[..., Path]) -> None:
    short, long = served(uses(LINEAR)), served(uses(LINEAR, 2), uses(SAMPLER))

    def save(model: Any) -> Recording:
        return lambda db: db.save_model(model, ENVIRONMENT)

    def find(kind: str, value: int) -> Recording:
        return lambda db: db.save_finding(kind, short.key, ENVIRONMENT, {"value": value})

    into = new("a", save(long), find("validation", 1), find("coverage", 1), save(served(uses(SAMPLER), name="mine")))
    source = new("b", save(short), find("validation", 2), save(served(uses(LINEAR), name="theirs")), at=10)
    forth, back = [Path(shutil.copy(path, path.with_name(f"{path.name}.copy"))) for path in (into, source)]
    merged = only(merge(into, [source]))
    assert {what: merged.changes[what] for what in ("models", "findings")} == {"models": 2, "findings": 1}
    merge(back, [forth])
    for path in (into, back):
        with LatencyDB.open(path) as db:
            assert db.load_model(short.key, ENVIRONMENT) == short
            assert [model.name for model in db.models()] == ["theirs", "small", "mine"]
            assert db.load_finding("validation", short.key, ENVIRONMENT) == {"value": 2}
            assert db.load_finding("coverage", short.key, ENVIRONMENT) == {"value": 1}
    assert only(merge(into, [source])).changes == {}


# Published latencies


def publish(*files: PublishedTable) -> list[Recording]:
    return [functools.partial(LatencyDB.publish, table=table) for table in files]


def latencies(path: Path) -> set[tuple[Any, ...]]:
    return set(
        rows(
            path,
            "SELECT source.file, source.version, latency_s FROM published_measurement "
            "JOIN source ON source.key = published_measurement.source",
        )
    )


def test_published_files_come_along_with_all_that_belongs_to_them(new: Callable[..., Path]) -> None:
    shared = published({(LINEAR, TOKENS[0]): 1e-3}, unmapped={"odd": 3})
    more = published({(ATTENTION, TOKENS[0]): 2e-3, (LINEAR, TOKENS[1]): 3e-3}, file="more", unmapped={"rare": 1})
    into, source = new("a", *publish(shared)), new("b", *publish(shared, more))
    merged = only(merge(into, [source]))
    assert {what: merged.changes[what] for what in ("published files", "published latencies")} == {
        "published files": 1,
        "published latencies": 2,
    }
    for table in ("source", "published_measurement", "unmapped"):
        assert tables(into)[table] == tables(source)[table]
    assert only(merge(into, [source])).changes == {}


def test_of_two_versions_of_a_file_the_one_imported_later_stays(new: Callable[..., Path]) -> None:
    old = published({(LINEAR, TOKENS[0]): 1e-3, (LINEAR, TOKENS[1]): 1e-3}, unmapped={"odd": 3})
    newer = published({(LINEAR, TOKENS[0]): 2e-3}, version="0.13.0")
    for names, late in (("ab", 0), ("cd", 1)):
        paths = [new(names[0], *publish(old)), new(names[1], *publish(newer), at=5)]
        into, source = paths[::-1] if late else paths
        merged = only(merge(into, [source]))
        assert latencies(into) == {("gemm.parquet", "0.13.0", 2e-3)}
        assert tables(into)["unmapped"] == set()
        assert not late or merged.changes == {"sweep points": 1}
        assert only(merge(into, [source])).changes == {}
    with LatencyDB.open(into) as db:
        assert db.publish(newer) == 0


def test_two_files_that_have_the_same_latency_are_kept_apart(new: Callable[..., Path]) -> None:
    first, second = published({(LINEAR, TOKENS[0]): 1e-3}), published({(LINEAR, TOKENS[0]): 2e-3}, file="later")
    one, other = new("a", *publish(first)), new("b", *publish(second), at=5)
    forth, back = new("c"), new("d")
    merge(forth, [one, other])
    merge(back, [other, one])
    both = {("gemm.parquet", "0.12.0", 1e-3), ("later", "0.12.0", 2e-3)}
    assert latencies(forth) == latencies(back) == both


def test_a_later_import_of_the_same_file_is_remembered(new: Callable[..., Path]) -> None:
    table = published({(LINEAR, TOKENS[0]): 1e-3})
    into, source = new("a", *publish(table)), new("b", *publish(table), at=5)
    assert only(merge(into, [source])).changes == {"dates of an import": 1}
    assert only(merge(source, [into])).changes == {}
    assert tables(into) == tables(source)


def test_regressors_of_families_rest_on_all_latencies_of_their_environment(new: Callable[..., Path]) -> None:
    first, second = published({(LINEAR, TOKENS[0]): 1e-3}), published({(LINEAR, TOKENS[1]): 2e-3}, file="more")

    def families(path: Path) -> list[tuple[str]]:
        return rows(path, "SELECT document FROM family_regressor")

    into = new("a", *publish(first), fit_family())
    same = new("b", *publish(first), fit_family(2), at=5)
    assert only(merge(into, [same])).to_fit == ()
    assert families(into) == [('{"slope": 2}',)]
    merged = only(merge(into, [new("c", *publish(second), fit_family(3), at=9)]))
    assert merged.to_fit == ("linear, bf16",)
    assert families(into) == []
    all_of_it = new("d", *publish(first, second), fit_family(4))
    merge(into, [all_of_it])
    assert families(into) == [('{"slope": 4}',)]
    elsewhere = new("e", record(), fit_family(5))
    assert only(merge(into, [elsewhere])).to_fit == ()
    assert families(into) == [('{"slope": 4}',)]


# Files


def test_sources_are_only_read_even_where_a_killed_run_has_left_its_log(
    new: Callable[..., Path], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    live = new("live", record())
    with LatencyDB.open(live) as db:
        record(point=TOKENS[1])(db)
        shutil.copytree(live.parent, killed, ignore=shutil.ignore_patterns("*-shm"))
    assert (killed / "live.db-wal").stat().st_size > 0
    before = contents(killed)
    into = new("a")
    merge(into, [killed / "live.db"])
    assert contents(killed) == before
    assert outcomes_of([into]) == outcomes_of([live])


def test_a_source_that_another_process_has_open_is_read(new: Callable[..., Path]) -> None:
    into, source = new("a"), new("b", record())
    with LatencyDB.open(source) as db:
        record(point=TOKENS[1])(db)
        merge(into, [source])
    assert len(outcomes_of([into])) == 2


def test_a_source_that_keeps_changing_is_refused(new: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    into, source = new("a"), new("b", record())
    copyfile = shutil.copyfile
    copied: list[str] = []

    def copy(path: str, to: str) -> None:
        copied.append(path)
        copyfile(path, to)
        os.utime(path, ns=(0, len(copied)))

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(DatabaseError, match="b.db changes while it is copied: wait for the process that writes to it"):
        merge(into, [source])
    assert len(copied) == 5
    assert outcomes_of([into]) == set()


def test_a_source_whose_log_goes_away_meanwhile_is_read(
    new: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    into, source = new("a"), new("b", record())
    copyfile = shutil.copyfile
    with LatencyDB.open(source) as db:
        record(point=TOKENS[1])(db)

        def copy(path: str, to: str) -> None:
            db.close()  # the last one: SQLite takes the log away
            copyfile(path, to)

        monkeypatch.setattr(shutil, "copyfile", copy)
        assert Path(f"{source}-wal").exists()
        merge(into, [source])
    assert len(outcomes_of([into])) == 2


def test_a_source_that_cannot_be_written_is_read(ordinary_user: Path) -> None:
    into, source = ordinary_user / "a.db", ordinary_user / "closed" / "b.db"
    LatencyDB.open(into).close()
    with LatencyDB.open(source) as db:
        record()(db)
    source.chmod(0o444)
    source.parent.chmod(0o555)
    try:
        merge(into, [source])
    finally:
        source.parent.chmod(0o755)
    assert outcomes_of([into]) == outcomes_of([source])


@pytest.mark.parametrize("stop", ["m003_regressors", "m006_published", "m007_superseded"])
def test_older_versions_are_merged_and_stay_as_they_are(new: Callable[..., Path], tmp_path: Path, stop: str) -> None:
    into, source = tmp_path / "a.db", tmp_path / "b.db"
    for path, rounds in ((into, 20), (source, 30)):
        with closing(sqlite3.connect(path)) as connection, connection:
            older = Database(connection, execute_plugins=False)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            MIGRATIONS.apply(older, stop_before=stop)
            connection.execute("INSERT INTO environment VALUES ('e', 'here', '', 1, '', '', '', '', '', '', '')")
            connection.execute("INSERT INTO signature VALUES ('s', 'linear', 'linear', 'linear', 'num_tokens', '{}')")
            connection.execute("INSERT INTO sweep_point VALUES ('p', 'T1', 1, NULL)")
            connection.execute(
                "INSERT INTO measurement (environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s, "
                "spent_s, measured_at) VALUES ('e', 's', 'p', ?, 1, 1, 1, 1, 1, '2025')",
                [rounds],
            )
    before = source.read_bytes()
    (conflict,) = only(merge(into, [source])).conflicts
    assert (conflict.environment, conflict.signature, conflict.sweep_point) == ("here", "linear", "T1")
    assert source.read_bytes() == before
    assert [row[3] for row in (*outcomes_of([into]), *outcomes_of([into], "superseded"))] == [30, 20]


def foreign(path: Path) -> None:
    path.write_text("name: llama3\n" * 100)


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE measurement (latency_s REAL)")


def of_the_future(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, 'm999_later', '2099')",
            [MIGRATIONS.name],
        )


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:4296] = b"\xff" * 200
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = [
    (Path.unlink, "there is no latency DB at {}"),
    (foreign, "{} is no latency DB, nor any other SQLite file"),
    (of_another_program, "{} is an SQLite file of another program"),
    (of_the_future, "latency DB {} was written by a newer version of pytest-dooly .it has m999_later"),
    (corrupt, "latency DB {}.* is damaged: restore a copy"),
    (truncated, "latency DB {}.* is damaged: restore a copy"),
    (a_directory, "latency DB {}: Is a directory"),
]


@pytest.mark.parametrize("broken", ["into", "source"])
@pytest.mark.parametrize(("breaking", "message"), BROKEN)
def test_what_is_no_latency_db_is_refused_and_nothing_changes(
    new: Callable[..., Path], tmp_path: Path, breaking: Callable[[Path], object], message: str, broken: str
) -> None:
    paths = {"into": new("a", record()), "good": new("b", record(SAMPLER)), "source": new("c", record(ATTENTION))}
    breaking(paths[broken])
    before = contents(tmp_path)
    with pytest.raises(DatabaseError, match=message.format(paths[broken])) as raised:
        merge(paths["into"], [paths["good"], paths["source"]])
    assert "\n" not in str(raised.value)
    assert tempfile.gettempdir() not in str(raised.value).replace(str(tmp_path), "")
    assert contents(tmp_path) == before


def test_a_file_that_is_named_twice_is_refused(new: Callable[..., Path], tmp_path: Path) -> None:
    into, source = new("a", record()), new("b", record())
    link, hard = tmp_path / "link.db", tmp_path / "hard.db"
    link.symlink_to(into)
    hard.hardlink_to(source)
    before = contents(tmp_path)
    for named in ([into], [link], [source, source], [source, hard], [tmp_path / "none", tmp_path / "b/../none"]):
        with pytest.raises(ConfigurationError, match=f"latency DB {named[-1]} is named twice: name each file once"):
            merge(into, named)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_db_as_it_was(new: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    into = new("a", record())
    source = new("b", *publish(published({(LINEAR, SweepPoint(num_tokens=i)): 1e-3 for i in range(1, 2000)})))
    before = tables(into)
    prepare = db_file._prepare

    def nearly_full(db: Database) -> None:
        prepare(db)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 2}")

    with monkeypatch.context() as patch:
        patch.setattr(db_file, "_prepare", nearly_full)
        with pytest.raises(DatabaseError, match=f"cannot write to latency DB {into}: .* full; free some disk space"):
            merge(into, [source])
    assert tables(into) == before
    merge(into, [source])
    assert len(latencies(into)) == 1


KILLED = """
import os, sys
from pathlib import Path
from pytest_dooly.latency_db import merge
merge._conflict = lambda _: os.kill(os.getpid(), 9)
merge.merge(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
"""


def test_a_kill_loses_at_most_the_source_in_flight(new: Callable[..., Path]) -> None:
    into, done = new("a", record()), new("b", record(SAMPLER))
    in_flight = new("c", record(ATTENTION), record(outcome=slow(30)), at=5)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, *map(str, (into, done, in_flight))]
    expected = outcomes_of([into, done])
    assert subprocess.run(command, env=environment).returncode == -9
    LatencyDB.open(into).close()
    assert outcomes_of([into]) == expected
    assert outcomes_of([into], "superseded") == set()
    merge(into, [in_flight])
    assert outcomes_of([into]) | outcomes_of([into], "superseded") == expected | outcomes_of([in_flight])


# The command


@pytest.fixture
def conflicting(new: Callable[..., Path]) -> tuple[Path, Path]:
    into = new("a", record(), record(SAMPLER, outcome=FAILURE), fit())
    return into, new("b", record(outcome=slow(30)), record(SAMPLER), at=5)


def test_the_command_says_what_was_done_and_that_nothing_is_left_to_do(
    conflicting: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    into, source = conflicting
    assert cli.main(["merge", str(into), str(source)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{source} into {into}: 2 measurements, 1 regressors",
        "  2 cases had another outcome in each; the other one is superseded:",
        f"    linear-64x128-bf16 at T1, {ENVIRONMENT}:",
        f"      2.00 ms (30 rounds) of {source} stays; superseded: 1.00 ms (20 rounds) of {into}",
        f"    sampler-256-fp32 at T1, {ENVIRONMENT}:",
        f"      1.00 ms (20 rounds) of {source} stays; superseded: failure (out of memory) of {into}",
        "  1 to fit again, by the next run: linear-64x128-bf16",
    ]
    assert cli.main(["merge", str(into), str(source)]) == 0
    assert capsys.readouterr().out == f"{source} into {into}: nothing new\n"


def test_the_command_lists_every_conflict_as_json(
    conflicting: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    into, source = conflicting
    assert cli.main(["merge", str(into), str(source), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (merged,) = document["merged"]
    assert (document["into"], merged["source"]) == (str(into), str(source))
    first, second = merged["conflicts"]
    assert first["stays"]["outcome"]["median_s"] == 2e-3
    assert first["superseded"] == {
        "outcome": dataclasses.asdict(measured(1e-3)),
        "measured_at": "2025-01-01T00:00:00",
        "file": str(into),
    }
    assert second["superseded"]["outcome"] == {"reason": "out of memory"}
    assert merged["to_fit"] == ["linear-64x128-bf16"]


def test_the_command_shows_the_first_conflicts_of_many(
    new: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    many = [SweepPoint(num_tokens=i) for i in range(1, 24)]
    into = new("a", *[record(point=point) for point in many])
    source = new("b", *[record(point=point, outcome=slow(30)) for point in many])
    assert cli.main(["merge", str(into), str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("stays; superseded" in line for line in lines) == 20
    assert lines[-1] == "    and 3 more, which --json lists"


def test_the_command_explains_what_it_cannot_merge(
    new: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", str(new("a")), str(tmp_path / "none.db")]) == 1
    assert capsys.readouterr().err == f"dooly: there is no latency DB at {tmp_path}/none.db: name another file\n"
