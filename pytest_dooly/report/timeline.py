"""The steps of a simulation in bins of equal length, so that hundreds of thousands are drawn as fast as a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from pytest_dooly.scheduling.clock import StepRecord

__all__ = ["KV_BLOCKS", "STEP_TIME", "Timeline"]

Array = npt.NDArray[np.float64]

KV_BLOCKS, STEP_TIME = "KV blocks used", "step time, ms"

_BINS = 1000
"""Each more than a pixel wide."""


@dataclass(frozen=True)
class Timeline:
    """What an engine had to do over virtual time.

    Attributes:
        edges_s: of the bins, shape (bins + 1,).
        panels: by name, mean and maximum of each bin, shape (bins,); not a number where there is nothing.
        preempted_s: bins in which a request was thrown out.
    """

    edges_s: Array
    panels: Mapping[str, tuple[Array, Array]]
    preempted_s: Array

    @classmethod
    def of(cls, steps: Sequence[StepRecord]) -> Timeline:
        """Bins from the first step's beginning to the last one's end; steps of several engines in any order."""
        columns = ("begin_s", "latency_s", "num_waiting", "num_running", "used_blocks", "preempted")
        table = np.array([np.fromiter(map(attrgetter(name), steps), np.float64, len(steps)) for name in columns])
        begin_s, latency_s, waiting, running, blocks, preempted = table[:, np.argsort(table[0], kind="stable")]
        bins = _Bins(begin_s, begin_s + latency_s)
        panels = {
            "requests waiting": bins.of(waiting, idle=0.0),
            "requests running": bins.of(running, idle=0.0),
            KV_BLOCKS: bins.of(blocks, idle=0.0),
            STEP_TIME: bins.of(latency_s * 1e3, idle=np.nan),
        }
        _, most = bins.of(preempted, idle=0.0)
        return cls(bins.edges_s, panels, bins.edges_s[:-1][most > 0])


class _Bins:
    """Which steps begin in each bin; one in which none begins is that of a step under way, or idle."""

    def __init__(self, begin_s: Array, ends_s: Array) -> None:
        last_s = max(ends_s.max(), begin_s[0] + 1e-9)
        self.edges_s = np.linspace(begin_s[0], last_s, _BINS + 1)
        places = np.searchsorted(begin_s, self.edges_s)
        places[-1] = len(begin_s)  # a step without a length may begin at the very end
        counts = np.diff(places)
        self._filled = counts > 0
        self._starts, self._counts = places[:-1][self._filled], counts[self._filled]
        self._before = np.maximum(places[:-1] - 1, 0)
        self._busy = np.maximum.accumulate(ends_s)[self._before] > self.edges_s[:-1]

    def of(self, values: Array, *, idle: float) -> tuple[Array, Array]:
        """Mean and maximum of each bin."""
        mean = np.where(self._busy, values[self._before], idle)
        most = mean.copy()
        mean[self._filled] = np.add.reduceat(values, self._starts) / self._counts
        most[self._filled] = np.maximum.reduceat(values, self._starts)
        return mean, most
