"""Latencies that others have published, each with its source."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.latency_db.tables import Tables

__all__ = ["PublishedTables"]


class PublishedTables(Tables):
    """Published latencies, file by file."""

    def publish(self, table: PublishedTable) -> int:
        """Keeps the latencies of one published file, in place of what was kept of an older version of it.

        Args:
            table: the file.

        Returns:
            number of latencies that are new; 0 where the same file was kept before, which changes nothing.
        """
        source, source_key = table.source, table.source.key
        if self._rows("SELECT key FROM source WHERE key = ?", [source_key]):
            return 0
        with self._writing():
            self._db.execute("DELETE FROM source WHERE package = ? AND file = ?", [source.package, source.file])
            self._db.execute(
                "INSERT INTO source VALUES (:key, :name, :package, :version, :licence, :file, :sha256, :mapping, :now)",
                dataclasses.asdict(source) | {"key": source_key, "name": source.name, "now": self._now()},
            )
            self._db.conn.executemany(
                "INSERT INTO unmapped VALUES (?, ?, ?)",
                [(source_key, reason, num_rows) for reason, num_rows in table.unmapped.items()],
            )
            for environment, rows in table.rows.items():
                self._keep_published(environment, source_key, rows)
        return table.num_rows

    def published(
        self, environment: Environment, signature_keys: Iterable[str] | None = None
    ) -> dict[str, list[PublishedLatency]]:
        """What others have published for the environment, by signature key.

        Args:
            environment: that the latencies are true for.
            signature_keys: of the signatures asked for; all where it is None.
        """
        asked = None if signature_keys is None else json.dumps(list(signature_keys))
        rows = self._rows(
            """
            SELECT
                signature.key, signature.document, sweep_point.name AS point,
                published_measurement.latency_s, published_measurement.kernel, published_measurement.variant
            FROM published_measurement
            JOIN signature ON signature.key = published_measurement.signature
            JOIN sweep_point ON sweep_point.key = published_measurement.sweep_point
            WHERE environment = :environment
                AND (:asked IS NULL OR published_measurement.signature IN (SELECT value FROM json_each(:asked)))
            """,
            {"environment": environment.key, "asked": asked},
        )
        points = {text: SweepPoint.parse(text) for text in {row["point"] for row in rows}}
        signatures = {
            key: self._signature(document) for key, document in {r["key"]: r["document"] for r in rows}.items()
        }
        latencies: dict[str, list[PublishedLatency]] = {}
        for row in rows:
            latencies.setdefault(row["key"], []).append(
                PublishedLatency(
                    signatures[row["key"]], points[row["point"]], row["latency_s"], row["kernel"], row["variant"]
                )
            )
        return latencies

    def published_counts(self, environment: Environment) -> dict[str, int]:
        """Number of latencies that others have published for the environment, by signature key."""
        rows = self._rows(
            "SELECT signature, count(*) AS rows FROM published_measurement WHERE environment = ? GROUP BY signature",
            [environment.key],
        )
        return {row["signature"]: row["rows"] for row in rows}

    def published_mixed(self, environment: Environment) -> frozenset[str]:
        """Keys of the signatures of which others have timed batches of unequal requests in the environment."""
        rows = self._rows(
            """
            SELECT DISTINCT signature FROM published_measurement
            JOIN sweep_point ON sweep_point.key = published_measurement.sweep_point
            WHERE environment = ? AND sweep_point.name LIKE '%,%'
            """,
            [environment.key],
        )
        return frozenset(row["signature"] for row in rows)

    def sources(
        self, environment: Environment | None = None, signature_keys: Iterable[str] | None = None
    ) -> dict[Source, int]:
        """Where published latencies come from, and how many of each there are.

        Args:
            environment: that the latencies are true for; all where it is None.
            signature_keys: of the signatures asked for; all where it is None.
        """
        rows = self._rows(
            """
            SELECT source.*, count(*) AS rows
            FROM published_measurement JOIN source ON source.key = published_measurement.source
            WHERE environment = coalesce(:environment, environment)
                AND (:asked IS NULL OR published_measurement.signature IN (SELECT value FROM json_each(:asked)))
            GROUP BY source.key ORDER BY source.file
            """,
            {
                "environment": None if environment is None else environment.key,
                "asked": None if signature_keys is None else json.dumps(list(signature_keys)),
            },
        )
        fields = [field.name for field in dataclasses.fields(Source)]
        return {Source(**{field: row[field] for field in fields}): row["rows"] for row in rows}

    def unmapped(self) -> dict[str, dict[str, int]]:
        """Published rows that no operation stands for: their number by reason, by file."""
        rows = self._rows("SELECT file, reason, num_rows FROM unmapped JOIN source ON source.key = unmapped.source")
        files: dict[str, dict[str, int]] = {}
        for row in rows:
            files.setdefault(row["file"], {})[row["reason"]] = row["num_rows"]
        return files

    def _keep_published(self, environment: Environment, source_key: str, rows: Sequence[PublishedLatency]) -> None:
        self._keep_environment(environment)
        environment_key = environment.key
        signatures = {signature: signature.key for signature in dict.fromkeys(row.signature for row in rows)}
        for signature in signatures:
            self._keep_signature(signature)
        points = {point: self._keep_sweep_point(point) for point in dict.fromkeys(row.point for row in rows)}
        self._db.conn.executemany(
            "INSERT INTO published_measurement VALUES (?, ?, ?, ?, ?, ?, ?)",
            # In the order of the primary key, so that the tree grows at its end.
            sorted(
                (
                    environment_key,
                    signatures[row.signature],
                    points[row.point],
                    source_key,
                    row.kernel,
                    row.variant,
                    row.latency_s,
                )
                for row in rows
            ),
        )
