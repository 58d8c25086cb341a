"""The latency DB: what was measured, in one SQLite file.

Every write is one committed transaction, so a run that is killed loses the case in flight at most. SQL is here, in
`migrations` and in `merge`, and nowhere else; the queries of `browse.toml` are for people.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlite_utils import Database

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db.file import explained, open_file, transaction

__all__ = ["LatencyDB", "LatencyRow"]

T = TypeVar("T")
Row = Mapping[str, Any]

_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """An own or a published latency with all that is known of it, readable without the latency DB.

    Attributes:
        kind: of the operation.
        signature: its label.
        signature_key: content hash of its signature.
        sweep_point: at which it was timed, as text.
        num_tokens: of the sweep point; None where it has none.
        num_reqs: of the sweep point; None where it has none.
        median_s: of all rounds; None for a failure and where the source does not say.
        mean_s: of all rounds, as published too; None for a failure.
        min_s: fastest round; None as for `median_s`.
        iqr_s: distance of the quartiles; None as for `median_s`.
        rounds: their number; None as for `median_s`.
        noise: of the machine beside it, 0.05 for 5 %; None where unknown.
        reason: why there is no latency; None where there is one.
        device: as in Environment.
        device_count: as in Environment.
        driver: as in Environment.
        engine: as in Environment.
        engine_version: as in Environment.
        torch_version: as in Environment.
        clock: as in Environment.
        cache_mode: as in Environment.
        execution: as in Environment.
        measured_at: UTC; None where the source does not say.
        source: where a published latency comes from; None for an own one.
        licence: of the source, as an SPDX identifier.
        kernel: what ran, in the source's words.
        variant: tells published latencies of one operation and point apart.
        held_out: whether no regressor may be fitted to it.
    """

    kind: str
    signature: str
    signature_key: str
    sweep_point: str
    num_tokens: int | None
    num_reqs: int | None
    median_s: float | None
    mean_s: float | None
    min_s: float | None
    iqr_s: float | None
    rounds: int | None
    noise: float | None
    reason: str | None
    device: str
    device_count: int
    driver: str
    engine: str
    engine_version: str
    torch_version: str
    clock: str
    cache_mode: str
    execution: str
    measured_at: str | None
    source: str | None
    licence: str | None
    kernel: str | None
    variant: str | None
    held_out: bool


class LatencyDB:
    """Latencies by signature, environment and sweep point, with the models and regressors that belong to them.

    A context manager that closes itself. Every method raises DatabaseError when the file is damaged, locked by another
    process or cannot be written; what was recorded before is kept.
    """

    def __init__(self, path: Path, db: Database) -> None:
        """Use `LatencyDB.open`."""
        self._path = path
        self._db = db

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

    def record(
        self,
        signature: Signature,
        environment: Environment,
        point: SweepPoint,
        outcome: Measurement | Failure,
        *,
        spent_s: float,
        held_out: bool = False,
    ) -> None:
        """Keeps the outcome of one case, in place of an earlier one; a Failure never replaces a Measurement.

        Args:
            signature: of the operation that was timed.
            environment: that the latency is true for.
            point: at which it was timed.
            outcome: latencies, or why there are none.
            spent_s: what timing the case took, in seconds of wall time.
            held_out: no regressor may be fitted to it.
        """
        latencies: dict[str, Any] = {field.name: None for field in dataclasses.fields(Measurement)}
        latencies |= {"reason": None} | dataclasses.asdict(outcome)
        with self._writing():
            self._keep_environment(environment)
            self._keep_signature(signature)
            self._db.execute(
                """
                INSERT INTO measurement (
                    environment, signature, sweep_point,
                    rounds, min_s, median_s, mean_s, iqr_s, noise, reason, spent_s, held_out, measured_at
                ) VALUES (
                    :environment, :signature, :sweep_point,
                    :rounds, :min_s, :median_s, :mean_s, :iqr_s, :noise, :reason, :spent_s, :held_out, :measured_at
                )
                ON CONFLICT DO UPDATE SET
                    rounds = excluded.rounds, min_s = excluded.min_s, median_s = excluded.median_s,
                    mean_s = excluded.mean_s, iqr_s = excluded.iqr_s, noise = excluded.noise,
                    reason = excluded.reason, spent_s = excluded.spent_s, held_out = excluded.held_out,
                    measured_at = excluded.measured_at
                WHERE excluded.reason IS NULL OR measurement.reason IS NOT NULL
                """,
                latencies
                | {
                    "environment": environment.key,
                    "signature": signature.key,
                    "sweep_point": self._keep_sweep_point(point),
                    "spent_s": spent_s,
                    "held_out": held_out,
                    "measured_at": _now(),
                },
            )

    def outcomes(
        self, environment: Environment, *, held_out: bool = False
    ) -> dict[str, dict[SweepPoint, Measurement | Failure]]:
        """What was recorded in the environment, by signature key and sweep point.

        Args:
            environment: that the latencies are true for.
            held_out: only what no regressor may be fitted to, instead of only what one may.
        """
        return self._by_point(environment, _outcome, held_out)

    def measurements(
        self, environment: Environment, *, held_out: bool = False
    ) -> dict[str, dict[SweepPoint, Measurement]]:
        """The outcomes without failures; a signature that has nothing but failures is empty."""
        return {
            key: {point: outcome for point, outcome in outcomes.items() if isinstance(outcome, Measurement)}
            for key, outcomes in self.outcomes(environment, held_out=held_out).items()
        }

    def spent_s(self, environment: Environment, *, held_out: bool = False) -> dict[str, dict[SweepPoint, float]]:
        """What timing each case took, in seconds of wall time, by signature key and sweep point."""
        return self._by_point(environment, lambda row: row["spent_s"], held_out)

    def settle(
        self, signature_key: str, environment: Environment, *, target: float, error: float | None, grid: str
    ) -> None:
        """Keeps that a recorded signature's sweep needs no more points, in place of what was kept before.

        Args:
            signature_key: of a signature that was recorded before.
            environment: that the latencies are true for.
            target: held-out relative error that was asked for, 0.05 for 5 %.
            error: held-out relative error that was reached; None where it is unknown.
            grid: identifies the points among which those to be timed were chosen.
        """
        with self._writing():
            self._db.execute(
                """
                INSERT INTO settled_sweep VALUES (?, ?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET
                    target = excluded.target, error = excluded.error, grid = excluded.grid,
                    settled_at = excluded.settled_at
                """,
                [environment.key, signature_key, target, error, grid, _now()],
            )

    def settled(self, environment: Environment) -> dict[str, tuple[float, str]]:
        """Target and grid of every sweep that needs no more points, by signature key."""
        rows = self._rows("SELECT signature, target, grid FROM settled_sweep WHERE environment = ?", [environment.key])
        return {row["signature"]: (row["target"], row["grid"]) for row in rows}

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
                dataclasses.asdict(source) | {"key": source_key, "name": source.name, "now": _now()},
            )
            self._db.conn.executemany(
                "INSERT INTO unmapped VALUES (?, ?, ?)",
                [(source_key, reason, num_rows) for reason, num_rows in table.unmapped.items()],
            )
            for environment, rows in table.rows.items():
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
                [environment.key, family_key, name, error, fitted_to, text, _now()],
            )

    def load_family_regressor(self, family_key: str, environment: Environment, fitted_to: str) -> dict[str, Any] | None:
        """Parameters of a family's regressor, or None where there is none that was fitted to these latencies."""
        rows = self._rows(
            "SELECT document FROM family_regressor WHERE family = ? AND environment = ? AND fitted_to = ?",
            [family_key, environment.key, fitted_to],
        )
        return json.loads(rows[0]["document"]) if rows else None

    def signatures(self) -> dict[str, Signature]:
        """Every signature by its key, in the order of first recording."""
        rows = self._rows("SELECT key, document FROM signature ORDER BY rowid")
        return {row["key"]: self._signature(row["document"]) for row in rows}

    def environments(self) -> list[Environment]:
        """Every environment, in the order of first recording."""
        rows = self._rows("SELECT * FROM environment ORDER BY rowid")
        fields = [field.name for field in dataclasses.fields(Environment)]
        return [Environment(**{field: row[field] for field in fields}) for row in rows]

    def save_model(self, model: ServedModel, environment: Environment) -> None:
        """Keeps what a model runs in an environment, in place of what was saved under its key."""
        key = content_hash([environment.key, model.key])
        with self._writing():
            self._keep_environment(environment)
            self._db.execute("DELETE FROM model_configuration WHERE key = ?", [key])
            self._db.execute(
                """
                INSERT INTO model_configuration VALUES (
                    :key, :name, :model, :environment, :architecture,
                    :max_num_tokens, :max_num_seqs, :max_model_len, :saved_at
                )
                """,
                {
                    "key": key,
                    "name": model.name,
                    "model": model.key,
                    "environment": environment.key,
                    "architecture": model.architecture,
                    "saved_at": _now(),
                    **dataclasses.asdict(model.limits),
                },
            )
            for position, operation in enumerate(model.operations):
                self._keep_signature(operation.signature)
                self._db.execute(
                    "INSERT INTO model_operation VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        key,
                        position,
                        operation.signature.key,
                        operation.multiplicity,
                        json.dumps(operation.layers),
                        json.dumps(operation.origins),
                    ],
                )

    def load_model(self, key: str, environment: Environment) -> ServedModel | None:
        """The model saved under its key in the environment, or None."""
        return next(iter(self._models(environment.key, key)), None)

    def models(self, environment: Environment | None = None) -> list[ServedModel]:
        """The models saved in an environment, or in each one in turn when it is None; the latest first."""
        return self._models(None if environment is None else environment.key)

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
                [environment.key, signature_key, error, text, _now()],
            )

    def load_regressors(self, environment: Environment) -> dict[str, dict[str, Any]]:
        """Parameters of the regressors that were fitted in the environment, by signature key."""
        rows = self._rows("SELECT signature, document FROM regressor WHERE environment = ?", [environment.key])
        return {row["signature"]: json.loads(row["document"]) for row in rows}

    def save_finding(self, kind: str, model_key: str, environment: Environment, document: dict[str, Any]) -> None:
        """Keeps what was found out about a saved model, as JSON, in place of an earlier finding of the kind."""
        with self._writing():
            self._db.execute(
                """
                INSERT INTO finding VALUES (?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET document = excluded.document, found_at = excluded.found_at
                """,
                [content_hash([environment.key, model_key]), kind, json.dumps(document, allow_nan=False), _now()],
            )

    def load_finding(self, kind: str, model_key: str, environment: Environment) -> dict[str, Any] | None:
        """The latest finding of a kind about a model, or None."""
        key = content_hash([environment.key, model_key])
        rows = self._rows("SELECT document FROM finding WHERE model_configuration = ? AND kind = ?", [key, kind])
        return json.loads(rows[0]["document"]) if rows else None

    def latencies(self, environments: Iterable[Environment]) -> Iterator[LatencyRow]:
        """Every own and published latency and failure of the environments, a few in memory at a time.

        The order is by environment, operation and sweep point, whatever the order of recording.
        """
        asked = json.dumps([environment.key for environment in environments])
        with explained(self._path, "read"):
            rows = self._db.execute(
                """
                WITH latency AS (
                    SELECT
                        environment, signature, sweep_point, median_s, mean_s, min_s, iqr_s, rounds, noise, reason,
                        measured_at, NULL AS source, NULL AS kernel, NULL AS variant, held_out
                    FROM measurement
                    UNION ALL
                    SELECT
                        environment, signature, sweep_point, NULL, latency_s, NULL, NULL, NULL, NULL, NULL,
                        NULL, source, kernel, variant, 0
                    FROM published_measurement
                )
                SELECT
                    signature.kind, signature.name, signature.key, sweep_point.name, num_tokens, num_reqs,
                    median_s, mean_s, min_s, iqr_s, rounds, noise, reason,
                    device, device_count, driver, engine, engine_version, torch_version, clock, cache_mode, execution,
                    measured_at, source.name, source.licence, latency.kernel, variant, held_out
                FROM latency
                JOIN environment ON environment.key = latency.environment
                JOIN signature ON signature.key = latency.signature
                JOIN sweep_point ON sweep_point.key = latency.sweep_point
                LEFT JOIN source ON source.key = latency.source
                WHERE environment.key IN (SELECT value FROM json_each(?))
                ORDER BY
                    environment.name, environment.key, signature.kind, signature.name, signature.key,
                    num_tokens, num_reqs, sweep_point.name, latency.source IS NOT NULL, variant
                """,
                [asked],
            )
            while batch := rows.fetchmany(_BATCH_ROWS):
                for values in map(list, batch):
                    values[-1] = bool(values[-1])
                    yield LatencyRow(*values)

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

    def _by_point(
        self, environment: Environment, value_of: Callable[[Row], T], held_out: bool
    ) -> dict[str, dict[SweepPoint, T]]:
        rows = self._rows(
            """
            SELECT measurement.*, sweep_point.name AS point
            FROM measurement JOIN sweep_point ON sweep_point.key = measurement.sweep_point
            WHERE measurement.environment = ? AND measurement.held_out = ?
            """,
            [environment.key, held_out],
        )
        points = {text: SweepPoint.parse(text) for text in {row["point"] for row in rows}}
        by_point: dict[str, dict[SweepPoint, T]] = {}
        for row in rows:
            by_point.setdefault(row["signature"], {})[points[row["point"]]] = value_of(row)
        return by_point

    def _models(self, environment: str | None, model: str | None = None) -> list[ServedModel]:
        asked = {"environment": environment, "model": model}
        operations: dict[str, list[ModelOperation]] = {}
        with explained(self._path, "read"), transaction(self._db, "DEFERRED"):
            configurations = self._rows(
                """
                SELECT * FROM model_configuration
                WHERE environment = coalesce(:environment, environment) AND model = coalesce(:model, model)
                ORDER BY saved_at DESC, rowid DESC
                """,
                asked,
            )
            rows = self._rows(
                """
                SELECT model_operation.*, signature.document
                FROM model_configuration
                JOIN model_operation ON model_operation.model_configuration = model_configuration.key
                JOIN signature ON signature.key = model_operation.signature
                WHERE environment = coalesce(:environment, environment) AND model = coalesce(:model, model)
                ORDER BY position
                """,
                asked,
            )
        for row in rows:
            operations.setdefault(row["model_configuration"], []).append(self._operation(row))
        return [_model(row, tuple(operations.get(row["key"], ()))) for row in configurations]

    def _operation(self, row: Row) -> ModelOperation:
        return ModelOperation(
            signature=self._signature(row["document"]),
            multiplicity=row["multiplicity"],
            layers=tuple(json.loads(row["layers"])),
            origins=tuple((role, dtype, tuple(shape)) for role, dtype, shape in json.loads(row["origins"])),
        )

    def _signature(self, document: str) -> Signature:
        try:
            return Signature.from_json(json.loads(document))
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"latency DB {self._path} holds a signature that this version of pytest-dooly cannot read ({error}): "
                f"{document}; upgrade pytest-dooly, or name another file"
            ) from error


def _outcome(row: Row) -> Measurement | Failure:
    if row["reason"] is not None:
        return Failure(row["reason"])
    return Measurement(**{field.name: row[field.name] for field in dataclasses.fields(Measurement)})


def _model(row: Row, operations: tuple[ModelOperation, ...]) -> ServedModel:
    return ServedModel(
        key=row["model"],
        name=row["name"],
        architecture=row["architecture"],
        limits=Limits(**{field.name: row[field.name] for field in dataclasses.fields(Limits)}),
        operations=operations,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
