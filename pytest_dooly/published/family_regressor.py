"""A regressor across the sizes of one family of operations, and what it was fitted to."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.device import Device
from pytest_dooly.errors import DocumentError
from pytest_dooly.published.across import AcrossSizes
from pytest_dooly.published.family import Columns, Family, Part
from pytest_dooly.published.kernels import describe

__all__ = ["FamilyRegressor"]

Array = npt.NDArray[np.float64]

_NEAR = 1.0
"""Doublings within which a latency says something of a point."""


@dataclass(frozen=True)
class FamilyRegressor:
    """A regressor across the sizes of one family, and what it was fitted to.

    Attributes:
        family: whose latencies they are.
        device: that they were measured on.
        learner: the regressor.
        ranges: smallest and largest value of each column.
        rows: number of latencies of each size.
        sources: where the latencies come from.
        stand_in_error: relative error of latencies that stand in for others among them.
    """

    family: Family
    device: Device
    learner: AcrossSizes
    ranges: Mapping[str, tuple[float, float]]
    rows: Mapping[tuple[tuple[str, int], ...], int]
    sources: tuple[str, ...]
    stand_in_error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON document of what was fitted; `from_json` reads it back."""
        return {
            "learner": self.learner.to_json(),
            "ranges": self.ranges,
            "rows": [[sizes, number] for sizes, number in self.rows.items()],
            "stand_in_error": self.stand_in_error,
        }

    @classmethod
    def from_json(
        cls, document: Mapping[str, Any], *, family: Family, device: Device, sources: tuple[str, ...]
    ) -> FamilyRegressor:
        """The inverse of `to_json`, given what the latency DB knows besides.

        Raises:
            DocumentError: it is damaged, or of another version; fit it again.
        """
        try:
            return cls._read(document, family=family, device=device, sources=sources)
        except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise DocumentError(f"a kept regressor of {family} cannot be read ({error!r}): fit it again") from error

    @classmethod
    def _read(
        cls, document: Mapping[str, Any], *, family: Family, device: Device, sources: tuple[str, ...]
    ) -> FamilyRegressor:
        return cls(
            family=family,
            device=device,
            learner=AcrossSizes.from_json(document["learner"]),
            ranges={name: (low, high) for name, (low, high) in document["ranges"].items()},
            rows={tuple((name, size) for name, size in sizes): number for sizes, number in document["rows"]},
            sources=sources,
            stand_in_error=float(document.get("stand_in_error", 0.0)),
        )

    def predict(self, columns: Columns) -> tuple[Array, Array]:
        """Latencies in seconds and their expected relative errors, each of shape (rows,)."""
        description = describe(self.family, columns, self.device)
        latencies_s, errors = self.learner.predict(description.matrix, description.roofline_s)
        return latencies_s, np.hypot(errors, self.stand_in_error)

    def of_sizes(self, columns: Columns) -> float:
        """Relative error to be expected in the mean, whatever requests are: that of rows, and what distance adds.

        Args:
            columns: of rows of one size.
        """
        far_sizes, _ = self._far(columns)
        return float(np.hypot(self.predict(columns)[1].mean(), far_sizes))

    def beyond(self, columns: Columns) -> float:
        """Relative error that distance adds: for each doubling that no published latency is near, the family's worst.

        Trees of errors know no more of what lies outside than trees of latencies do. A family's worst is what one
        prediction in twenty exceeds where latencies of whole sizes, or else single ones, are left out of its fit.

        Args:
            columns: of the rows that are predicted; the furthest counts.
        """
        _, far_rows = self._far(columns)
        return far_rows

    def _far(self, columns: Columns) -> tuple[float, float]:
        """What the distance of the furthest row's sizes adds, and what its distance in every dimension does."""
        away = self.learner.away(describe(self.family, columns, self.device).matrix).max(axis=0)
        sizes, rows = self._worst * np.maximum(away - _NEAR, 0.0)
        return float(sizes), float(rows)

    @property
    def _worst(self) -> float:
        """Relative error that one prediction in twenty exceeds where whole sizes, or else rows, are left out."""
        known = self.learner.unseen_sizes or self.learner.unseen_rows
        return known[1] if known else 0.0

    def spans(self, part: Part) -> bool:
        """Whether the sizes of a part lie between those of the latencies, each within a doubling of one of them."""
        inside = all(self.ranges[name][0] <= value <= self.ranges[name][1] for name, value in part.sizes)
        known = np.log2(np.maximum([[value for _, value in sizes] for sizes in self.rows], 0.5))
        asked = np.log2(np.maximum([value for _, value in part.sizes], 0.5))
        return inside and bool(np.abs(known - asked).max(axis=1).min() <= 1)

    def tells_of(self, part: Part) -> bool:
        """Whether every size of a part is near to what is known, or is one that latencies are known to change with."""
        far = {name for name, value in part.sizes if abs(np.log2(max(value, 0.5) / max(self.ranges[name][0], 0.5))) > 1}
        return all(self.ranges[name][0] < self.ranges[name][1] for name in far)

    def out_of_range(self, columns: Columns) -> str | None:
        """One line on the column that lies furthest outside of the latencies, or None."""
        furthest, line = 1.0, None
        for name, (low, high) in self.ranges.items():
            values = columns[name]
            if name in ("batch_size", "activated"):
                low = 0.0  # a chunk of a prompt is worth less than one prompt; of few tokens a rank may get none
            if name == "context_len":
                values = np.maximum(values, 1.0)  # a prompt of one token runs as a decode, and attends to one as well
            beyond = max(float(values.max()) / max(high, 1e-9), low / max(float(values.min()), 1e-9))
            if beyond > max(furthest, 1 + 1e-6):
                value = values.max() if values.max() > high else values.min()
                furthest, line = beyond, f"{name} {value:,.0f} is outside of the published {low:,.0f} to {high:,.0f}"
        return line
