"""The highest rate of a traffic that is kept up with, found by simulating the same requests at other rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pytest_dooly.core.traffic import Traffic
from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.summary import overloaded

__all__ = ["full_rate", "served_rate", "sustainable_rate"]

_MOST, _CLOSE = 8, 0.02
"""Simulations, and how near to a rate that is too high the one that is told may be before they are used up."""

_STEP = 1.25
"""From one rate to the next, until one that is kept up with and one that is not are known."""

_MOST_AT_ONCE = 2048
"""Requests that `full_rate` has under way at most in an engine: twice what vLLM takes by default on any GPU."""


def sustainable_rate(simulated: Simulated, again: Callable[[float], Simulated], most: float = math.inf) -> float | None:
    """Requests per second up to which a traffic is kept up with; None where it is, or where no rate tried is.

    The times of arrival are stretched, so that every rate meets the same requests in the same order: what differs
    between two of them is the rate alone. The search begins at what was served, and halves what is left. A queue that
    grows slowly does not show in a short run: where fewer were served than came, the rate of those is told.

    Args:
        simulated: the traffic as it came, without a bound of concurrency.
        again: simulates it at so many times its times.
        most: requests per second that are not exceeded, `full_rate`: too few requests end before a queue begins.
    """
    served, offered = overloaded(simulated), simulated.traffic.offered_rate
    if served is None or math.isinf(offered):
        return None
    high, low, kept = min(offered, most), 0.0, 0.0
    rate = min(served, high)
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


def full_rate(deployment: Deployment, traffic: Traffic) -> float:
    """Requests per second that are served where there is room for no more: no higher rate is kept up with for long.

    As many as fit half-way through their output are under way, the first of them at every stage of it, and one comes
    whenever one ends; the second as many are counted as they are admitted. One simulation says so, where a queue that
    grows slowly takes tens of thousands of requests to show.

    Args:
        deployment: that serves them.
        traffic: whose requests they are, repeated as often as it takes.
    """
    at_once = _room(deployment, traffic)
    copies = replace(traffic, rates=()).repeated(math.ceil((2 * at_once + 1) / len(traffic.requests)))
    requests = list(copies.requests[: 2 * at_once + 1])
    for place in range(at_once):
        left = max(round(requests[place].output_len * (place + 0.5) / at_once), 1)
        requests[place] = replace(requests[place], output_len=left)
    alone = replace(deployment, replicas=1)
    (simulated,) = alone.simulate(replace(copies, requests=requests, concurrency=at_once).stretched(0.0))
    admitted_s = np.sort(simulated.scheduled_s)
    lasts_s = float(admitted_s[2 * at_once] - admitted_s[at_once])
    return deployment.replicas * at_once / lasts_s if lasts_s else math.inf


def _room(deployment: Deployment, traffic: Traffic) -> int:
    """Requests half-way through their output that seats and KV blocks hold at once, whatever they share."""
    options = deployment.options
    tokens = float(np.mean([request.prompt_len + request.output_len / 2 for request in traffic.requests]))
    return max(options.engines * int(min(options.limits.max_num_seqs, options.held(tokens), _MOST_AT_ONCE)), 2)
