"""One run of the gate on drift, as it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.environment import Environment, content_hash

__all__ = ["GateRun", "gate_series"]

_TURN_FORMAT = 2
"""Raised when a turn times something else, references included, or in another process: older runs are not compared."""


@dataclass(frozen=True)
class GateRun:
    """What is known of a run besides its turns.

    Attributes:
        key: of the run.
        series: which runs may be compared with it.
        model: its name.
        environment: that it ran in.
        commit: that it ran at, or another version; empty where none is known.
        started_at: UTC.
        finished_at: UTC; None where it was killed or interrupted.
        outcome: as people read it; None likewise.
        is_baseline: whether later runs are compared with it, until another takes over.
        accepted: why it took over; None for the first.
        document: what it has found, as JSON; empty until it has finished.
    """

    key: str
    series: str
    model: str
    environment: Environment
    commit: str
    started_at: str
    finished_at: str | None
    outcome: str | None
    is_baseline: bool
    accepted: str | None
    document: Mapping[str, Any]

    @property
    def is_own(self) -> bool:
        """Whether its changes are from the baseline in its latency DB, not from another engine's or file's."""
        return bool(self.document.get("is_own", not self.document.get("interleaved")))


def gate_series(configuration: ModelConfiguration, environment: Environment) -> str:
    """Key of the runs that are comparable: of one configuration on one device, timed alike.

    Versions of the engine, of torch and of the driver are left out: they are what drift comes from.
    """
    return content_hash(
        [
            configuration.key,
            environment.device,
            environment.device_count,
            environment.engine,
            environment.clock,
            environment.cache_mode,
            environment.execution,
            _TURN_FORMAT,
        ]
    )
