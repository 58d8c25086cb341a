"""Latency DBs of several machines made one: equal things have equal keys, so that nothing is in it twice.

Of two outcomes of one case a Measurement stays before a Failure, then the one of more rounds, then the later one; the
other is kept as superseded. Of two versions of a published file the one imported later stays, as when it is imported
again; of two models, findings or regressors under one key the later one. A regressor and a settled sweep stay where
the measurements that they rest on are those there are now, and go where they are not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_dooly.core.environment import content_hash
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.file import copy_of
from pytest_dooly.latency_db.merge_statements import CONFLICTS, STATEMENTS, TO_FIT

__all__ = ["Conflict", "Merged", "Outcome", "merge"]


@dataclass(frozen=True)
class Outcome:
    """What timing a case has come to, and when and where that was recorded.

    Attributes:
        outcome: latencies, or why there are none.
        measured_at: UTC.
        file: latency DB that it was in.
    """

    outcome: Measurement | Failure
    measured_at: str
    file: str


@dataclass(frozen=True)
class Conflict:
    """A case with another outcome in each of two latency DBs.

    Attributes:
        environment: name of the environment.
        signature: label of the operation.
        sweep_point: as text.
        stays: the outcome that counts from now on.
        superseded: the other one, which is kept aside.
    """

    environment: str
    signature: str
    sweep_point: str
    stays: Outcome
    superseded: Outcome


@dataclass(frozen=True)
class Merged:
    """What one latency DB has brought into another.

    Attributes:
        source: the file that was read.
        changes: number of rows that were added or changed, by what they are; only what is not zero.
        conflicts: those that were not known before.
        to_fit: labels of operations, and names of families, whose regressor or settled sweep went since it does not
            rest on all measurements that there are now.
    """

    source: Path
    changes: Mapping[str, int]
    conflicts: tuple[Conflict, ...]
    to_fit: tuple[str, ...]


def merge(into: Path, sources: Sequence[Path]) -> tuple[Merged, ...]:
    """Brings everything of the sources into one latency DB, one transaction a source; doing so again changes nothing.

    The sources are only read; they may be of older versions.

    Args:
        into: the latency DB to add to.
        sources: those to add, in turn.

    Returns:
        what was done, by source.

    Raises:
        ConfigurationError: a file is named twice.
        DatabaseError: one of the files is missing, damaged, no latency DB or of a newer version, and nothing has
            changed; or `into` cannot be written, and a source counts as a whole or not at all.
    """
    _check_distinct([into, *sources])
    with ExitStack() as copies:
        others = [(source, copies.enter_context(copy_of(source))) for source in sources]
        with LatencyDB.open(into, create=False) as db:
            return tuple(_merge(db, into, source, copy) for source, copy in others)


def _check_distinct(paths: Sequence[Path]) -> None:
    seen: set[object] = set()
    for path in paths:
        # Two links to one file are one file, a missing file is its name.
        identity = (path.stat().st_dev, path.stat().st_ino) if path.exists() else path.resolve()
        if identity in seen:
            raise ConfigurationError(f"latency DB {path} is named twice: name each file once")
        seen.add(identity)


def _merge(db: LatencyDB, into: Path, source: Path, copy: Path) -> Merged:
    with db.merging(copy) as connection:
        connection.create_function("content_hash", -1, lambda *row: content_hash(row), deterministic=True)
        names = {"into": str(into), "source": str(source), "now": datetime.now(UTC).isoformat(timespec="microseconds")}
        changes: dict[str, int] = {}
        for counts, sql in STATEMENTS:
            rows = connection.execute(sql, names).rowcount
            if counts is not None and rows:
                changes[counts] = changes.get(counts, 0) + rows
        conflicts = tuple(map(_conflict, _rows(connection, CONFLICTS, names)))
        to_fit = tuple(row["name"] for row in _rows(connection, TO_FIT))
        for row in _rows(connection, "SELECT name FROM temp.sqlite_master WHERE type = 'table'"):
            connection.execute(f"DROP TABLE temp.{row['name']}")
    return Merged(source, changes, conflicts, to_fit)


def _rows(
    connection: sqlite3.Connection, statement: str, parameters: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    cursor = connection.execute(statement, parameters or {})
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _conflict(row: Mapping[str, Any]) -> Conflict:
    return Conflict(
        row["environment"],
        row["signature"],
        row["sweep_point"],
        stays=_outcome(row, "stays_"),
        superseded=_outcome(row, ""),
    )


def _outcome(row: Mapping[str, Any], prefix: str) -> Outcome:
    values = {name: row[prefix + name] for name in ("rounds", "min_s", "median_s", "mean_s", "iqr_s", "noise")}
    reason = row[f"{prefix}reason"]
    outcome = Measurement(**values) if reason is None else Failure(reason)
    return Outcome(outcome, row[f"{prefix}measured_at"], row[f"{prefix}file"])
