"""What a profiling run has done, kept beside what it measured: cases, time, and how noisy the machine was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_dooly.core.document import Document
from pytest_dooly.core.measurement import Measurement, relative_spread

__all__ = ["MachineNoise", "Profiled", "Share"]

_FEWEST = 5
"""Cases below which one that was disturbed would speak for the machine."""

_WIDTH = 1.96
"""Standard deviations of a normal distribution on either side that hold 95 % of it."""


@dataclass(frozen=True)
class MachineNoise:
    """How noisy a machine was while it timed cases, and what that does to their intervals.

    Attributes:
        spread: relative standard deviation of a reference operation from case to case, 0.05 for 5 %.
        precision: half the width of the median's 95 % interval as a case's own rounds have it, relative to the median;
            of the cases the median.
        waited_s: seconds spent on waiting for a calmer moment.
    """

    spread: float
    precision: float
    waited_s: float

    @classmethod
    def of(cls, levels_s: Sequence[float], outcomes: Sequence[Measurement], *, waited_s: float) -> MachineNoise | None:
        """The noise of a run; None for too few cases to know it from.

        Args:
            levels_s: of the reference beside each case, in seconds.
            outcomes: of the cases.
            waited_s: as in the attribute.
        """
        if len(levels_s) < _FEWEST or not outcomes:
            return None
        precision = statistics.median(outcome.precision for outcome in outcomes)
        return cls(relative_spread(levels_s), precision, waited_s)

    @property
    def reproducibility(self) -> float:
        """Half the width of a 95 % interval for the same case at another time: both add up as independent errors do."""
        return math.hypot(self.precision, _WIDTH * self.spread)


@dataclass(frozen=True)
class Profiled(Document):
    """What a run has done for one model.

    Attributes:
        timed: number of cases measured, by signature key.
        reused: number of cases whose measurement was in the latency DB, by signature key.
        spent_s: seconds that the run spent on timing its operations.
        saved_s: seconds that the reused cases had taken.
        machine: how noisy it was; None where nothing was timed.
    """

    timed: Mapping[str, int]
    reused: Mapping[str, int]
    spent_s: float
    saved_s: float
    machine: MachineNoise | None = None


@dataclass(frozen=True)
class Share(Document):
    """What one of the processes that share a run has done, its cases apart.

    Attributes:
        unneeded: number of cases that the sweeps turned out not to need.
        levels_s: of a reference operation beside each case, in seconds.
        waited_s: seconds spent on waiting for a calmer moment.
    """

    unneeded: int
    levels_s: tuple[float, ...]
    waited_s: float

    @property
    def levels(self) -> list[float]:
        """Of the reference, relative to the process's usual one: one accelerator is faster than another."""
        usual_s = statistics.median(self.levels_s or (0.0,))
        return [level_s / usual_s if usual_s else 0.0 for level_s in self.levels_s]
