"""How far a form that a simulator computes with is from the step times that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Deviation"]


@dataclass(frozen=True)
class Deviation:
    """Relative to what it stands for.

    Attributes:
        mean: of the absolute values.
        worst: the largest absolute value.
        bias: mean of the signed values, above 0 where the form is slower.
        points: how many were compared.
    """

    mean: float
    worst: float
    bias: float
    points: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> Deviation:
        """Of what the form says and what it stands for, in pairs of seconds; no deviation where there are none."""
        pairs = list(pairs)
        if not pairs:
            return cls(0.0, 0.0, 0.0, 0)
        form, exact = np.array(pairs, dtype=np.float64).T
        relative = form / exact - 1
        absolute = np.abs(relative)
        return cls(float(absolute.mean()), float(absolute.max()), float(relative.mean()), len(relative))

    def __str__(self) -> str:
        return f"{self.mean:.1%} in the mean ({self.bias:+.1%} with its sign), {self.worst:.1%} at the worst"
