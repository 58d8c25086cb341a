"""Parameters of regressors, as JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from pytest_dooly.core.document import parsed
from pytest_dooly.core.environment import Environment
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.tables import Tables

__all__ = ["RegressorTables"]


class RegressorTables(Tables):
    """Regressors of signatures, and of families of them."""

    def save_regressor(
        self, signature_key: str, environment: Environment, document: dict[str, Any], *, error: float | None
    ) -> None:
        """Keeps the regressor of a recorded signature, in place of an earlier one.

        Args:
            signature_key: of a signature that was recorded before.
            environment: whose latencies it was fitted to.
            document: its parameters, as JSON.
            error: held-out relative error of its predictions, 0.1 for 10 %; None where it is unknown.
        """
        text = json.dumps(document, allow_nan=False)
        with self._writing():
            self._keep_environment(environment)
            self._db.execute(
                """
                INSERT INTO regressor VALUES (?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET
                    error = excluded.error, document = excluded.document, fitted_at = excluded.fitted_at
                """,
                [environment.key, signature_key, error, text, self._now()],
            )

    def load_regressors(self, environment: Environment) -> dict[str, dict[str, Any]]:
        """Parameters of the regressors that were fitted in the environment, by signature key.

        One that is damaged is left out: what asks for it says that it is missing, and the next run fits it again.
        """
        rows = self._rows("SELECT signature, document FROM regressor WHERE environment = ?", [environment.key])
        documents = {}
        for row in rows:
            with suppress(DocumentError):
                documents[row["signature"]] = parsed(row["document"], "regressor")
        return documents

    def save_family_regressor(
        self,
        family_key: str,
        environment: Environment,
        document: dict[str, Any],
        *,
        name: str,
        error: float | None,
        fitted_to: str,
    ) -> None:
        """Keeps the regressor of a family of signatures, in place of an earlier one.

        Args:
            family_key: of the family.
            environment: whose latencies it was fitted to.
            document: its parameters, as JSON.
            name: of the family, for people.
            error: held-out relative error of its predictions, 0.1 for 10 %; None where it is unknown.
            fitted_to: identifies the latencies that it was fitted to.
        """
        text = json.dumps(document, allow_nan=False)
        with self._writing():
            self._keep_environment(environment)
            self._db.execute(
                "INSERT OR REPLACE INTO family_regressor VALUES (?, ?, ?, ?, ?, ?, ?)",
                [environment.key, family_key, name, error, fitted_to, text, self._now()],
            )

    def load_family_regressor(self, family_key: str, environment: Environment, fitted_to: str) -> dict[str, Any] | None:
        """Parameters of a family's regressor, or None where there is none that was fitted to these latencies.

        Raises:
            DocumentError: it is damaged; fit it again.
        """
        rows = self._rows(
            "SELECT document FROM family_regressor WHERE family = ? AND environment = ? AND fitted_to = ?",
            [family_key, environment.key, fitted_to],
        )
        return parsed(rows[0]["document"], "regressor of a family") if rows else None
