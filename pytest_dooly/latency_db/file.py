"""The file of a latency DB: what tells it from any other, how it is opened, and what SQLite's errors mean.

A file that is not a latency DB is refused before SQLite opens it, since SQLite itself would leave files beside it.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from sqlite_utils import Database

from pytest_dooly.errors import DatabaseError, refusal_of
from pytest_dooly.latency_db.migrations import APPLICATION_ID, MIGRATIONS

__all__ = ["copy_of", "explained", "open_file", "transaction"]

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_BUSY_TIMEOUT_S = 30.0
_COPY_ATTEMPTS = 5

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process is writing to it: wait for that one or end it",
    sqlite3.SQLITE_CANTOPEN: "name a file in a directory that can be written",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a copy, or name another file",
    sqlite3.SQLITE_FULL: "free some disk space and run again; what was recorded before is kept",
    sqlite3.SQLITE_IOERR: "check the disk and its free space, and run again; what was recorded before is kept",
    sqlite3.SQLITE_NOTADB: "it is damaged: restore a copy, or name another file",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
}


def open_file(path: Path, *, create: bool = True) -> Database:
    """A connection to the latency DB at `path`, brought to this version's schema.

    Args:
        path: of the file.
        create: make the file and its directory where there is none.

    Raises:
        DatabaseError: the file is missing (`create=False`), cannot be read and written, is damaged, is no latency DB,
            or is one of a newer version. The file is left as it is.
    """
    with explained(path, "open"):
        if _is_recorded(path):
            _check_content(path)
        elif create:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            raise DatabaseError(f"there is no latency DB at {path}: record one first, or name another file")
        with ExitStack() as on_error:
            db = _connect(path, "rwc" if create else "rw")
            on_error.callback(db.close)
            _prepare(db)
            on_error.pop_all()
    return db


@contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    """A copy of the latency DB at `path`, brought to this version's schema, for as long as the context lasts.

    The file itself is only read, a write-ahead log beside it too.

    Raises:
        DatabaseError: the file is missing, cannot be read, is damaged, no latency DB or one of a newer version.
    """
    with explained(path, "copy"), tempfile.TemporaryDirectory() as directory:
        if not _is_recorded(path, "rb"):
            raise DatabaseError(f"there is no latency DB at {path}: name another file")
        copy = Path(directory) / "latency.db"
        _copy(path.resolve(), copy)
        try:
            open_file(copy, create=False).close()
        except DatabaseError as error:
            raise DatabaseError(str(error).replace(str(copy), str(path))) from error
        yield copy


@contextmanager
def transaction(db: Database, mode: str = "IMMEDIATE") -> Iterator[None]:
    """One transaction; IMMEDIATE waits for other writers at its start, where waiting is still possible."""
    db.execute(f"BEGIN {mode}")
    try:
        yield
        db.commit()
    finally:
        db.rollback()


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turns errors of SQLite and of the file system into a DatabaseError with a remedy."""
    try:
        yield
    except OSError as error:
        raise DatabaseError(
            f"cannot {doing} latency DB {path}: {refusal_of(error)}; name a file that can be read and written"
        ) from error
    except sqlite3.Error as error:
        remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "if this stays, name another file")
        raise DatabaseError(f"cannot {doing} latency DB {path}: {error}; {remedy}") from error


def _is_recorded(path: Path, mode: Literal["rb", "r+b"] = "r+b") -> bool:
    """Whether there is a latency DB at `path`, by the first bytes alone; False for nothing or an empty file.

    Args:
        path: of the file.
        mode: it must be possible to open the file in.

    Raises:
        DatabaseError: there is something else.
    """
    try:
        with path.open(mode) as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return False
    if header and not header.startswith(_MAGIC):
        raise DatabaseError(f"{path} is no latency DB, nor any other SQLite file: name another file")
    if 0 < len(header) < _HEADER_BYTES:
        raise DatabaseError(f"{path} is damaged, only {len(header)} bytes are left of it: name another file")
    if header and int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise DatabaseError(f"{path} is an SQLite file of another program, no latency DB: name another file")
    return bool(header)


def _check_content(path: Path) -> None:
    """Checks the schema's version and every page, without a change to the file.

    Raises:
        DatabaseError: a page is damaged, or the schema is of a newer version.
    """
    # A write-ahead log that a killed process left is merged into the file by whoever may write: look only. Where there
    # is none, only a connection that may write tidies up behind itself.
    file = path.resolve()
    left_behind = file.with_name(f"{file.name}-wal").exists()
    known = {migration.name for migration in MIGRATIONS.pending(Database(memory=True))}
    with closing(_connect(path, "ro" if left_behind else "rw")) as db:
        newer = sorted({migration.name for migration in MIGRATIONS.applied(db)} - known)
        if newer:
            raise DatabaseError(
                f"latency DB {path} was written by a newer version of pytest-dooly (it has {', '.join(newer)}): "
                "upgrade pytest-dooly, or name another file"
            )
        # SQLite heads its findings with a line of its own.
        damage = db.execute("PRAGMA quick_check(1)").fetchone()[0].splitlines()[-1]
        # SQLite reads the missing end of the last page as zeros.
        if damage == "ok" and not left_behind and file.stat().st_size % db.execute("PRAGMA page_size").fetchone()[0]:
            damage = "its end is missing"
    if damage != "ok":
        raise DatabaseError(f"latency DB {path} is damaged ({damage}): restore a copy, or name another file")


def _copy(path: Path, copy: Path) -> None:
    """Copies a latency DB with what SQLite keeps beside it, as it is at one moment.

    Raises:
        DatabaseError: another process keeps writing to it.
    """
    for _ in range(_COPY_ATTEMPTS):
        before = _state(path)
        with suppress(FileNotFoundError):  # the last one that closes the file takes its log away
            for suffix in before:
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
            if _state(path) == before:
                return
        for suffix in before:
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
    raise DatabaseError(f"latency DB {path} changes while it is copied: wait for the process that writes to it")


def _state(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of the file and of the logs beside it, by suffix."""
    files = {suffix: Path(f"{path}{suffix}") for suffix in ("", "-wal", "-journal")}
    return {s: (file.stat().st_size, file.stat().st_mtime_ns) for s, file in files.items() if file.exists()}


def _connect(path: Path, mode: str) -> Database:
    """A connection; `mode` is SQLite's: `ro`, `rw`, or `rwc` to create the file."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return Database(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S), execute_plugins=False)


def _prepare(db: Database) -> None:
    """Brings the schema up to date and sets what SQLite forgets between connections."""
    if MIGRATIONS.pending(db):
        with transaction(db):
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            MIGRATIONS.apply(db)
    # Only now: write-ahead mode makes a file of its own accord, which a kill would leave without our mark.
    db.enable_wal()
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
