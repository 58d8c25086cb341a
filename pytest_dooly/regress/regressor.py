"""Measurements -> Regressor: non-negative combinations of ramps over what the kernel does.

Every candidate is `intercept + sum_j c_j * ramp_j(work)` with non-negative coefficients, where a ramp rises from one
knot of a work feature to the next and then stays. Work features grow with every request, query, context and expert, so
no regressor can predict a negative latency or one that falls as work grows. The parameters are a few lists of numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.document import Document
from pytest_dooly.core.work import FEATURES, Features, Work, features_of
from pytest_dooly.regress.ramps import ramps_of

__all__ = ["LatencyModel", "Regressor", "furthest_outside"]

Array = npt.NDArray[np.float64]


class LatencyModel(Protocol):
    """What predicts the latency of one operation on one device."""

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on what lies furthest outside of the known latencies, or None."""


@dataclass(frozen=True)
class Regressor(Document):
    """A fitted latency model of one operation in one environment.

    Attributes:
        method: name of the candidate that won.
        features: work features it looks at.
        knots: of each feature, where its ramps begin, ascending.
        coefficients: seconds per unit of each feature's ramps, all non-negative.
        intercept: seconds without work, non-negative.
        window: attention window in tokens; None where all is attended.
        ranges: smallest and largest measured value of each feature.
        error: held-out relative error of the winner, 0.05 for 5 %; None where the points are too few to hold one out.
        candidates: (name, held-out error) of every candidate that was compared.
        num_points: measurements it was fitted to.
    """

    method: str
    features: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    intercept: float
    window: float | None
    ranges: tuple[tuple[float, float], ...]
    error: float | None
    candidates: tuple[tuple[str, float], ...]
    num_points: int

    def __post_init__(self) -> None:
        of_features = (self.knots, self.coefficients, self.ranges)
        if not self.features or any(len(each) != len(self.features) for each in of_features):
            raise ValueError("knots, coefficients and ranges are of every feature, of which there is at least one")
        if list(map(len, self.knots)) != list(map(len, self.coefficients)):
            raise ValueError("every knot has a coefficient")
        if not set(self.features) <= set(FEATURES):
            raise ValueError(f"unknown features: {', '.join(sorted(set(self.features) - set(FEATURES)))}")
        if not all(0 <= value < math.inf for value in (self.intercept, *itertools.chain(*self.coefficients))):
            raise ValueError("intercept and coefficients are not negative")

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,); millions of them a second where the points are a Work."""
        work = points if isinstance(points, Work) else Work.of(points)
        return np.concatenate([self._predict(block) for block in work.blocks()]) if len(work) else np.empty(0)

    def _predict(self, work: Work) -> Array:
        total = np.full(len(work), self.intercept)
        features = Features(work, self.window)
        for name, knots, coefficients in zip(self.features, self.knots, self.coefficients, strict=True):
            if any(coefficients):
                total += ramps_of(features[name], knots, coefficients)
        return total

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on the feature and the point that lie furthest outside of what was measured, or None."""
        work = points if isinstance(points, Work) else Work.of([points])
        return furthest_outside(self.features, features_of(work, self.features, self.window), self.ranges)


def furthest_outside(names: Sequence[str], values: Array, ranges: Sequence[tuple[float, float]]) -> str | None:
    """One line on the feature and the point that lie furthest outside of what was measured, or None.

    Args:
        names: of the features.
        values: shape (points, features).
        ranges: smallest and largest measured value of each feature.
    """
    low, high = np.array(ranges).T
    beyond = np.maximum(values / np.maximum(high, 1e-9), (low + 1e-9) / (values + 1e-9))
    beyond[(low <= values) & (values <= high)] = 0
    point, feature = np.unravel_index(np.argmax(beyond), beyond.shape)
    if not beyond[point, feature]:
        return None
    return (
        f"{names[int(feature)]} {values[point, feature]:,.0f} is outside of the measured "
        f"{low[feature]:,.0f} to {high[feature]:,.0f}"
    )
