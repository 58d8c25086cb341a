"""What all tables of a latency DB have in common: the connection, and the rows that others refer to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.core.signature import Signature
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db.file import explained, transaction

__all__ = ["Row", "Tables"]

Row = Mapping[str, Any]
"""Of a query's answer, by column."""


class Tables:
    """A connection to one file.

    Every write is one committed transaction. Every method raises DatabaseError when the file is damaged, locked by
    another process or cannot be written; what was recorded before is kept.
    """

    def __init__(self, path: Path, db: Database) -> None:
        """Use `LatencyDB.open`."""
        self._path = path
        self._db = db

    @property
    def path(self) -> Path:
        """Of the file, as it was named."""
        return self._path

    def signatures(self) -> dict[str, Signature]:
        """Every signature by its key, in the order of first recording."""
        rows = self._rows("SELECT key, document FROM signature ORDER BY rowid")
        return {row["key"]: self._signature(row["document"]) for row in rows}

    def environments(self) -> list[Environment]:
        """Every environment, in the order of first recording."""
        rows = self._rows("SELECT * FROM environment ORDER BY rowid")
        fields = [field.name for field in dataclasses.fields(Environment)]
        return [Environment(**{field: row[field] for field in fields}) for row in rows]

    @staticmethod
    def _now() -> str:
        """UTC, to the microsecond."""
        return datetime.now(UTC).isoformat(timespec="microseconds")

    def _rows(self, sql: str, parameters: list[Any] | dict[str, Any] | None = None) -> list[dict[str, Any]]:
        with explained(self._path, "read"):
            return list(self._db.query(sql, parameters))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with explained(self._path, "write to"), transaction(self._db):
            yield

    def _keep_environment(self, environment: Environment) -> None:
        self._db.execute(
            """
            INSERT INTO environment VALUES (
                :key, :name, :device, :device_count, :driver, :engine, :engine_version, :torch_version,
                :clock, :cache_mode, :execution
            )
            ON CONFLICT DO NOTHING
            """,
            dataclasses.asdict(environment) | {"key": environment.key, "name": str(environment)},
        )

    def _keep_signature(self, signature: Signature) -> None:
        self._db.execute(
            "INSERT INTO signature VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                signature.key,
                signature.label,
                signature.kind.value,
                signature.name,
                signature.swept,
                json.dumps(signature.to_json()),
            ],
        )

    def _keep_sweep_point(self, point: SweepPoint) -> str:
        key = content_hash(str(point))
        sizes = point.batch or point
        self._db.execute(
            "INSERT INTO sweep_point VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [key, str(point), sizes.num_tokens, sizes.num_reqs],
        )
        return key

    def _signature(self, document: str) -> Signature:
        try:
            return Signature.from_json(json.loads(document))
        except ValueError as error:  # of JSON, or a DocumentError, whose cause says why
            raise DatabaseError(
                f"latency DB {self._path} holds a signature that this version of pytest-dooly cannot read "
                f"({error.__cause__ or error}): "
                f"{document}; upgrade pytest-dooly, or name another file"
            ) from error
