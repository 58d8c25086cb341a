"""Latency DBs of several machines made one: equal things have equal keys, so that nothing is in it twice.

SQL is here too: its statements read two latency DBs at once and move whole tables, which no other room does, and they
only make sense together, in their order.

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
        for what, statement in _STATEMENTS:
            rows = connection.execute(statement, names).rowcount
            if what is not None and rows:
                changes[what] = changes.get(what, 0) + rows
        conflicts = tuple(map(_conflict, _rows(connection, _CONFLICTS, names)))
        to_fit = tuple(row["name"] for row in _rows(connection, _TO_FIT))
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


_STATEMENTS: tuple[tuple[str | None, str], ...] = (
    # What is only ever added.
    ("environments", "INSERT INTO main.environment SELECT * FROM other.environment WHERE true ON CONFLICT DO NOTHING"),
    ("signatures", "INSERT INTO main.signature SELECT * FROM other.signature WHERE true ON CONFLICT DO NOTHING"),
    ("sweep points", "INSERT INTO main.sweep_point SELECT * FROM other.sweep_point WHERE true ON CONFLICT DO NOTHING"),
    # Outcomes, columns in the order of the table. A contest is ordered by all of them, so that the same row stays
    # whichever DB is merged into the other.
    (
        None,
        "CREATE TEMP TABLE incoming AS SELECT * FROM other.measurement EXCEPT SELECT * FROM main.measurement",
    ),
    (
        None,
        """
        CREATE TEMP TABLE contest AS
            SELECT *, row_number() OVER (
                PARTITION BY environment, signature, sweep_point
                ORDER BY
                    reason IS NOT NULL, rounds DESC, measured_at DESC,
                    median_s, mean_s, min_s, iqr_s, noise, reason, spent_s, held_out
            ) AS place
            FROM (
                SELECT incoming.*, false AS own FROM incoming
                UNION ALL
                SELECT measurement.*, true FROM main.measurement
                JOIN incoming USING (environment, signature, sweep_point)
            )
        """,
    ),
    (
        "measurements",
        """
        INSERT INTO main.measurement
        SELECT
            environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s,
            reason, spent_s, measured_at, noise, held_out
        FROM contest WHERE place = 1 AND NOT own
        ON CONFLICT DO UPDATE SET
            rounds = excluded.rounds, min_s = excluded.min_s, median_s = excluded.median_s, mean_s = excluded.mean_s,
            iqr_s = excluded.iqr_s, reason = excluded.reason, spent_s = excluded.spent_s,
            measured_at = excluded.measured_at, noise = excluded.noise, held_out = excluded.held_out
        """,
    ),
    # Nothing is both an outcome and superseded: one that was superseded elsewhere may be what stays here.
    (
        None,
        """
        CREATE TEMP TABLE staying AS
            SELECT content_hash(
                environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s,
                reason, spent_s, measured_at, noise, held_out
            ) AS key
            FROM main.measurement
            WHERE (environment, signature, sweep_point) IN (
                SELECT environment, signature, sweep_point FROM main.superseded
                UNION SELECT environment, signature, sweep_point FROM other.superseded
            )
        """,
    ),
    ("superseded", "DELETE FROM main.superseded WHERE key IN (SELECT key FROM staying)"),
    (
        None,
        """
        CREATE TEMP TABLE lost AS
            SELECT
                content_hash(
                    environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s,
                    reason, spent_s, measured_at, noise, held_out
                ) AS key,
                environment, signature, sweep_point, rounds, min_s, median_s, mean_s, iqr_s,
                reason, spent_s, measured_at, noise, held_out,
                CASE own WHEN true THEN :into ELSE :source END AS file, :now AS superseded_at
            FROM contest WHERE place = 2
        """,
    ),
    (None, "DELETE FROM lost WHERE key IN (SELECT key FROM main.superseded)"),
    ("superseded", "INSERT INTO main.superseded SELECT * FROM lost"),
    (
        "superseded",
        """
        INSERT INTO main.superseded SELECT * FROM other.superseded WHERE key NOT IN (SELECT key FROM staying)
        ON CONFLICT DO NOTHING
        """,
    ),
    # Regressors and settled sweeps: ours go where what they rest on has changed; theirs come where nothing differs
    # from what they rest on. No regressor sees failures and what is held out.
    (
        None,
        """
        CREATE TEMP TABLE changed AS
            SELECT DISTINCT environment, signature FROM contest
            WHERE reason IS NULL AND NOT held_out AND (place = 1) != own
        """,
    ),
    (
        None,
        """
        CREATE TEMP TABLE differing AS
            WITH
                ours AS (SELECT * FROM main.measurement WHERE reason IS NULL AND NOT held_out),
                theirs AS (SELECT * FROM other.measurement WHERE reason IS NULL AND NOT held_out)
            SELECT environment, signature FROM (SELECT * FROM ours EXCEPT SELECT * FROM theirs)
            UNION
            SELECT environment, signature FROM (SELECT * FROM theirs EXCEPT SELECT * FROM ours)
        """,
    ),
    (
        None,
        """
        CREATE TEMP TABLE derived AS
            SELECT environment, signature FROM main.regressor UNION SELECT environment, signature FROM other.regressor
            UNION SELECT environment, signature FROM main.settled_sweep
            UNION SELECT environment, signature FROM other.settled_sweep
        """,
    ),
    ("regressors", "DELETE FROM main.regressor WHERE (environment, signature) IN (SELECT * FROM changed)"),
    (
        "regressors",
        """
        INSERT INTO main.regressor
        SELECT * FROM other.regressor WHERE (environment, signature) NOT IN (SELECT * FROM differing)
        ON CONFLICT DO UPDATE SET error = excluded.error, document = excluded.document, fitted_at = excluded.fitted_at
        WHERE excluded.fitted_at > regressor.fitted_at
        """,
    ),
    ("settled sweeps", "DELETE FROM main.settled_sweep WHERE (environment, signature) IN (SELECT * FROM changed)"),
    (
        "settled sweeps",
        """
        INSERT INTO main.settled_sweep
        SELECT * FROM other.settled_sweep WHERE (environment, signature) NOT IN (SELECT * FROM differing)
        ON CONFLICT DO UPDATE SET
            target = excluded.target, error = excluded.error, grid = excluded.grid, settled_at = excluded.settled_at
        WHERE excluded.settled_at > settled_sweep.settled_at
        """,
    ),
    # Published latencies, file by file.
    (
        None,
        """
        CREATE TEMP TABLE version AS
            SELECT
                ours.key AS our_key, theirs.key AS their_key,
                (theirs.imported_at, theirs.key) > (ours.imported_at, ours.key) AS replaces
            FROM main.source AS ours JOIN other.source AS theirs USING (package, file)
            WHERE theirs.key != ours.key
        """,
    ),
    (
        None,
        """
        CREATE TEMP TABLE arriving AS
            SELECT * FROM other.source WHERE key NOT IN (SELECT their_key FROM version WHERE NOT replaces)
        """,
    ),
    (
        None,
        """
        CREATE TEMP TABLE republished AS
            SELECT environment FROM main.published_measurement
            WHERE source IN (SELECT our_key FROM version WHERE replaces)
            UNION
            SELECT environment FROM other.published_measurement
            WHERE source IN (SELECT key FROM arriving EXCEPT SELECT key FROM main.source)
        """,
    ),
    (
        "published files replaced",
        "DELETE FROM main.source WHERE key IN (SELECT our_key FROM version WHERE replaces)",
    ),
    (
        "published files",
        """
        INSERT INTO main.source SELECT * FROM arriving WHERE true ON CONFLICT DO NOTHING
        """,
    ),
    (
        "dates of an import",
        """
        UPDATE main.source SET imported_at = arriving.imported_at FROM arriving
        WHERE arriving.key = source.key AND arriving.imported_at > source.imported_at
        """,
    ),
    (
        "published latencies",
        """
        INSERT INTO main.published_measurement
        SELECT * FROM other.published_measurement WHERE source IN (SELECT key FROM arriving)
        ON CONFLICT DO NOTHING
        """,
    ),
    (
        "counts of what is not mapped",
        """
        INSERT INTO main.unmapped SELECT * FROM other.unmapped WHERE source IN (SELECT key FROM arriving)
        ON CONFLICT DO NOTHING
        """,
    ),
    # Regressors of families see all latencies of an environment.
    (
        None,
        """
        CREATE TEMP TABLE apart AS
            WITH
                asked AS (SELECT environment FROM other.family_regressor),
                ours AS (SELECT * FROM main.published_measurement WHERE environment IN asked),
                theirs AS (SELECT * FROM other.published_measurement WHERE environment IN asked)
            SELECT environment FROM differing
            UNION SELECT environment FROM (SELECT * FROM ours EXCEPT SELECT * FROM theirs)
            UNION SELECT environment FROM (SELECT * FROM theirs EXCEPT SELECT * FROM ours)
        """,
    ),
    (
        None,
        """
        CREATE TEMP TABLE stale_family AS
            SELECT environment, family, name FROM (
                SELECT * FROM main.family_regressor UNION ALL SELECT * FROM other.family_regressor
            )
            WHERE environment IN (SELECT environment FROM changed UNION SELECT environment FROM republished)
            GROUP BY environment, family
        """,
    ),
    (
        "regressors of families",
        """
        DELETE FROM main.family_regressor
        WHERE environment IN (SELECT environment FROM changed UNION SELECT environment FROM republished)
        """,
    ),
    (
        "regressors of families",
        """
        INSERT INTO main.family_regressor
        SELECT * FROM other.family_regressor WHERE environment NOT IN (SELECT environment FROM apart)
        ON CONFLICT DO UPDATE SET
            name = excluded.name, error = excluded.error, fitted_to = excluded.fitted_to,
            document = excluded.document, fitted_at = excluded.fitted_at
        WHERE excluded.fitted_at > family_regressor.fitted_at
        """,
    ),
    # Models with their operations, and what was found out about them.
    (
        None,
        """
        CREATE TEMP TABLE newer AS
            SELECT theirs.key FROM other.model_configuration AS theirs
            LEFT JOIN main.model_configuration AS ours USING (key)
            WHERE ours.key IS NULL OR theirs.saved_at > ours.saved_at
        """,
    ),
    (None, "DELETE FROM main.model_operation WHERE model_configuration IN (SELECT key FROM newer)"),
    # Updated in place: the findings of a row that is replaced would go with it.
    (
        "models",
        """
        INSERT INTO main.model_configuration
        SELECT * FROM other.model_configuration WHERE key IN (SELECT key FROM newer)
        ON CONFLICT DO UPDATE SET
            name = excluded.name, model = excluded.model, environment = excluded.environment,
            architecture = excluded.architecture, max_num_tokens = excluded.max_num_tokens,
            max_num_seqs = excluded.max_num_seqs, max_model_len = excluded.max_model_len, saved_at = excluded.saved_at
        """,
    ),
    (
        None,
        """
        INSERT INTO main.model_operation
        SELECT * FROM other.model_operation WHERE model_configuration IN (SELECT key FROM newer)
        """,
    ),
    (
        "findings",
        """
        INSERT INTO main.finding SELECT * FROM other.finding WHERE true
        ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
        WHERE excluded.found_at > finding.found_at
        """,
    ),
)
"""What is counted, if anything, and the statement, in order."""

_CONFLICTS = """
    SELECT
        environment.name AS environment, signature.name AS signature, sweep_point.name AS sweep_point,
        lost.rounds, lost.min_s, lost.median_s, lost.mean_s, lost.iqr_s, lost.noise, lost.reason, lost.measured_at,
        lost.file, stays.rounds AS stays_rounds, stays.min_s AS stays_min_s, stays.median_s AS stays_median_s,
        stays.mean_s AS stays_mean_s, stays.iqr_s AS stays_iqr_s, stays.noise AS stays_noise,
        stays.reason AS stays_reason, stays.measured_at AS stays_measured_at,
        CASE stays.own WHEN true THEN :into ELSE :source END AS stays_file
    FROM lost
    JOIN contest AS stays USING (environment, signature, sweep_point)
    JOIN main.environment ON environment.key = lost.environment
    JOIN main.signature ON signature.key = lost.signature
    JOIN main.sweep_point ON sweep_point.key = lost.sweep_point
    WHERE stays.place = 1
    ORDER BY environment.name, signature.name, lost.signature, sweep_point.num_tokens, sweep_point.name
"""

_TO_FIT = """
    SELECT name FROM (
        SELECT environment, key, signature.name FROM changed
        JOIN derived USING (environment, signature)
        JOIN main.signature ON signature.key = changed.signature
        WHERE (environment, signature.key) NOT IN (SELECT environment, signature FROM main.regressor)
        UNION
        SELECT environment, family, name FROM stale_family
        WHERE (environment, family) NOT IN (SELECT environment, family FROM main.family_regressor)
    )
    ORDER BY name, environment, key
"""
