"""The latency DB: what was measured, in one SQLite file; the sum of its tables.

Every write is one committed transaction, so a run that is killed loses the case in flight at most.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_dooly.latency_db.file import explained, open_file, transaction
from pytest_dooly.latency_db.findings import FindingTables
from pytest_dooly.latency_db.frames import Frames
from pytest_dooly.latency_db.gate_runs import GateTables
from pytest_dooly.latency_db.measurements import MeasurementTables
from pytest_dooly.latency_db.models import ModelTables
from pytest_dooly.latency_db.published import PublishedTables
from pytest_dooly.latency_db.regressors import RegressorTables
from pytest_dooly.latency_db.searches import SearchTables

__all__ = ["LatencyDB"]


class LatencyDB(
    MeasurementTables,
    PublishedTables,
    ModelTables,
    RegressorTables,
    FindingTables,
    SearchTables,
    GateTables,
    Frames,
):
    """Latencies by signature, environment and sweep point, with the models and regressors that belong to them.

    A context manager that closes itself. Every method raises DatabaseError when the file is damaged, locked by another
    process or cannot be written; what was recorded before is kept.
    """

    @classmethod
    def open(cls, path: Path, *, create: bool = True) -> LatencyDB:
        """The latency DB at `path`, brought to this version's schema.

        Args:
            path: of the file.
            create: make the file and its directory where there is none.

        Raises:
            DatabaseError: the file is missing (`create=False`), cannot be read and written, is damaged, is no latency
                DB, or is one of a newer version. The file is left as it is.
        """
        return cls(path, open_file(path, create=create))

    def close(self) -> None:
        """Closes the file; a closed latency DB cannot be used again."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def merging(self, other: Path) -> Iterator[sqlite3.Connection]:
        """One transaction, kept whole or not at all, that sees the latency DB at `other` as schema `other`.

        Args:
            other: a file of this version's schema.
        """
        with explained(self._path, "write to"):
            self._db.execute("ATTACH DATABASE ? AS other", [str(other)])
            with transaction(self._db):
                yield self._db.conn
            self._db.execute("DETACH DATABASE other")
