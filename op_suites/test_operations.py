"""One case per operation signature and sweep point; `pytest --dooly-model=…` fills them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_dooly.sweep.plan import Case


def test_op(dooly_case: Case, dooly_time: Callable[[Case], None]) -> None:
    """Times the operation; what it took, or why it could not be timed, is in the latency DB when this returns."""
    dooly_time(dooly_case)
