"""Measurements of a sweep -> whether it needs a further point: only where the held-out error is above a target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import content_hash
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.regress.fit import held_out_errors

__all__ = ["TARGET", "Refinement", "grid_key"]

TARGET = 0.05
"""Held-out relative error of a regressor at which its sweep needs no more points."""

_FEWEST = 5
"""Measurements below which no held-out error is worth the name, so that every point is needed."""

_PARAMETERS = 3
"""Of a usual fit, for how much of the noise it keeps."""

_NEIGHBOURS = 3
"""Measured points around a new one, whose errors say whether it is needed."""


class Refinement:
    """One sweep that is being refined.

    Attributes:
        signature: of the operation.
        target: held-out relative error at which no more points are needed, 0.05 for 5 %.
        noise: relative standard deviation of equal cases at different times, below which no error can be held out.
    """

    def __init__(
        self, signature: Signature, outcomes: Mapping[SweepPoint, Measurement], *, target: float = TARGET
    ) -> None:
        """Starts from what is measured.

        Args:
            signature: of the operation.
            outcomes: its measurements so far.
            target: as in the attribute.
        """
        self.signature = signature
        self.target = target
        self.noise = 0.0
        self._outcomes = dict(outcomes)
        self._errors: dict[SweepPoint, float] | None = None

    def add(self, point: SweepPoint, outcome: Measurement) -> None:
        """Takes a new measurement into account."""
        self._outcomes[point] = outcome
        self._errors = None

    @property
    def error(self) -> float | None:
        """Mean held-out error of the measured points; None for too few."""
        errors = self._held_out()
        return statistics.fmean(errors.values()) if errors else None

    def needs(self, point: SweepPoint) -> bool:
        """Whether a further point is to be timed: what the fit lacks is above target, and the point would mend it.

        A held-out error is the fit's and the machine's noise together, and a fit to n points keeps p / n of the noise's
        variance for its p parameters. Where the fit is off, only points around its errors help; where it is noise that
        it must average over, any point does.
        """
        errors = self._held_out()
        if errors is None:
            return True
        off = max(statistics.fmean(errors.values()) ** 2 - self.noise**2, 0.0)
        averaged = self.noise**2 * _PARAMETERS / len(self._outcomes)
        if off + averaged <= self.target**2:
            return False
        if averaged > self.target**2:
            return True
        known = list(errors)
        distances = np.abs(_coordinates(known) - _coordinates([point])).max(axis=1)
        nearest = [known[i] for i in np.argsort(distances)[:_NEIGHBOURS]]
        return any(errors[each] > max(self.target, self.noise, self._outcomes[each].precision) for each in nearest)

    def _held_out(self) -> dict[SweepPoint, float] | None:
        if len(self._outcomes) < _FEWEST:
            return None
        if self._errors is None:
            self._errors = dict(held_out_errors(self.signature, self._outcomes))
        return self._errors


def grid_key(points: Iterable[SweepPoint]) -> str:
    """Identifies the points among which those to be timed are chosen."""
    return content_hash(sorted(map(str, points)))


def _coordinates(points: Iterable[SweepPoint]) -> npt.NDArray[np.float64]:
    """Where points lie, in doublings: shape (points, 5)."""
    rows = []
    for point in points:
        if point.batch is not None:
            requests = point.batch.requests
            kv_lens = [request.seq_len for request in requests]
            rows.append((point.batch.num_tokens, len(requests), sum(kv_lens), max(kv_lens), 1))
        elif point.routing is not None:
            rows.append((point.num_tokens or 0, point.routing.activated, point.routing.busiest, 1, 1))
        else:
            rows.append((point.num_tokens or point.num_reqs or 0, 1, 1, 1, 1))
    return np.log2(np.array(rows, dtype=np.float64))
