"""How long an operation is timed: until its median is known well enough; and how noisy the machine was meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from pytest_dooly.engine.base import Clock, IsolatedCall
from pytest_dooly.measurement import interval_of_median

__all__ = ["MOST_ROUNDS", "PRECISION", "Reference", "Settled", "warm_up"]

PRECISION = 0.02
"""Half the width of the median's 95 % confidence interval, relative to the median, at which rounds end."""

MOST_ROUNDS = 301
"""Rounds after which a case ends whatever its interval."""

_FEWEST = 7
"""Fewer rounds have no confidence interval worth the name."""

_CASE_S = 1.5
"""Seconds after which a case ends once it has the fewest rounds."""

_WARM_UP, _WARM_UP_S = 3, 0.5
"""Rounds of a warm-up, and seconds after which it ends."""


class Settled:
    """Whether a case has been timed enough, asked before every round."""

    def __init__(self, precision: float = PRECISION) -> None:
        """Starts the case's time.

        Args:
            precision: as PRECISION.
        """
        self._precision = precision
        self._start_s = time.perf_counter()

    def __call__(self, samples_s: Sequence[float]) -> bool:
        """Whether the samples so far are enough."""
        if len(samples_s) < _FEWEST:
            return False
        if time.perf_counter() - self._start_s > _CASE_S or len(samples_s) >= MOST_ROUNDS:
            return True
        interval = interval_of_median(samples_s)
        return interval is not None and interval[1] - interval[0] <= 2 * self._precision * statistics.median(samples_s)


class Reference:
    """An operation that is the same in every case, so that its spread is the machine's."""

    def __init__(self, clock: Clock, device: str) -> None:
        """Makes the operation.

        Args:
            clock: that cases are timed with.
            device: of torch.
        """
        self._clock = clock
        self._left = torch.ones(64, 512, device=device)
        self._right = torch.ones(512, 512, device=device)

    def samples_s(self, rounds: int = 5) -> list[float]:
        """Seconds of some rounds, after one that is not counted."""
        samples = []
        for _ in range(rounds + 1):
            start = self._clock.now()
            torch.mm(self._left, self._right)
            samples.append(self._clock.now() - start)
        return samples[1:]


def warm_up(call: IsolatedCall) -> None:
    """Runs a call as its rounds will, so that none of them is the first."""
    start_s = time.perf_counter()
    for _ in range(_WARM_UP):
        _once(call.before)
        call.run()
        if time.perf_counter() - start_s > _WARM_UP_S:
            return


def _once(function: Callable[[], object] | None) -> None:
    if function is not None:
        function()
