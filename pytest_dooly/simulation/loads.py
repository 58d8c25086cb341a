"""Loads from light to just below what a server sustains, as far as the simulation knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pytest_dooly.core.traffic import Traffic
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.simulation.arrivals import AT_ONCE, Arrivals
from pytest_dooly.simulation.synthetic import SyntheticTraffic

__all__ = ["SHARES", "PlannedLoad", "capacity", "planned"]

SHARES = (0.3, 0.6, 0.85)
"""Of the capacity: light, busy, and just below it."""

_FULL_STEPS = 4
"""Times as many requests as a step takes show the capacity: few of them run beside an empty queue."""

_FEWEST = 10
"""Requests of a load."""


@dataclass(frozen=True)
class PlannedLoad:
    """Requests to be sent.

    Attributes:
        traffic: drawn.
        rate: requests per second.
        shared: whether prompts share their beginnings.
        capacity: requests per second that the simulation sustains.
    """

    traffic: Traffic
    rate: float
    shared: bool
    capacity: float


def capacity(
    law: SyntheticTraffic, simulated: Callable[[Traffic], Simulated], max_num_seqs: int, *, seed: int
) -> float:
    """Requests per second that are served where enough of them arrive at once.

    Args:
        law: of the requests; its arrivals do not matter.
        simulated: serves traffic.
        max_num_seqs: most requests of a step.
        seed: of the draw.
    """
    number = _FULL_STEPS * max_num_seqs
    return number / float(simulated(_drawn(law, AT_ONCE, number, seed)).last_s.max())


def planned(
    law: SyntheticTraffic,
    simulated: Callable[[Traffic], Simulated],
    max_num_seqs: int,
    *,
    rates: tuple[float, ...] = (),
    seconds: float,
    seed: int = 0,
    arrivals: str = "poisson",
) -> list[PlannedLoad]:
    """Every rate with prompts that share their beginnings, and with prompts as long that share nothing.

    Args:
        law: of the requests, with a shared prefix.
        simulated: serves traffic.
        max_num_seqs: most requests of a step.
        rates: in requests per second; those that are SHARES of the capacity where there is none.
        seconds: in which the requests of a load arrive; longer where that makes fewer than 10.
        seed: of the draw.
        arrivals: as of `Arrivals.parse`.

    Raises:
        ConfigurationError: a request is longer than max_model_len.
    """
    loads = []
    for shared in (True, False):

        def served(traffic: Traffic, shared: bool = shared) -> Simulated:
            return simulated(traffic if shared else without_sharing(traffic))

        sustained = capacity(law, served, max_num_seqs, seed=seed)
        for rate in rates or [share * sustained for share in SHARES]:
            traffic = _drawn(law, Arrivals.parse(repr(rate), arrivals), max(_FEWEST, round(rate * seconds)), seed)
            loads.append(PlannedLoad(traffic if shared else without_sharing(traffic), rate, shared, sustained))
    return loads


def without_sharing(traffic: Traffic) -> Traffic:
    """Requests as long, at the same times, of which no two have anything in common."""
    return replace(traffic, requests=tuple(replace(request, segments=()) for request in traffic.requests))


def _drawn(law: SyntheticTraffic, arrivals: Arrivals, number: int, seed: int) -> Traffic:
    if law.prefix is None:
        raise ConfigurationError("loads with and without sharing need a shared prefix, as in 4x8x256")
    return replace(law, arrivals=arrivals).draw(seed, num_requests=number)
