"""The statements that bring one latency DB into another, which is attached as `other`; see `merge`.

They read two latency DBs at once and move whole tables, which no other module does, and only make sense together, in
their order.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CONFLICTS", "STATEMENTS", "TO_FIT", "Statement"]


class Statement(NamedTuple):
    """One statement of a merge.

    Attributes:
        counts: what the rows are that it adds or changes; None where they are of its own making.
        sql: with the parameters `into`, `source` and `now`.
    """

    counts: str | None
    sql: str


STATEMENTS: tuple[Statement, ...] = (
    # What is only ever added.
    Statement(
        "environments", "INSERT INTO main.environment SELECT * FROM other.environment WHERE true ON CONFLICT DO NOTHING"
    ),
    Statement(
        "signatures", "INSERT INTO main.signature SELECT * FROM other.signature WHERE true ON CONFLICT DO NOTHING"
    ),
    Statement(
        "sweep points", "INSERT INTO main.sweep_point SELECT * FROM other.sweep_point WHERE true ON CONFLICT DO NOTHING"
    ),
    # Outcomes, columns in the order of the table. A contest is ordered by all of them, so that the same row stays
    # whichever DB is merged into the other.
    Statement(
        None,
        "CREATE TEMP TABLE incoming AS SELECT * FROM other.measurement EXCEPT SELECT * FROM main.measurement",
    ),
    Statement(
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
    Statement(
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
    Statement(
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
    Statement("superseded", "DELETE FROM main.superseded WHERE key IN (SELECT key FROM staying)"),
    Statement(
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
    Statement(None, "DELETE FROM lost WHERE key IN (SELECT key FROM main.superseded)"),
    Statement("superseded", "INSERT INTO main.superseded SELECT * FROM lost"),
    Statement(
        "superseded",
        """
        INSERT INTO main.superseded SELECT * FROM other.superseded WHERE key NOT IN (SELECT key FROM staying)
        ON CONFLICT DO NOTHING
        """,
    ),
    # Regressors and settled sweeps: ours go where what they rest on has changed; theirs come where nothing differs
    # from what they rest on. No regressor sees failures and what is held out.
    Statement(
        None,
        """
        CREATE TEMP TABLE changed AS
            SELECT DISTINCT environment, signature FROM contest
            WHERE reason IS NULL AND NOT held_out AND (place = 1) != own
        """,
    ),
    Statement(
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
    Statement(
        None,
        """
        CREATE TEMP TABLE derived AS
            SELECT environment, signature FROM main.regressor UNION SELECT environment, signature FROM other.regressor
            UNION SELECT environment, signature FROM main.settled_sweep
            UNION SELECT environment, signature FROM other.settled_sweep
        """,
    ),
    Statement("regressors", "DELETE FROM main.regressor WHERE (environment, signature) IN (SELECT * FROM changed)"),
    Statement(
        "regressors",
        """
        INSERT INTO main.regressor
        SELECT * FROM other.regressor WHERE (environment, signature) NOT IN (SELECT * FROM differing)
        ON CONFLICT DO UPDATE SET error = excluded.error, document = excluded.document, fitted_at = excluded.fitted_at
        WHERE excluded.fitted_at > regressor.fitted_at
        """,
    ),
    Statement(
        "settled sweeps", "DELETE FROM main.settled_sweep WHERE (environment, signature) IN (SELECT * FROM changed)"
    ),
    Statement(
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
    Statement(
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
    Statement(
        None,
        """
        CREATE TEMP TABLE arriving AS
            SELECT * FROM other.source WHERE key NOT IN (SELECT their_key FROM version WHERE NOT replaces)
        """,
    ),
    Statement(
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
    Statement(
        "published files replaced",
        "DELETE FROM main.source WHERE key IN (SELECT our_key FROM version WHERE replaces)",
    ),
    Statement(
        "published files",
        """
        INSERT INTO main.source SELECT * FROM arriving WHERE true ON CONFLICT DO NOTHING
        """,
    ),
    Statement(
        "dates of an import",
        """
        UPDATE main.source SET imported_at = arriving.imported_at FROM arriving
        WHERE arriving.key = source.key AND arriving.imported_at > source.imported_at
        """,
    ),
    Statement(
        "published latencies",
        """
        INSERT INTO main.published_measurement
        SELECT * FROM other.published_measurement WHERE source IN (SELECT key FROM arriving)
        ON CONFLICT DO NOTHING
        """,
    ),
    Statement(
        "counts of what is not mapped",
        """
        INSERT INTO main.unmapped SELECT * FROM other.unmapped WHERE source IN (SELECT key FROM arriving)
        ON CONFLICT DO NOTHING
        """,
    ),
    # Regressors of families see all latencies of an environment.
    Statement(
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
    Statement(
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
    Statement(
        "regressors of families",
        """
        DELETE FROM main.family_regressor
        WHERE environment IN (SELECT environment FROM changed UNION SELECT environment FROM republished)
        """,
    ),
    Statement(
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
    Statement(
        None,
        """
        CREATE TEMP TABLE newer AS
            SELECT theirs.key FROM other.model_configuration AS theirs
            LEFT JOIN main.model_configuration AS ours USING (key)
            WHERE ours.key IS NULL OR theirs.saved_at > ours.saved_at
        """,
    ),
    Statement(None, "DELETE FROM main.model_operation WHERE model_configuration IN (SELECT key FROM newer)"),
    # Updated in place: the findings of a row that is replaced would go with it.
    Statement(
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
    Statement(
        None,
        """
        INSERT INTO main.model_operation
        SELECT * FROM other.model_operation WHERE model_configuration IN (SELECT key FROM newer)
        """,
    ),
    Statement(
        "findings",
        """
        INSERT INTO main.finding SELECT * FROM other.finding WHERE true
        ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
        WHERE excluded.found_at > finding.found_at
        """,
    ),
    Statement(
        "search outcomes",
        """
        INSERT INTO main.search_outcome SELECT * FROM other.search_outcome WHERE true
        ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
        WHERE excluded.found_at > search_outcome.found_at
        """,
    ),
    # Runs of the gate: one that was copied while it ran is finished, or has more turns, in the other.
    Statement(
        "runs of the gate",
        """
        INSERT INTO main.gate_run SELECT * FROM other.gate_run WHERE true
        ON CONFLICT DO UPDATE SET
            finished_at = excluded.finished_at, outcome = excluded.outcome, is_baseline = excluded.is_baseline,
            accepted = excluded.accepted, document = excluded.document
        WHERE gate_run.finished_at IS NULL AND excluded.finished_at IS NOT NULL
        """,
    ),
    Statement(
        "turns of the gate",
        "INSERT INTO main.gate_turn SELECT * FROM other.gate_turn WHERE true ON CONFLICT DO NOTHING",
    ),
)
"""In order."""

CONFLICTS = """
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

TO_FIT = """
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
