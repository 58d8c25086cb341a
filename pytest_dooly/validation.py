"""Predictions beside what the real engine took."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dooly.predict import Workload

__all__ = ["NOISE_FACTOR", "TPOT_TARGET", "TTFT_TARGET", "Accuracy", "Validation", "ValidationRow"]

TTFT_TARGET = 0.10
"""Largest median absolute relative error of TTFT that passes."""

TPOT_TARGET = 0.15
"""Largest median absolute relative error of TPOT that passes."""

NOISE_FACTOR = 1.5
"""A median error within this multiple of the noise floor passes too: no predictor could do much better."""


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
    """Absolute relative errors over a grid, 0.05 for 5 %.

    Attributes:
        median: median absolute error.
        mape: mean absolute error.
        noise: median noise floor.
        count: number of workloads.
    """

    median: float
    mape: float
    noise: float
    count: int

    def passes(self, target: float, noise_factor: float) -> bool:
        """Whether the median error is within the target, or within a multiple of the noise floor."""
        return self.median <= max(target, noise_factor * self.noise)


@dataclass(frozen=True)
class Validation:
    """A grid of workloads, predicted and measured.

    Attributes:
        rows: one a workload, at least one.
    """

    rows: tuple[ValidationRow, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        return {"rows": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Validation:
        """The inverse of `to_json`."""
        return cls(tuple(ValidationRow(**{**row, "workload": Workload(**row["workload"])}) for row in document["rows"]))

    @property
    def ttft(self) -> Accuracy:
        """Accuracy of TTFT."""
        return _accuracy([(row.ttft_error, row.ttft_noise) for row in self.rows])

    @property
    def tpot(self) -> Accuracy | None:
        """Accuracy of TPOT; None where no workload has more than one output token."""
        known = [(row.tpot_error, row.tpot_noise) for row in self.rows]
        pairs = [(error, noise) for error, noise in known if error is not None and noise is not None]
        return _accuracy(pairs) if pairs else None

    def passes(
        self,
        *,
        ttft_target: float = TTFT_TARGET,
        tpot_target: float = TPOT_TARGET,
        noise_factor: float = NOISE_FACTOR,
    ) -> bool:
        """Whether both medians are within their target, or within a multiple of the noise floor."""
        tpot = self.tpot
        return self.ttft.passes(ttft_target, noise_factor) and (tpot is None or tpot.passes(tpot_target, noise_factor))


def _accuracy(pairs: list[tuple[float, float]]) -> Accuracy:
    errors = [abs(error) for error, _ in pairs]
    noise = statistics.median(noise for _, noise in pairs)
    return Accuracy(statistics.median(errors), statistics.fmean(errors), noise, len(pairs))
