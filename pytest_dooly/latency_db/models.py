"""What models run: their operations in each environment."""

from __future__ import annotations

import dataclasses
import json

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.latency_db.file import explained, transaction
from pytest_dooly.latency_db.tables import Row, Tables

__all__ = ["ModelTables"]


class ModelTables(Tables):
    """Models by key and environment."""

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
                    "saved_at": self._now(),
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


def _model(row: Row, operations: tuple[ModelOperation, ...]) -> ServedModel:
    return ServedModel(
        key=row["model"],
        name=row["name"],
        architecture=row["architecture"],
        limits=Limits(row["max_num_tokens"], row["max_num_seqs"], row["max_model_len"]),
        operations=operations,
    )
