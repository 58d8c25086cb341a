"""Operation + SweepPoint -> samples: the clocks that a device's time is read from."""

from __future__ import annotations

import time

from pytest_dooly.engine.base import IsolatedCall

__all__ = ["HostClock", "rounds_for"]

_WARM_UP = 3
_FEWEST, _FEW, _MOST = 5, 15, 101
"""Rounds of a case: the fewest ever, the fewest while they are quick, and the most."""

_WARM_UP_S, _CASE_S, _SLOW_CASE_S = 0.5, 0.4, 2.0
"""Seconds after which a warm-up ends, that quick rounds may fill, and that few rounds may take."""


class HostClock:
    """The host's monotonic clock, which can be stopped while something runs that is not to be counted."""

    def __init__(self) -> None:
        self._stopped_s = 0.0
        self._stopped_at = 0.0
        self._depth = 0

    def now(self) -> float:
        """Seconds that the clock has been running."""
        return time.perf_counter() - self._stopped_s

    def pause(self) -> None:
        """Stops the clock; pauses may nest."""
        if self._depth == 0:
            self._stopped_at = time.perf_counter()
        self._depth += 1

    def resume(self) -> None:
        """Lets the clock go on."""
        self._depth -= 1
        if self._depth == 0:
            self._stopped_s += time.perf_counter() - self._stopped_at


def rounds_for(call: IsolatedCall) -> int:
    """How many rounds fit into a case's time, after a warm-up that finds out what one takes.

    Args:
        call: the operation, ready to be timed.
    """
    start, done, spent_s = time.perf_counter(), 0, 0.0
    while done < _WARM_UP and spent_s < _WARM_UP_S:
        if call.before is not None:
            call.before()
        call.run()
        done, spent_s = done + 1, time.perf_counter() - start
    round_s = spent_s / done
    return max(_FEWEST, min(_FEW, int(_SLOW_CASE_S / round_s)), min(_MOST, int(_CASE_S / round_s)))
