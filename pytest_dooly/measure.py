"""How many rounds an operation is timed for."""

from __future__ import annotations

import time

from pytest_dooly.engine.base import IsolatedCall

__all__ = ["rounds_for"]

_WARM_UP = 3
_FEWEST, _FEW, _MOST = 5, 15, 101
"""Rounds of a case: the fewest ever, the fewest while they are quick, and the most."""

_WARM_UP_S, _CASE_S, _SLOW_CASE_S = 0.5, 0.4, 2.0
"""Seconds after which a warm-up ends, that quick rounds may fill, and that few rounds may take."""


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
