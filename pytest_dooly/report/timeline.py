"""The steps of a simulation in bins of equal length, so that hundreds of thousands are drawn as fast as a few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from pytest_dooly.scheduling.clock import StepRecord

__all__ = ["KV_BLOCKS", "RUNNING", "STEP_TIME", "WAITING", "Timeline"]

Array = npt.NDArray[np.float64]

WAITING, RUNNING, KV_BLOCKS, STEP_TIME = "requests left waiting", "requests running", "KV blocks used", "step time, ms"

_BINS = 1000
"""Each more than a pixel wide."""


@dataclass(frozen=True)
class Timeline:
    """What engines had to do over virtual time.

    Attributes:
        edges_s: of the bins, shape (bins + 1,).
        panels: by name, mean and maximum of each bin, shape (bins,); not a number where there is nothing. Counts are
            sums over the engines, the maximum the sum of each one's.
        preempted_s: bins in which a request was thrown out.
        num_engines: replicas that ran a step.
    """

    edges_s: Array
    panels: Mapping[str, tuple[Array, Array]]
    preempted_s: Array
    num_engines: int = 1

    @classmethod
    def of(cls, steps: Sequence[StepRecord]) -> Timeline:
        """Bins from the first step's beginning to the last one's end; steps of several engines in any order."""
        columns = ("begin_s", "latency_s", "num_waiting", "num_running", "used_blocks", "preempted", "engine")
        table = np.array([np.fromiter(map(attrgetter(name), steps), np.float64, len(steps)) for name in columns])
        table = table[:, np.argsort(table[0], kind="stable")]
        begin_s, latency_s, *_, preempted, engine = table
        ends_s = begin_s + latency_s
        edges_s = np.linspace(begin_s[0], max(ends_s.max(), begin_s[0] + 1e-9), _BINS + 1)
        engines = [table[:, engine == number] for number in np.unique(engine)]
        bins = [_Bins(each[0], each[0] + each[1], edges_s) for each in engines]
        panels = {
            name: _summed(of.of(each[row], idle=0.0) for of, each in zip(bins, engines, strict=True))
            for row, name in enumerate((WAITING, RUNNING, KV_BLOCKS), 2)
        }
        together = _Bins(begin_s, ends_s, edges_s)
        panels[STEP_TIME] = together.of(latency_s * 1e3, idle=np.nan)
        _, most = together.of(preempted, idle=0.0)
        return cls(edges_s, panels, edges_s[:-1][most > 0], len(engines))


def _summed(engines: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Means and maxima of all engines together."""
    means, maxima = zip(*engines, strict=True)
    return np.sum(means, axis=0), np.sum(maxima, axis=0)


class _Bins:
    """Which steps begin in each bin; one in which none begins is that of a step under way, or idle."""

    def __init__(self, begin_s: Array, ends_s: Array, edges_s: Array) -> None:
        places = np.searchsorted(begin_s, edges_s)
        places[-1] = len(begin_s)  # a step without a length may begin at the very end
        counts = np.diff(places)
        self._filled = counts > 0
        self._starts, self._counts = places[:-1][self._filled], counts[self._filled]
        self._before = np.maximum(places[:-1] - 1, 0)
        under_way = np.maximum.accumulate(ends_s)[self._before] > edges_s[:-1]
        self._busy = under_way & (places[:-1] > 0)  # before its first step an engine is idle

    def of(self, values: Array, *, idle: float) -> tuple[Array, Array]:
        """Mean and maximum of each bin."""
        mean = np.where(self._busy, values[self._before], idle)
        most = mean.copy()
        mean[self._filled] = np.add.reduceat(values, self._starts) / self._counts
        most[self._filled] = np.maximum.reduceat(values, self._starts)
        return mean, most
