"""What candidates of searches have come to, as JSON: a search that is killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pytest_dooly.core.document import parsed
from pytest_dooly.core.environment import content_hash
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.tables import Tables

__all__ = ["SearchTables"]


class SearchTables(Tables):
    """Outcomes by a content hash of all that they depend on."""

    def save_search_outcome(self, key: str, name: str, document: dict[str, Any]) -> None:
        """Keeps what a candidate has come to, in place of an earlier outcome of the same."""
        with self._writing():
            self._db.execute(
                """
                INSERT INTO search_outcome VALUES (?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
                """,
                [key, name, json.dumps(document, allow_nan=False), self._now()],
            )

    def load_search_outcomes(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What is known of the candidates with these keys, by key; what is damaged is left out, to be found again."""
        rows = self._rows(
            "SELECT key, document FROM search_outcome WHERE key IN (SELECT value FROM json_each(?))",
            [json.dumps(list(keys))],
        )
        documents = {}
        for row in rows:
            with suppress(DocumentError):
                documents[row["key"]] = parsed(row["document"], "search outcome")
        return documents

    def latencies_of(self, device: str) -> str:
        """A content hash of all latencies of a device: of which files, and how many of our own.

        Args:
            device: as its driver names it.
        """
        published = self._rows(
            """
            SELECT environment.key, published_measurement.source, count(*) AS rows
            FROM environment JOIN published_measurement ON published_measurement.environment = environment.key
            WHERE environment.device = ? GROUP BY 1, 2 ORDER BY 1, 2
            """,
            [device],
        )
        own = self._rows(
            """
            SELECT environment.key, count(*) AS rows, sum(mean_s) AS total_s
            FROM environment JOIN measurement ON measurement.environment = environment.key
            WHERE environment.device = ? GROUP BY 1 ORDER BY 1
            """,
            [device],
        )
        return content_hash([[list(row.values()) for row in rows] for rows in (published, own)])
