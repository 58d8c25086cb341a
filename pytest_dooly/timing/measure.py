"""How long an operation is timed: until its median is known well enough; and how noisy the machine was meanwhile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pytest_dooly.core.measurement import interval_of_median, relative_spread
from pytest_dooly.engine.base import Clock, IsolatedCall

__all__ = [
    "MOST_ROUNDS",
    "PRECISION",
    "WARM_UP",
    "Reference",
    "Settled",
    "rounds_by",
    "samples_of",
    "time_rounds",
    "warm_up",
]

PRECISION = 0.02
"""Half the width of the median's 95 % confidence interval, relative to the median, at which rounds end."""

MOST_ROUNDS = 301
"""Rounds after which a case ends whatever its interval."""

_FEWEST = 7
"""Fewer rounds have no confidence interval worth the name."""

_CASE_S = 1.5
"""Seconds after which a case ends once it has the fewest rounds."""

_USUAL, _RECENT, _SLOW = 5, 15, 1.2
"""Cases after which it is known how fast the machine usually is, cases that say how fast it is of late, and how many
times as long is slow: what lasts for longer than these cases is no spell, and not waited for."""

_LONGEST_WAIT_S, _PAUSE_S = 3.0, 0.1
"""Seconds that a case waits for a machine that is slowed down, at most and between two looks."""

_WAITED_SHARE = 0.1
"""Of the time that a run has spent timing, that all its waiting together may take."""

WARM_UP, _WARM_UP_S = 3, 0.5
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
    """An operation that is the same in every case, so that what becomes of it is the machine's doing.

    Attributes:
        levels_s: its median beside every case so far, in seconds.
        waited_s: seconds that cases have waited for calm, all together.
    """

    def __init__(self, clock: Clock, device: str) -> None:
        """Makes the operation.

        Args:
            clock: that cases are timed with.
            device: of torch.
        """
        self.levels_s: list[float] = []
        self.waited_s = 0.0
        self._clock = clock
        self._left = torch.ones(64, 512, device=device)
        self._right = torch.ones(512, 512, device=device)

    def samples_s(self, rounds: int = 5) -> list[float]:
        """Seconds of some rounds, after one that is not counted."""
        return samples_of(lambda: torch.mm(self._left, self._right), self._clock, rounds)

    def await_calm(self, spent_s: float = math.inf) -> None:
        """Waits while something else slows the machine down, until it is as fast as of late or a limit is reached.

        Such a spell lasts for a second or so, as long as a case, which would show none of it in its spread. What is
        permanent is no spell: the level is that of the last cases, and all waiting together has a budget.

        Args:
            spent_s: seconds that the run has spent so far, waiting included.
        """
        if len(self.levels_s) < _USUAL:
            return
        left_s = min(_LONGEST_WAIT_S, _WAITED_SHARE * (spent_s - self.waited_s) - self.waited_s)
        usual_s = statistics.median(self.levels_s[-_RECENT:])
        if left_s < _PAUSE_S:  # no use in beginning
            return
        while left_s > 0 and statistics.median(self.samples_s()) > _SLOW * usual_s:
            start_s = time.perf_counter()
            time.sleep(_PAUSE_S)
            waited_s = time.perf_counter() - start_s
            self.waited_s += waited_s
            left_s -= waited_s

    def note(self, samples_s: Sequence[float]) -> float:
        """Keeps the level beside a case; returns its noise, the spread of the samples or what sets them off the usual.

        Args:
            samples_s: of the reference, from before and after the case's rounds.
        """
        level_s = statistics.median(samples_s)
        self.levels_s.append(level_s)
        usual_s = statistics.median(self.levels_s)
        return max(relative_spread(samples_s), abs(level_s / usual_s - 1) if usual_s else 0.0)


def samples_of(call: Callable[[], object], clock: Clock, rounds: int) -> list[float]:
    """Seconds of some rounds of a call, after one that is not counted."""
    samples = []
    for _ in range(rounds + 1):
        start = clock.now()
        call()
        samples.append(clock.now() - start)
    return samples[1:]


def time_rounds(call: IsolatedCall, now: Callable[[], Any], enough: Callable[[Sequence[float]], bool]) -> list[float]:
    """Seconds of every round, until they are enough; what pytest-benchmark does for a case.

    Args:
        call: what is timed.
        now: reads the clock; the difference of two readings is in seconds.
        enough: asked before every round, with the samples so far.
    """
    samples_s: list[float] = []
    while not enough(samples_s):
        call.before()
        start = now()
        call.run()
        samples_s.append(now() - start)
    return samples_s


def rounds_by(now: Callable[[], Any]) -> Callable[..., list[float]]:
    """What runs the rounds of a case where pytest-benchmark does not, as `Profiling.time` asks for them.

    Args:
        now: as of `time_rounds`.
    """

    def rounds(
        run: Callable[[], object], before: Callable[[], None], enough: Callable[[Sequence[float]], bool], _: int
    ) -> list[float]:
        return time_rounds(IsolatedCall(run, before), now, enough)

    return rounds


def warm_up(call: IsolatedCall, rounds: int = WARM_UP) -> None:
    """Runs a call as its rounds will, so that none of them is the first.

    Args:
        call: what is timed.
        rounds: how often, unless that takes long.
    """
    start_s = time.perf_counter()
    for _ in range(rounds):
        call.before()
        call.run()
        if time.perf_counter() - start_s > _WARM_UP_S:
            return
