"""What the prediction of an operation on a device rests on: measurements, published latencies, or an estimate.

Our own measurements outrank published latencies of the same operation, these outrank a regressor across other sizes,
that what is known of the same operation with weights in another precision or on another GPU, and an estimate from the
data sheet comes last. The signature of a trace on another device is compared without what only that device decides: its
attention backend, its block size, how its layers dispatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_dooly.regress.regressor import LatencyModel

__all__ = ["Basis", "BasisKind", "Foundation"]

BasisKind = Literal["measured", "published", "across sizes", "another precision", "another GPU", "estimate"]
"""Best first."""


@dataclass(frozen=True)
class Basis:
    """What one prediction rests on.

    Attributes:
        kind: of the latencies.
        num_rows: latencies behind it; 0 for an estimate.
        sources: where they come from, for people.
        error: expected relative error, 0.05 for 5 %; None where it is unknown.
        reliable: whether the expected error can be relied on: the sizes lie between those of the latencies, and these
            are enough to know an error from.
    """

    kind: BasisKind
    num_rows: int
    sources: tuple[str, ...]
    error: float | None
    reliable: bool = True

    def within(self, target: float) -> bool:
        """Whether the operation need not be timed: measured at its own sizes, or predicted within the target."""
        if self.kind in ("measured", "published"):
            return True
        return self.kind == "across sizes" and self.reliable and (self.error or 0.0) <= target


@dataclass(frozen=True)
class Foundation:
    """The latency model of one operation, and what it rests on."""

    model: LatencyModel
    basis: Basis
