"""Files that are opened, refused, locked, full and copied."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db import file as db_file
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.migrations import APPLICATION_ID, MIGRATIONS
from tests.latency_db.samples import ATTENTION, CPU, GPU, MEASUREMENT, POINT, contents, linear, row, sqlite, table


def refusal(path: Path, *, create: bool = True) -> str:
    """Message of the one error; nothing in the directory may change."""
    before = contents(path.parent)
    with pytest.raises(DatabaseError) as raised:
        LatencyDB.open(path, create=create)
    assert contents(path.parent) == before
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Opening


def test_a_db_and_its_directory_are_created_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1?" / "deeper" / "latencies.sqlite"
    LatencyDB.open(path).close()
    with sqlite(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_opening_changes_nothing_and_leaves_nothing_beside(recorded: Path) -> None:
    before = contents(recorded.parent)
    LatencyDB.open(recorded).close()
    assert contents(recorded.parent) == before
    assert list(before) == [str(recorded)]


def test_an_empty_file_becomes_a_db(path: Path) -> None:
    path.touch()
    assert "there is no latency DB" in refusal(path, create=False)
    with LatencyDB.open(path) as db:
        assert db.environments() == []


def test_a_missing_file_is_missed(path: Path) -> None:
    assert "there is no latency DB" in refusal(path, create=False)


def test_a_missing_directory_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no latency DB"):
        LatencyDB.open(tmp_path / "missing" / "latencies.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "Is a directory; name a file that can be read and written" in refusal(tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DatabaseError, match="file is a file, where a folder is needed; name a file"):
        LatencyDB.open(tmp_path / "file" / "latencies.sqlite")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_link_is_followed(recorded: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(recorded)
    with LatencyDB.open(link) as db, LatencyDB.open(link) as other:
        assert other.outcomes(CPU) == db.outcomes(CPU) != {}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"\n", b"name: llama3\n" * 100, b"SQLite format 2\x00" * 100])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes, create: bool) -> None:
    path.write_bytes(content)
    assert "is no latency DB, nor any other SQLite file: name another file" in refusal(path, create=create)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_an_sqlite_file_of_another_program_is_refused(path: Path, journal_mode: str) -> None:
    with sqlite(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE measurement (latency_s REAL)")
    assert "is an SQLite file of another program, no latency DB: name another file" in refusal(path)


def test_a_db_of_a_newer_version_is_refused(recorded: Path) -> None:
    with sqlite(recorded) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, ?, ?)",
            [MIGRATIONS.name, "m999_from_the_future", "2099"],
        )
    message = refusal(recorded)
    assert "newer version of pytest-dooly (it has m999_from_the_future): upgrade pytest-dooly" in message


def test_a_killed_db_of_a_newer_version_is_refused(recorded: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    with LatencyDB.open(recorded) as db:
        MIGRATIONS._record_applied(db._db, "m999_from_the_future")
        shutil.copytree(recorded.parent, crashed, ignore=shutil.ignore_patterns("*-shm", "crashed"))
    main, log = crashed / recorded.name, crashed / f"{recorded.name}-wal"
    before = main.read_bytes(), log.read_bytes()
    with pytest.raises(DatabaseError, match="m999_from_the_future"):
        LatencyDB.open(main)
    assert (main.read_bytes(), log.read_bytes()) == before


def test_a_db_of_an_older_version_is_brought_up_to_date(path: Path) -> None:
    with sqlite(path) as connection:
        older = Database(connection, execute_plugins=False)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        MIGRATIONS.apply(older, stop_before="m003_regressors")
    with LatencyDB.open(path, create=False) as db:
        assert db.load_regressors(CPU) == {}


def test_a_db_from_before_published_latencies_keeps_its_measurements_and_takes_them(path: Path) -> None:
    with sqlite(path) as connection:
        older = Database(connection, execute_plugins=False)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        MIGRATIONS.apply(older, stop_before="m006_published")
        LatencyDB(path, older).record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
    with LatencyDB.open(path, create=False) as db:
        assert db.outcomes(GPU) == {linear().key: {POINT: MEASUREMENT}}
        assert (db.published(GPU), db.sources(), db.unmapped()) == ({}, {}, {})
        assert db.publish(table(row())) == 1
        assert db._db.execute("SELECT count(*), count(source) FROM latency").fetchone() == (2, 1)


@pytest.mark.parametrize("length", [16, 99, 100, 4096, 5000, -4096, -1])
def test_a_truncated_db_is_refused(recorded: Path, length: int) -> None:
    recorded.write_bytes(recorded.read_bytes()[:length])
    assert "damaged" in refusal(recorded)


def test_a_db_with_a_damaged_page_is_refused(recorded: Path) -> None:
    content = bytearray(recorded.read_bytes())
    for page in range(1, len(content) // 4096):
        damaged = content.copy()
        damaged[page * 4096 : page * 4096 + 200] = b"\xff" * 200
        recorded.write_bytes(damaged)
        assert "damaged" in refusal(recorded)


def test_rows_in_the_wrong_order_are_damage_too(recorded: Path) -> None:
    with sqlite(recorded) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'environment'").fetchone()
    content = bytearray(recorded.read_bytes())
    header = (page - 1) * 4096
    content[header + 7] = 1
    recorded.write_bytes(content)
    assert "is damaged (" in refusal(recorded)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory, while the process has no more rights than an ordinary user has."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(user)


def test_a_file_that_cannot_be_written_is_refused(ordinary_user: Path) -> None:
    path = ordinary_user / "latencies.sqlite"
    LatencyDB.open(path).close()
    path.chmod(0o444)
    assert "Permission denied; name a file that can be read and written" in refusal(path)


@pytest.mark.parametrize("name", ["latencies.sqlite", "deeper/latencies.sqlite"])
def test_a_directory_that_cannot_be_written_is_refused(ordinary_user: Path, name: str) -> None:
    closed = ordinary_user / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(DatabaseError, match="cannot open latency DB .*; name a file") as raised:
        LatencyDB.open(closed / name)
    assert str(closed / name) in str(raised.value)
    assert list(closed.iterdir()) == []


# Writing


def test_a_lock_is_explained(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_file, "_BUSY_TIMEOUT_S", 0.01)
    with LatencyDB.open(recorded) as db, sqlite(recorded) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="database is locked; another process is writing to it: wait") as raised:
            db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
        assert str(recorded) in str(raised.value)
        other.rollback()
        db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
        assert db.outcomes(CPU)[ATTENTION.key] == {POINT: MEASUREMENT}


def test_a_lock_while_opening_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_file, "_BUSY_TIMEOUT_S", 0.01)
    path.touch()
    with sqlite(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseError, match="cannot open latency DB .*: database is locked"):
            LatencyDB.open(path)
        other.rollback()
    LatencyDB.open(path).close()


def record_until_it_fails(db: LatencyDB) -> tuple[int, str]:
    """Number of measurements that were kept, and the message."""
    for num_tokens in range(1, 10_000):
        try:
            db.record(linear(), GPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        except DatabaseError as error:
            return num_tokens - 1, str(error)
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_explained_and_loses_one_case(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        pages = db._db.execute("PRAGMA page_count").fetchone()[0]
        db._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        kept, message = record_until_it_fails(db)
        assert "database or disk is full; free some disk space and run again" in message
        assert len(db.outcomes(GPU)[linear().key]) == kept
        db._db.execute("PRAGMA max_page_count = 1000000")
        db.record(ATTENTION, GPU, POINT, MEASUREMENT, spent_s=1.0)
        assert db.outcomes(GPU)[ATTENTION.key] == {POINT: MEASUREMENT}


def test_a_disk_that_fails_is_explained_and_loses_one_case(recorded: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LatencyDB.open(recorded) as db:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            kept, message = record_until_it_fails(db)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "disk I/O error; check the disk and its free space" in message
    with LatencyDB.open(recorded) as db:
        assert len(db.outcomes(GPU)[linear().key]) == kept


def test_a_db_that_becomes_unreadable_is_explained(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        db._db.execute("DROP TABLE regressor")
        with pytest.raises(DatabaseError, match="cannot read latency DB .*: no such table: regressor"):
            db.load_regressors(CPU)
