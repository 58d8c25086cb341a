"""Versions of the latency DB's schema, in order; a published one is never edited.

Keys are content hashes: equal things have equal keys in every latency DB. A `name` is for people, never looked up.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

__all__ = ["APPLICATION_ID", "MIGRATIONS"]

APPLICATION_ID = int.from_bytes(b"DOOL", "big")
"""Marks an SQLite file as a latency DB, in its header."""

MIGRATIONS = Migrations("pytest-dooly")


@MIGRATIONS()
def m001_latencies(db: Database) -> None:
    """Environments, signatures, sweep points and their measurements."""
    db.executescript(
        """
        CREATE TABLE environment (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            device TEXT NOT NULL,
            device_count INTEGER NOT NULL,
            driver TEXT NOT NULL,
            engine TEXT NOT NULL,
            engine_version TEXT NOT NULL,
            torch_version TEXT NOT NULL,
            clock TEXT NOT NULL,
            cache_mode TEXT NOT NULL,
            execution TEXT NOT NULL
        );
        CREATE TABLE signature (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            kind TEXT NOT NULL,
            kernel TEXT NOT NULL,
            swept TEXT NOT NULL,
            document TEXT NOT NULL
        );
        CREATE TABLE sweep_point (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            num_tokens INTEGER,
            num_reqs INTEGER
        );
        CREATE TABLE measurement (
            environment TEXT NOT NULL REFERENCES environment (key),
            signature TEXT NOT NULL REFERENCES signature (key),
            sweep_point TEXT NOT NULL REFERENCES sweep_point (key),
            rounds INTEGER,
            min_s REAL,
            median_s REAL,
            mean_s REAL,
            iqr_s REAL,
            reason TEXT,
            spent_s REAL NOT NULL,
            measured_at TEXT NOT NULL,
            PRIMARY KEY (environment, signature, sweep_point),
            CONSTRAINT latencies_or_reason CHECK (
                CASE WHEN reason IS NULL
                THEN rounds + min_s + median_s + mean_s + iqr_s IS NOT NULL
                ELSE coalesce(rounds, min_s, median_s, mean_s, iqr_s) IS NULL
                END
            )
        ) WITHOUT ROWID;
        CREATE VIEW latency AS
            SELECT
                signature.kind, signature.name AS signature, sweep_point.name AS sweep_point,
                sweep_point.num_tokens, sweep_point.num_reqs,
                measurement.median_s, measurement.min_s, measurement.mean_s, measurement.iqr_s, measurement.rounds,
                measurement.reason, environment.name AS environment, measurement.measured_at
            FROM measurement
            JOIN environment ON environment.key = measurement.environment
            JOIN signature ON signature.key = measurement.signature
            JOIN sweep_point ON sweep_point.key = measurement.sweep_point;
        """
    )


@MIGRATIONS()
def m002_models(db: Database) -> None:
    """Models as they are served, with the origins of their dimensions for people."""
    db.executescript(
        """
        CREATE TABLE model_configuration (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            model TEXT NOT NULL,
            environment TEXT NOT NULL REFERENCES environment (key),
            architecture TEXT NOT NULL,
            max_num_tokens INTEGER NOT NULL,
            max_num_seqs INTEGER NOT NULL,
            max_model_len INTEGER NOT NULL,
            saved_at TEXT NOT NULL
        );
        CREATE TABLE model_operation (
            model_configuration TEXT NOT NULL REFERENCES model_configuration (key) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            signature TEXT NOT NULL REFERENCES signature (key),
            multiplicity INTEGER NOT NULL,
            layers TEXT NOT NULL,
            origins TEXT NOT NULL,
            PRIMARY KEY (model_configuration, position)
        ) WITHOUT ROWID;
        """
    )


@MIGRATIONS()
def m003_regressors(db: Database) -> None:
    """Fitted regressors, their parameters as JSON."""
    db.executescript(
        """
        CREATE TABLE regressor (
            environment TEXT NOT NULL REFERENCES environment (key),
            signature TEXT NOT NULL REFERENCES signature (key),
            error REAL,
            document TEXT NOT NULL,
            fitted_at TEXT NOT NULL,
            PRIMARY KEY (environment, signature)
        ) WITHOUT ROWID;
        """
    )


@MIGRATIONS()
def m004_findings(db: Database) -> None:
    """What was found out about a model besides its latencies, as JSON: its validation, the coverage of its trace."""
    db.executescript(
        """
        CREATE TABLE finding (
            model_configuration TEXT NOT NULL REFERENCES model_configuration (key) ON DELETE CASCADE,
            kind TEXT NOT NULL,
            document TEXT NOT NULL,
            found_at TEXT NOT NULL,
            PRIMARY KEY (model_configuration, kind)
        ) WITHOUT ROWID;
        """
    )


@MIGRATIONS()
def m005_noise_held_out_and_settled_sweeps(db: Database) -> None:
    """The machine's noise beside a latency; points that no regressor may see; sweeps that need no more points."""
    db.executescript(
        """
        ALTER TABLE measurement ADD COLUMN noise REAL;
        ALTER TABLE measurement ADD COLUMN held_out INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE settled_sweep (
            environment TEXT NOT NULL REFERENCES environment (key),
            signature TEXT NOT NULL REFERENCES signature (key),
            target REAL NOT NULL,
            error REAL,
            grid TEXT NOT NULL,
            settled_at TEXT NOT NULL,
            PRIMARY KEY (environment, signature)
        ) WITHOUT ROWID;
        DROP VIEW latency;
        CREATE VIEW latency AS
            SELECT
                signature.kind, signature.name AS signature, sweep_point.name AS sweep_point,
                sweep_point.num_tokens, sweep_point.num_reqs,
                measurement.median_s, measurement.min_s, measurement.mean_s, measurement.iqr_s, measurement.rounds,
                measurement.noise, measurement.held_out, measurement.reason, environment.name AS environment,
                measurement.measured_at
            FROM measurement
            JOIN environment ON environment.key = measurement.environment
            JOIN signature ON signature.key = measurement.signature
            JOIN sweep_point ON sweep_point.key = measurement.sweep_point;
        """
    )


@MIGRATIONS()
def m006_published(db: Database) -> None:
    """Latencies that others have published, each with its source; regressors across the sizes of a family."""
    db.executescript(
        """
        CREATE TABLE source (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            package TEXT NOT NULL,
            version TEXT NOT NULL,
            licence TEXT NOT NULL,
            file TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            mapping INTEGER NOT NULL,
            imported_at TEXT NOT NULL
        );
        CREATE TABLE published_measurement (
            environment TEXT NOT NULL REFERENCES environment (key),
            signature TEXT NOT NULL REFERENCES signature (key),
            sweep_point TEXT NOT NULL REFERENCES sweep_point (key),
            source TEXT NOT NULL REFERENCES source (key) ON DELETE CASCADE,
            kernel TEXT NOT NULL,
            variant TEXT NOT NULL,
            latency_s REAL NOT NULL,
            PRIMARY KEY (environment, signature, sweep_point, source, kernel, variant)
        ) WITHOUT ROWID;
        CREATE INDEX published_by_source ON published_measurement (source);
        CREATE TABLE unmapped (
            source TEXT NOT NULL REFERENCES source (key) ON DELETE CASCADE,
            reason TEXT NOT NULL,
            num_rows INTEGER NOT NULL,
            PRIMARY KEY (source, reason)
        ) WITHOUT ROWID;
        CREATE TABLE family_regressor (
            environment TEXT NOT NULL REFERENCES environment (key),
            family TEXT NOT NULL,
            name TEXT NOT NULL,
            error REAL,
            fitted_to TEXT NOT NULL,
            document TEXT NOT NULL,
            fitted_at TEXT NOT NULL,
            PRIMARY KEY (environment, family)
        ) WITHOUT ROWID;
        DROP VIEW latency;
        CREATE VIEW latency AS
            SELECT
                signature.kind, signature.name AS signature, sweep_point.name AS sweep_point,
                sweep_point.num_tokens, sweep_point.num_reqs,
                measurement.median_s, measurement.min_s, measurement.mean_s, measurement.iqr_s, measurement.rounds,
                measurement.noise, measurement.held_out, measurement.reason, environment.name AS environment,
                measurement.measured_at, NULL AS source
            FROM measurement
            JOIN environment ON environment.key = measurement.environment
            JOIN signature ON signature.key = measurement.signature
            JOIN sweep_point ON sweep_point.key = measurement.sweep_point
            UNION ALL
            SELECT
                signature.kind, signature.name, sweep_point.name, sweep_point.num_tokens, sweep_point.num_reqs,
                NULL, NULL, published_measurement.latency_s, NULL, NULL, NULL, 0, NULL, environment.name,
                NULL, source.name
            FROM published_measurement
            JOIN environment ON environment.key = published_measurement.environment
            JOIN signature ON signature.key = published_measurement.signature
            JOIN sweep_point ON sweep_point.key = published_measurement.sweep_point
            JOIN source ON source.key = published_measurement.source;
        """
    )


@MIGRATIONS()
def m007_superseded(db: Database) -> None:
    """Outcomes that gave way to another of the same case when latency DBs were merged, each with the DB it was in.

    `key` hashes the columns from environment to held_out, which are a measurement's, in their order.
    """
    db.executescript(
        """
        CREATE TABLE superseded (
            key TEXT PRIMARY KEY NOT NULL,
            environment TEXT NOT NULL REFERENCES environment (key),
            signature TEXT NOT NULL REFERENCES signature (key),
            sweep_point TEXT NOT NULL REFERENCES sweep_point (key),
            rounds INTEGER,
            min_s REAL,
            median_s REAL,
            mean_s REAL,
            iqr_s REAL,
            reason TEXT,
            spent_s REAL NOT NULL,
            measured_at TEXT NOT NULL,
            noise REAL,
            held_out INTEGER NOT NULL,
            file TEXT NOT NULL,
            superseded_at TEXT NOT NULL
        );
        """
    )


@MIGRATIONS()
def m008_search_outcomes(db: Database) -> None:
    """What candidates of searches have come to, as JSON, each by all that it depends on."""
    db.executescript(
        """
        CREATE TABLE search_outcome (
            key TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL,
            document TEXT NOT NULL,
            found_at TEXT NOT NULL
        ) WITHOUT ROWID;
        """
    )


@MIGRATIONS()
def m009_gate_runs(db: Database) -> None:
    """Runs of the gate on drift, each with all of its turns as JSON; a baseline says so, and why it took over."""
    db.executescript(
        """
        CREATE TABLE gate_run (
            key TEXT PRIMARY KEY NOT NULL,
            series TEXT NOT NULL,
            model TEXT NOT NULL,
            environment TEXT NOT NULL REFERENCES environment (key),
            commit_id TEXT NOT NULL,
            started_at TEXT NOT NULL,
            finished_at TEXT,
            outcome TEXT,
            is_baseline INTEGER NOT NULL DEFAULT 0,
            accepted TEXT,
            document TEXT
        ) WITHOUT ROWID;
        CREATE TABLE gate_turn (
            run TEXT NOT NULL REFERENCES gate_run (key) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (run, position)
        ) WITHOUT ROWID;
        """
    )
