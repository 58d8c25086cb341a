"""The highest rate of a traffic that is kept up with, found by simulating the same requests at other rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.simulation.summary import overloaded

__all__ = ["served_rate", "sustainable_rate"]

_MOST, _CLOSE = 8, 0.02
"""Simulations, and how near to a rate that is too high the one that is told may be before they are used up."""

_STEP = 1.25
"""From one rate to the next, until one that is kept up with and one that is not are known."""


def sustainable_rate(simulated: Simulated, again: Callable[[float], Simulated]) -> float | None:
    """Requests per second up to which a traffic is kept up with; None where it is, or where no rate tried is.

    The times of arrival are stretched, so that every rate meets the same requests in the same order: what differs
    between two of them is the rate alone. The search begins at what was served, and halves what is left. A queue that
    grows slowly does not show in a short run: where fewer were served than came, the rate of those is told.

    Args:
        simulated: the traffic as it came, without a bound of concurrency.
        again: simulates it at so many times its times.
    """
    served, high = overloaded(simulated), simulated.traffic.offered_rate
    if served is None or math.isinf(high):
        return None
    offered, low, kept, rate = high, 0.0, 0.0, served
    for _ in range(_MOST):
        tried = again(offered / rate)
        if overloaded(tried) is None:
            low, kept = rate, min(rate, served_rate(tried))
        else:
            high = rate
        if high - low <= _CLOSE * high:
            break
        rate = min((low + high) / 2, _STEP * low) if low else high / _STEP
    return kept or None


def served_rate(simulated: Simulated) -> float:
    """Requests per second from the first to the last; what one takes that waits for none is nobody's queue."""
    lasts_s = float(simulated.last_s.max() - simulated.sent_s.min())
    return len(simulated.sent_s) / (lasts_s - float(np.percentile(simulated.latency_s, 5)))
