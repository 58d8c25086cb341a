"""What was found out about models, as JSON: options, validations, operations alone, coverage, runs."""

from __future__ import annotations

import json
from typing import Any

from pytest_dooly.core.document import parsed
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.latency_db.tables import Tables

__all__ = ["OPTIONS", "FindingTables"]

OPTIONS = "options"
"""Kind of the finding that holds what a model is served with: its key only hashes them."""


class FindingTables(Tables):
    """Findings of a kind about a model in an environment."""

    def save_finding(self, kind: str, model_key: str, environment: Environment, document: dict[str, Any]) -> None:
        """Keeps what was found out about a saved model, as JSON, in place of an earlier finding of the kind."""
        with self._writing():
            self._db.execute(
                """
                INSERT INTO finding VALUES (?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
                """,
                [content_hash([environment.key, model_key]), kind, json.dumps(document, allow_nan=False), self._now()],
            )

    def load_finding(self, kind: str, model_key: str, environment: Environment) -> dict[str, Any] | None:
        """The latest finding of a kind about a model, or None.

        Raises:
            DocumentError: it is damaged; find out again.
        """
        key = content_hash([environment.key, model_key])
        rows = self._rows("SELECT document FROM finding WHERE model_configuration = ? AND kind = ?", [key, kind])
        return parsed(rows[0]["document"], kind) if rows else None
