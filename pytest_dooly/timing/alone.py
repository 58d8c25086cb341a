"""An operation isolated in a session and timed for some rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.signature import ModelOperation
from pytest_dooly.engine.base import Session
from pytest_dooly.timing.clock import Clocks
from pytest_dooly.timing.measure import WARM_UP, time_rounds, warm_up

__all__ = ["time_alone"]


def time_alone(
    session: Session,
    operation: ModelOperation,
    point: SweepPoint,
    clocks: Clocks,
    enough: Callable[[Sequence[float]], bool],
    *,
    warm_up_rounds: int = WARM_UP,
) -> list[float]:
    """Seconds of every round of an operation alone.

    Args:
        session: that holds the operation.
        operation: to be timed.
        point: at which.
        clocks: that operations are timed with.
        enough: asked before every round, with the samples so far.
        warm_up_rounds: rounds before, which are not counted.

    Raises:
        Exception: whatever the operation raises.
    """
    clock = clocks.of(operation.signature)
    with session.isolate(operation, point, clock) as isolated:
        call = clocks.ready(operation.signature, isolated)
        warm_up(call, warm_up_rounds)
        return time_rounds(call, clock.now, enough)
