"""Every latency with all that is known of it, readable without the latency DB."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dooly.core.environment import Environment
from pytest_dooly.latency_db.file import explained
from pytest_dooly.latency_db.tables import Tables

__all__ = ["AllLatencies", "LatencyKind", "LatencyRow"]

LatencyKind = Literal["measurements", "published"]

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


class AllLatencies(Tables):
    """Own and published latencies in one order."""

    def latencies(self, environments: Iterable[Environment], kind: LatencyKind | None = None) -> Iterator[LatencyRow]:
        """Every own and published latency and failure of the environments, a few in memory at a time.

        The order is by environment, operation and sweep point, whatever the order of recording.

        Args:
            environments: that the latencies are true for.
            kind: own or published ones alone; None for both.
        """
        for batch in self._latencies(environments, kind, _BATCH_ROWS):
            for values in map(list, batch):
                values[-1] = bool(values[-1])
                yield LatencyRow(*values)

    def _latencies(
        self, environments: Iterable[Environment], kind: LatencyKind | None, batch_rows: int
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The fields of every LatencyRow, batch by batch; `held_out` as 0 or 1."""
        asked = json.dumps([environment.key for environment in environments])
        with explained(self._path, "read"):
            rows = self._db.execute(
                """
                WITH latency AS (
                    SELECT
                        environment, signature, sweep_point, median_s, mean_s, min_s, iqr_s, rounds, noise, reason,
                        measured_at, NULL AS source, NULL AS kernel, NULL AS variant, held_out
                    FROM measurement
                    WHERE :kind IS NOT 'published'
                    UNION ALL
                    SELECT
                        environment, signature, sweep_point, NULL, latency_s, NULL, NULL, NULL, NULL, NULL,
                        NULL, source, kernel, variant, 0
                    FROM published_measurement
                    WHERE :kind IS NOT 'measurements'
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
                WHERE environment.key IN (SELECT value FROM json_each(:environments))
                ORDER BY
                    environment.name, environment.key, signature.kind, signature.name, signature.key,
                    num_tokens, num_reqs, sweep_point.name, latency.source IS NOT NULL, variant
                """,
                {"environments": asked, "kind": kind},
            )
            while batch := rows.fetchmany(batch_rows):
                yield batch
