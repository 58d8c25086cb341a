"""The outcome of timing one operation at one sweep point: a Measurement or a Failure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Failure", "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """Latency statistics of all rounds, in seconds; no round is dropped.

    Attributes:
        rounds: number of samples.
        min_s: fastest round.
        median_s: what regressors are fitted to.
        mean_s: arithmetic mean.
        iqr_s: distance of the quartiles.
    """

    rounds: int
    min_s: float
    median_s: float
    mean_s: float
    iqr_s: float

    @classmethod
    def of(cls, samples_s: Sequence[float]) -> Measurement:
        """The statistics of the samples, in seconds.

        Raises:
            ValueError: fewer than 3 samples, of which no median is worth the name.
        """
        if len(samples_s) < 3:
            raise ValueError(f"a measurement needs at least 3 rounds, got {len(samples_s)}")
        low, _, high = statistics.quantiles(samples_s, n=4, method="inclusive")
        return cls(
            rounds=len(samples_s),
            min_s=min(samples_s),
            median_s=statistics.median(samples_s),
            mean_s=statistics.fmean(samples_s),
            iqr_s=high - low,
        )


@dataclass(frozen=True)
class Failure:
    """Why an operation could not be timed at a sweep point; it stays to be measured.

    Attributes:
        reason: one line for people.
    """

    reason: str
