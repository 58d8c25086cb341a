"""Predictions beside what the real engine took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pytest_dooly.core.document import Document
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.draw import Replacement

__all__ = ["NOISE_FACTOR", "TPOT_TARGET", "TTFT_TARGET", "Accuracy", "Validation", "ValidationRow", "Verdict", "worst"]

TTFT_TARGET = 0.05
"""Largest mean absolute relative error of TTFT that passes."""

TPOT_TARGET = 0.08
"""Largest mean absolute relative error of TPOT that passes."""

NOISE_FACTOR = 1.2
"""A mean error within this multiple of the mean noise floor passes too: no predictor could do much better."""

_TELLING = 3.0
"""Multiple of the target beyond which a noise floor says nothing of a predictor that is within it."""

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


class Verdict(StrEnum):
    """On predictions beside measurements; UNDECIDED where the machine is too noisy to tell."""

    MEETS = "meets"
    MISSES = "misses"
    UNDECIDED = "undecided"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several; MEETS of none."""
    found = set(verdicts)
    return next((each for each in (Verdict.MISSES, Verdict.UNDECIDED) if each in found), Verdict.MEETS)


@dataclass(frozen=True)
class ValidationRow:
    """One workload, predicted and measured.

    Attributes:
        workload: equal requests that arrive together.
        predicted_ttft_s: predicted TTFT in seconds.
        measured_ttft_s: median TTFT of the repeats in seconds.
        ttft_noise: relative noise floor of TTFT, 0.05 for 5 %.
        predicted_tpot_s: predicted TPOT in seconds; None for one output token.
        measured_tpot_s: median TPOT of the repeats in seconds; None for one output token.
        tpot_noise: relative noise floor of TPOT; None for one output token.
    """

    workload: Workload
    predicted_ttft_s: float
    measured_ttft_s: float
    ttft_noise: float
    predicted_tpot_s: float | None
    measured_tpot_s: float | None
    tpot_noise: float | None

    def __post_init__(self) -> None:
        if min(self.measured_ttft_s, 1.0 if self.measured_tpot_s is None else self.measured_tpot_s) <= 0:
            raise ValueError(f"measured latencies are above 0, got {self.measured_ttft_s} and {self.measured_tpot_s}")

    @property
    def ttft_error(self) -> float:
        """Signed relative error of TTFT, positive where the prediction is too high."""
        return self.predicted_ttft_s / self.measured_ttft_s - 1

    @property
    def tpot_error(self) -> float | None:
        """Signed relative error of TPOT; None for one output token."""
        if self.predicted_tpot_s is None or self.measured_tpot_s is None:
            return None
        return self.predicted_tpot_s / self.measured_tpot_s - 1


@dataclass(frozen=True)
class Accuracy:
    """Absolute relative errors over many workloads, 0.05 for 5 %.

    Attributes:
        median: median absolute error.
        mape: mean absolute error.
        low: lower end of the MAPE's 95 % bootstrap interval.
        high: its upper end.
        noise: median noise floor.
        mean_noise: mean noise floor: the MAPE of a run that is predicted by its own repetition.
        count: number of workloads.
    """

    median: float
    mape: float
    low: float
    high: float
    noise: float
    mean_noise: float
    count: int

    @classmethod
    def of(cls, errors: Sequence[float], noises: Sequence[float]) -> Accuracy:
        """Accuracy over workloads.

        The interval is the percentile bootstrap of the mean (Efron 1979) over the workloads, always of one seed.

        Args:
            errors: signed relative error of each workload, at least one.
            noises: noise floor of each.
        """
        absolute = np.abs(errors)
        picks = np.random.default_rng(0).integers(len(absolute), size=(_RESAMPLES, len(absolute)))
        tail = (1 - _CONFIDENCE) / 2
        low, high = np.quantile(absolute[picks].mean(axis=1), [tail, 1 - tail])
        return cls(
            median=float(np.median(absolute)),
            mape=float(absolute.mean()),
            low=float(low),
            high=float(high),
            noise=statistics.median(noises),
            mean_noise=statistics.fmean(noises),
            count=len(absolute),
        )

    def verdict(self, target: float) -> Verdict:
        """Whether the MAPE is within the target, or within NOISE_FACTOR times that of a repetition.

        Args:
            target: largest MAPE that meets it, 0.05 for 5 %.
        """
        if self.mape <= target:
            return Verdict.MEETS
        if self.mape > NOISE_FACTOR * self.mean_noise:
            return Verdict.MISSES
        return Verdict.MEETS if self.mean_noise <= _TELLING * target else Verdict.UNDECIDED


@dataclass(frozen=True)
class Validation(Document):
    """Workloads, predicted and measured.

    Attributes:
        rows: one a workload, at least one.
        replaced: workloads that the budget excluded, and those that ran in their place.
        drift: how much slower each later round was than the first, over all workloads the median; 0.05 for 5 %. What
            the machine itself does from round to round.
    """

    rows: tuple[ValidationRow, ...]
    replaced: tuple[Replacement, ...] = ()
    drift: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a validation has at least one workload")

    @property
    def ttft(self) -> Accuracy:
        """Accuracy of TTFT."""
        return Accuracy.of([row.ttft_error for row in self.rows], [row.ttft_noise for row in self.rows])

    @property
    def tpot(self) -> Accuracy | None:
        """Accuracy of TPOT; None where no workload has more than one output token."""
        known = [(row.tpot_error, row.tpot_noise) for row in self.rows]
        pairs = [(error, noise) for error, noise in known if error is not None and noise is not None]
        return Accuracy.of([error for error, _ in pairs], [noise for _, noise in pairs]) if pairs else None

    def verdict(self) -> Verdict:
        """On both MAPEs, the worse of both."""
        tpot = self.tpot
        return worst([self.ttft.verdict(TTFT_TARGET), *([] if tpot is None else [tpot.verdict(TPOT_TARGET)])])
