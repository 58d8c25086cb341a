"""Between what a simulation's latencies lie nine times out of ten, where steps may be faster or slower than predicted.

Where requests come at times of their own, a queue does not grow in proportion: near capacity, steps that take a tenth
longer make requests wait many times as long. Steps that take f times as long are the same simulation on a slower clock,
of requests that come f times as fast as that clock has it; so both ends are simulated, with step times at both ends of
their interval. Latencies lie between those, and at least within what is known of the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dooly.core.traffic import Traffic
from pytest_dooly.prediction.interval import Figure
from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.simulation.simulate import Simulation
from pytest_dooly.simulation.summary import PERCENTILES, overloaded, summary

__all__ = ["Within", "within"]

_METRICS = ("ttft", "tpot", "e2el")

_STATISTICS = ("mean", "median", *(f"p{each}" for each in PERCENTILES))


@dataclass(frozen=True)
class Within:
    """What the latencies of some traffic lie between.

    Attributes:
        low_ms: by key of the summary, as in `p99_ttft_ms`.
        high_ms: likewise.
        may_overload: whether requests come faster than they are served, where steps take as long as they may.
    """

    low_ms: Mapping[str, float]
    high_ms: Mapping[str, float]
    may_overload: bool

    def document(self) -> dict[str, float]:
        """By keys beside those of the summary: `p99_ttft_low_ms`, `p99_ttft_high_ms`."""
        ends = {"low": self.low_ms, "high": self.high_ms}
        return {f"{key.removesuffix('_ms')}_{end}_ms": ms for end, of in ends.items() for key, ms in of.items()}


def within(simulation: Simulation, widths: Mapping[Figure, float], *, stage: int | None = None) -> Within:
    """Between what every mean and percentile lies; takes two more simulations where requests come in their own time.

    Args:
        simulation: of some traffic.
        widths: half the width of the interval around each figure, as `log_width` has it; a step's is TPOT's.
        stage: whose requests count; all where it is None.
    """
    simulated, again = simulation.simulated, simulation.again
    slower = math.exp(widths["tpot"])
    middle = _latencies_ms(simulated, stage)
    fast = slow = middle
    may_overload = False
    if again is not None and _in_their_own_time(simulated.traffic):
        loaded = again(1 / slower)
        fast, slow = _latencies_ms(again(slower), stage, 1 / slower), _latencies_ms(loaded, stage, slower)
        may_overload = overloaded(loaded) is not None or _beyond(simulation, slower)
    first = middle["mean_ttft_ms"] / middle["mean_e2el_ms"]  # of a request's time, that its first token takes
    of_metric = {
        "ttft": widths["ttft"],
        "tpot": widths["tpot"],
        "e2el": first * widths["ttft"] + (1 - first) * widths["tpot"],
    }
    factors = {key: math.exp(of_metric[key.split("_")[1]]) for key in middle}
    return Within(
        {key: min(ms / factors[key], fast[key]) for key, ms in middle.items()},
        {key: max(ms * factors[key], slow[key]) for key, ms in middle.items()},
        may_overload,
    )


def _beyond(simulation: Simulation, slower: float) -> bool:
    """Whether requests come faster than they are served with room for no more, where a queue takes long to show it."""
    return simulation.most is not None and simulation.simulated.traffic.offered_rate * slower > simulation.most()


def _in_their_own_time(traffic: Traffic) -> bool:
    """Whether arrivals do not follow from how fast requests are served."""
    return any(request.arrival_s for request in traffic.requests)


def _latencies_ms(simulated: Simulated, stage: int | None, factor: float = 1.0) -> dict[str, float]:
    """Every mean and percentile, so many times as long; TPOT is missing where all outputs have one token."""
    document: dict[str, Any] = summary(simulated, stage=stage)
    keys = [f"{statistic}_{metric}_ms" for metric in _METRICS for statistic in _STATISTICS]
    return {key: factor * document[key] for key in keys if document[key] is not None}
