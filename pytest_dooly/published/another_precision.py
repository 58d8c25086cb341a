"""Latencies of a kernel whose weights have a precision that is not published, by those of one that is.

The difference of what the data sheet says of both is added: a product that waits for memory is as much shorter as there
are fewer bytes to read, one that computes as the cores for its precision are faster, and what a kernel takes besides it
takes with either. Of the precisions that are published those come first whose weights are as large and whose cores are
as fast (fp8 with scales of either kind, int4 and MXFP4), then bf16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.device import Device
from pytest_dooly.published.family import Columns, Family, Part
from pytest_dooly.published.family_regressor import FamilyRegressor
from pytest_dooly.published.kernels import WEIGHT_BYTES, estimated_s, speedup

__all__ = ["OF_ANOTHER_PRECISION", "AnotherPrecision", "KernelModel", "like"]

Array = npt.NDArray[np.float64]

OF_ANOTHER_PRECISION = 0.44
"""Expected relative error that it adds.

The mean over products and experts of six GPUs that have tables of both (`make bench-transfer`; 35 % in the median of 38
pairs, over 200 % from Hopper's slow kernel of experts in fp8 per tensor), where the data sheet alone is 50 % off.
"""

_AS_LARGE = 1.1
"""Bytes of two precisions' weights, above which one is larger."""


@dataclass(frozen=True)
class AnotherPrecision:
    """The regressor of a family, by that of one whose weights have another precision.

    Attributes:
        asked: family of the latencies that are predicted.
        by: regressor of the other.
    """

    asked: Family
    by: FamilyRegressor

    @property
    def family(self) -> Family:
        """Whose latencies they are."""
        return self.by.family

    @property
    def rows(self) -> Mapping[tuple[tuple[str, int], ...], int]:
        """Number of latencies of each size."""
        return self.by.rows

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the latencies come from, and whose weights they stand for."""
        precision = self.asked.of_weights.removesuffix("_weights")
        return tuple(f"{source}, for {precision} weights" for source in self.by.sources)

    def predict(self, columns: Columns) -> tuple[Array, Array]:
        """Latencies in seconds and their expected relative errors, each of shape (rows,)."""
        latencies_s, errors = self.by.predict(columns)
        there_s, here_s = (estimated_s(family, columns, self.by.device) for family in (self.family, self.asked))
        moved_s = np.maximum(latencies_s + here_s - there_s, here_s)
        return moved_s, np.hypot(errors * latencies_s / moved_s, OF_ANOTHER_PRECISION)

    def of_sizes(self, columns: Columns) -> float:
        """Relative error to be expected in the mean, as of the other precision, and what that adds."""
        return float(np.hypot(self.by.of_sizes(columns), OF_ANOTHER_PRECISION))

    def beyond(self, columns: Columns) -> float:
        """As of the other precision."""
        return self.by.beyond(columns)

    def spans(self, part: Part) -> bool:
        """As of the other precision."""
        return self.by.spans(part)

    def out_of_range(self, columns: Columns) -> str | None:
        """As of the other precision."""
        return self.by.out_of_range(columns)


KernelModel = FamilyRegressor | AnotherPrecision
"""What the latencies of one part of an operation are predicted by."""


def like(asked: Family, known: Iterable[Family], device: Device) -> Iterator[Family]:
    """Families that differ in the precision of weights alone, those first whose kernels do as much.

    Args:
        asked: of no published latencies, or of such as are far away.
        known: of which there are latencies.
        device: that runs them.
    """
    found = [
        each
        for each in dict.fromkeys(known)
        if each.of_cache == asked.of_cache and replace(each, precision=asked.precision) == asked != each
    ]
    yield from (each for each in found if _does_as_much(each.of_weights, asked.of_weights, device))
    yield from (each for each in found if each.of_weights == "bf16")


def _does_as_much(one: str, other: str, device: Device) -> bool:
    held = [WEIGHT_BYTES.get(precision, 2.0) for precision in (one, other)]
    return max(held) <= _AS_LARGE * min(held) and speedup(one, device) == speedup(other, device)
