"""Operation + SweepPoint -> samples: the clocks that a device's time is read from."""

from __future__ import annotations

import time

from pytest_dooly.engine.base import IsolatedCall

__all__ = ["HostClock", "rounds_for"]

_WARM_UP = 3
_MIN_ROUNDS, _MAX_ROUNDS = 15, 101
# Beyond this a case's median moves less than the machine's own noise.
_CASE_S = 0.4


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
    start = time.perf_counter()
    for _ in range(_WARM_UP):
        if call.before is not None:
            call.before()
        call.run()
    round_s = (time.perf_counter() - start) / _WARM_UP
    return max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(_CASE_S / round_s)))
