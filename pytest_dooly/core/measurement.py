"""The outcome of timing one operation at one sweep point: a Measurement or a Failure."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Failure", "Measurement", "interval_of_median", "relative_spread"]

_TAIL = 0.025
"""Probability of a median beyond either end of its 95 % confidence interval."""


def interval_of_median(samples: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the median, which holds for every distribution; None for fewer than 6 samples.

    Its ends are order statistics: the number of samples below the median is binomial (Conover, Practical
    Nonparametric Statistics, 3.2).
    """
    count = len(samples)
    rank = _rank(count)
    if rank == 0:
        return None
    ordered = sorted(samples)
    return ordered[rank - 1], ordered[count - rank]


@functools.cache
def _rank(count: int) -> int:
    """Largest r for which the r-th smallest sample lies beyond the median with probability _TAIL at most."""
    tail, rank = 0.5**count, 0
    while tail <= _TAIL:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return rank


def relative_spread(values: Sequence[float]) -> float:
    """Relative standard deviation, by the median absolute deviation, so that outliers hardly count; 0 for too few.

    The factor makes it the standard deviation of a normal distribution (Rousseeuw and Croux 1993).
    """
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return spread / middle if middle else 0.0


@dataclass(frozen=True)
class Measurement:
    """Latency statistics of all rounds, in seconds; no round is dropped.

    Attributes:
        rounds: number of samples.
        min_s: fastest round.
        median_s: what one run usually takes, and what people compare.
        mean_s: what regressors are fitted to: a step runs hundreds of operations, and what they take together tends to
            the sum of their means.
        iqr_s: distance of the quartiles.
        noise: how far a reference operation beside it was from the usual, 0.05 for 5 %; None where unknown.
    """

    rounds: int
    min_s: float
    median_s: float
    mean_s: float
    iqr_s: float
    noise: float | None = None

    @classmethod
    def of(cls, samples_s: Sequence[float], *, noise: float | None = None) -> Measurement:
        """The statistics of the samples, in seconds.

        Args:
            samples_s: every round.
            noise: of the machine, as in the attribute.

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
            noise=noise,
        )

    @property
    def precision(self) -> float:
        """Half the width of the median's 95 % interval, relative to it, if rounds were normal (1.25 sigma / sqrt n)."""
        sigma_s = self.iqr_s / 1.349
        return 1.96 * 1.253 * sigma_s / math.sqrt(self.rounds) / self.median_s


@dataclass(frozen=True)
class Failure:
    """Why an operation could not be timed at a sweep point; it stays to be measured.

    Attributes:
        reason: one line for people.
    """

    reason: str
