"""Runs of the gate on drift, with every turn: one that is killed loses the turn in flight at most."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from pytest_dooly.core.document import parsed
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.core.turn import Turn
from pytest_dooly.latency_db.tables import Row, Tables

__all__ = ["GateTables"]


class GateTables(Tables):
    """Runs by series and time, and their turns."""

    def begin_gate_run(self, series: str, model: str, environment: Environment, commit: str) -> str:
        """Keeps that a run has begun; returns its key.

        Args:
            series: which runs may be compared with it.
            model: its name.
            environment: that it runs in.
            commit: that it runs at; empty where none is known.
        """
        key = uuid.uuid4().hex[:16]
        with self._writing():
            self._keep_environment(environment)
            self._db.execute(
                "INSERT INTO gate_run (key, series, model, environment, commit_id, started_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [key, series, model, environment.key, commit, self._now()],
            )
        return key

    def keep_gate_turn(self, run: str, position: int, turn: Turn) -> None:
        """Keeps one turn of a run.

        Args:
            run: its key.
            position: of the turn, from 0.
            turn: what it has timed.
        """
        with self._writing():
            text = json.dumps(_rounded(turn.to_json()), allow_nan=False)
            self._db.execute("INSERT INTO gate_turn VALUES (?, ?, ?)", [run, position, text])

    def finish_gate_run(
        self, run: str, outcome: str, document: Mapping[str, Any], *, is_baseline: bool, accepted: str | None = None
    ) -> None:
        """Keeps what a run has come to.

        Args:
            run: its key.
            outcome: as people read it.
            document: what it has found, as JSON.
            is_baseline: whether later runs are compared with it.
            accepted: why it took over from another baseline.
        """
        with self._writing():
            self._db.execute(
                "UPDATE gate_run SET finished_at = ?, outcome = ?, document = ?, is_baseline = ?, accepted = ? "
                "WHERE key = ?",
                [self._now(), outcome, json.dumps(document, allow_nan=False), is_baseline, accepted, run],
            )

    def gate_runs(self, series: str | None = None) -> list[GateRun]:
        """The runs of a series, or all of them, in the order in which they began."""
        environments = {environment.key: environment for environment in self.environments()}
        rows = self._rows(
            "SELECT * FROM gate_run WHERE series = coalesce(?, series) ORDER BY started_at, key", [series]
        )
        return [_run(row, environments[row["environment"]]) for row in rows]

    def gate_turns(self, run: str) -> list[Turn]:
        """All turns of a run, in their order.

        Raises:
            DocumentError: one is damaged.
        """
        rows = self._rows("SELECT document FROM gate_turn WHERE run = ? ORDER BY position", [run])
        return [Turn.from_json(parsed(row["document"], "turn of a gate")) for row in rows]


def _run(row: Row, environment: Environment) -> GateRun:
    return GateRun(
        key=row["key"],
        series=row["series"],
        model=row["model"],
        environment=environment,
        commit=row["commit_id"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        outcome=row["outcome"],
        is_baseline=bool(row["is_baseline"]),
        accepted=row["accepted"],
        document={} if row["document"] is None else parsed(row["document"], "run of a gate"),
    )


def _rounded(value: Any) -> Any:
    """Six digits, a tenth of what any clock resolves, which halves what a run takes in the file."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
