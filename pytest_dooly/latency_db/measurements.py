"""Outcomes of timed cases, and which sweeps need no more of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.latency_db.tables import Row, Tables

__all__ = ["MeasurementTables"]

T = TypeVar("T")


class MeasurementTables(Tables):
    """Own measurements and failures by signature, environment and sweep point."""

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
                    "measured_at": self._now(),
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
                [environment.key, signature_key, target, error, grid, self._now()],
            )

    def settled(self, environment: Environment) -> dict[str, tuple[float, str]]:
        """Target and grid of every sweep that needs no more points, by signature key."""
        rows = self._rows("SELECT signature, target, grid FROM settled_sweep WHERE environment = ?", [environment.key])
        return {row["signature"]: (row["target"], row["grid"]) for row in rows}

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


def _outcome(row: Row) -> Measurement | Failure:
    if row["reason"] is not None:
        return Failure(row["reason"])
    return Measurement(**{field.name: row[field.name] for field in dataclasses.fields(Measurement)})
