"""Simulated traffic beside what a real server took over the same requests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dooly.core.document import Document
from pytest_dooly.prediction.validation import Accuracy, Verdict, worst

__all__ = [
    "JUDGED",
    "METRICS",
    "STATISTICS",
    "Load",
    "TrafficRow",
    "TrafficValidation",
    "TrafficVerdict",
]

METRICS = ("ttft", "tpot", "e2el")
"""Time to first token, per further token, and end-to-end latency, by the names of vLLM's benchmark."""

STATISTICS = ("mean", "p50", "p90", "p99")
"""Of each metric over the requests of a load."""

JUDGED = {"mean": 0.08, "p99": 0.20}
"""Statistics that decide, and the largest mean absolute relative error over all loads that passes."""


@dataclass(frozen=True)
class Load:
    """Requests that were sent.

    Attributes:
        rate: requests per second.
        shared: whether prompts share their beginnings.
        num_requests: sent each time.
        capacity: requests per second that the simulation says the server sustains.
        predicted_cached: tokens of all prompts that the simulation finds in the prefix cache.
        measured_cached: tokens that the server found there, the median; None where it does not say.
        failed: requests that failed, over all repeats.
    """

    rate: float
    shared: bool
    num_requests: int
    capacity: float
    predicted_cached: int = 0
    measured_cached: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class TrafficRow:
    """One statistic of one metric under one load.

    Attributes:
        load: place of the load in the validation.
        metric: of METRICS.
        statistic: of STATISTICS.
        predicted_s: simulated, in seconds.
        measured_s: median of the repeats, in seconds.
        noise: relative noise floor, 0.05 for 5 %.
    """

    load: int
    metric: str
    statistic: str
    predicted_s: float
    measured_s: float
    noise: float

    def __post_init__(self) -> None:
        if self.measured_s <= 0:
            raise ValueError(f"measured latencies are above 0, got {self.measured_s}")

    @property
    def error(self) -> float:
        """Signed relative error, positive where the prediction is too high."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class TrafficVerdict:
    """One judged statistic of one metric, over all loads.

    Attributes:
        metric: of METRICS.
        statistic: of JUDGED.
        accuracy: over the loads.
        target: largest mean absolute error that passes.
    """

    metric: str
    statistic: str
    accuracy: Accuracy
    target: float

    @property
    def verdict(self) -> Verdict:
        """Whether it is within the target, or within a multiple of the noise floor."""
        return self.accuracy.verdict(self.target)


@dataclass(frozen=True)
class TrafficValidation(Document):
    """Loads, predicted and measured.

    Attributes:
        loads: that were sent.
        rows: every statistic of every metric of each; those of TPOT are missing where all outputs have one token.
        server_s: seconds that server and client add to each request, in the prediction.
        calibrated: whether that was measured on requests of its own here, and not named.
        repeats: how often each load was sent.
    """

    loads: tuple[Load, ...]
    rows: tuple[TrafficRow, ...]
    server_s: float
    calibrated: bool
    repeats: int

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a validation has at least one load")

    def of(self, metric: str, statistic: str) -> tuple[TrafficRow, ...]:
        """The statistic under each load."""
        return tuple(row for row in self.rows if (row.metric, row.statistic) == (metric, statistic))

    def verdicts(self) -> Iterator[TrafficVerdict]:
        """Each judged statistic of each metric."""
        for metric, (statistic, target) in itertools.product(METRICS, JUDGED.items()):
            rows = self.of(metric, statistic)
            if rows:
                accuracy = Accuracy.of([row.error for row in rows], [row.noise for row in rows])
                yield TrafficVerdict(metric, statistic, accuracy, target)

    def verdict(self) -> Verdict:
        """The worst of all; a request that failed is one."""
        failed = [Verdict.MISSES for load in self.loads if load.failed]
        return worst([*failed, *(each.verdict for each in self.verdicts())])
