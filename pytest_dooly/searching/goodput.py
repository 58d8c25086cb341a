"""The highest rate that meets an objective, found by bisection on one simulation after the other.

Every rate meets the same requests in the same order, with their times of arrival stretched: what differs between two
rates is the rate alone (common random numbers), so that latencies nearly always grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.searching.objective import Objective
from pytest_dooly.simulation.summary import overloaded
from pytest_dooly.simulation.sustained import served_rate

__all__ = ["Curve", "Load", "Range"]

_OVERLOAD = 2.0
"""Multiple of a bound that a growing queue stands for at least: without an end it would be any."""

_MOST_FALLS, _MOST_RAISES = 8, 12
"""From where a search begins, until a rate that meets the objective, and one that does not, are known."""

_RAISE = 1.5

_LEAST_FALL, _MOST_FALL = 1.2, 3.0

_NEAREST = 0.15
"""Share of what is left between two rates that the next one keeps away from either."""


@dataclass(frozen=True)
class Load:
    """What a rate comes to.

    Attributes:
        rate: requests per second that arrive.
        served: requests per second from the first to the last; a queue that grows slowly makes it the smaller one.
        ratios: each bound's statistic as a multiple of the bound.
        queue_grows: whether the engine does not keep up.
        simulated: every request.
    """

    rate: float
    served: float
    ratios: tuple[float, ...]
    queue_grows: bool
    simulated: Simulated

    @property
    def at_once(self) -> float:
        """Requests under way in the mean, once as many end as arrive."""
        return self.rate * float(self.simulated.latency_s.mean())

    def worst(self, slack: tuple[float, ...]) -> float:
        """By what factor the objective is missed; at most 1 where it is met.

        Args:
            slack: factor that each bound is wider by.
        """
        ratio = max(ratio / wide for ratio, wide in zip(self.ratios, slack, strict=True))
        return max(ratio, _OVERLOAD) if self.queue_grows else ratio


@dataclass(frozen=True)
class Range:
    """Two rates that the highest one which meets an objective lies between.

    Attributes:
        met: at the lower one; None where none meets it.
        missed: at the higher one; None where every rate that was tried meets it.
    """

    met: Load | None
    missed: Load | None


class Curve:
    """Loads by rate, each simulated once, whatever they are compared with."""

    def __init__(
        self,
        simulate: Callable[[float], Simulated],
        objective: Objective,
        *,
        most: float = math.inf,
        known: Iterable[Load] = (),
    ) -> None:
        """Nothing is simulated yet.

        Args:
            simulate: the same requests at a rate.
            objective: that they are compared with.
            most: rate beyond which none is tried: a short run does not show that an engine cannot keep up with it.
            known: loads that need not be simulated again.
        """
        self._simulate, self._objective, self._most = simulate, objective, most
        self._loads = {load.rate: load for load in known}
        self._given = len(self._loads)

    @property
    def simulations(self) -> int:
        """How many there were."""
        return len(self._loads) - self._given

    def at(self, rate: float) -> Load:
        """What a rate comes to."""
        if rate not in self._loads:
            simulated = self._simulate(rate)
            served = min(rate, served_rate(simulated))
            ratios = self._objective.ratios(simulated)
            self._loads[rate] = Load(rate, served, ratios, overloaded(simulated) is not None, simulated)
        return self._loads[rate]

    def highest(self, start: float, slack: tuple[float, ...], tolerance: float) -> Range:
        """The highest rate that meets the objective.

        Args:
            start: rate to begin at, where none is known yet.
            slack: factor that each bound is wider by.
            tolerance: by which the two rates may differ, 0.03 for 3 %.
        """
        known = self._known(slack)
        for _ in range(_MOST_FALLS):
            if known.met is not None:
                break
            self.at(
                min(start, self._most)
                if known.missed is None
                else known.missed.rate / _step_down(known.missed.worst(slack))
            )
            known = self._known(slack)
        for _ in range(_MOST_RAISES):
            if known.missed is not None or known.met is None or known.met.rate >= self._most:
                break
            self.at(min(known.met.rate * _RAISE, self._most))
            known = self._known(slack)
        halve = False
        while known.met and known.missed and known.missed.rate > (1 + tolerance) * known.met.rate:
            self.at(_between(known.met, known.missed, slack, halve=halve))
            known, halve = self._known(slack), not halve
        return known

    def _known(self, slack: tuple[float, ...]) -> Range:
        """The lowest rate that missed, and the highest one below that met."""
        loads = sorted(self._loads.values(), key=lambda load: load.rate)
        missed = next((load for load in loads if load.worst(slack) > 1), None)
        met = [load for load in loads if missed is None or load.rate < missed.rate]
        return Range(met[-1] if met else None, missed)


def _step_down(worst: float) -> float:
    """By how much to lower a rate that misses by a factor, with nothing known below."""
    return min(max(worst, _LEAST_FALL), _MOST_FALL)


def _between(met: Load, missed: Load, slack: tuple[float, ...], *, halve: bool) -> float:
    """Half-way, or where a straight line in logarithms meets the bound, not too near to either end.

    Taking turns, what is left is halved at the latest by every second one, however crooked latencies are.
    """
    low, high = math.log(max(met.worst(slack), 1e-3)), math.log(missed.worst(slack))
    share = 0.5 if halve or high <= low else -low / (high - low)
    share = min(max(share, _NEAREST), 1 - _NEAREST)
    return met.rate * (missed.rate / met.rate) ** share
