"""One case per figure and operation that the gate judges; `pytest --dooly-model=… --dooly-gate` fills them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_dooly.plugin.gate import DriftCase


def test_drift(dooly_drift_case: DriftCase, dooly_judge: Callable[[DriftCase], None]) -> None:
    """Fails where the figure or the operation has become slower than it may, or nothing can be said."""
    dooly_judge(dooly_drift_case)
