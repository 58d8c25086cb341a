"""Clocks that a device's time is read from, behind one interface; see `Clock`."""

from __future__ import annotations

import time

__all__ = ["HostClock"]


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
