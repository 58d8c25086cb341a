"""Sizes to be avoided, whose latency jumps over their neighbours'; `pytest --dooly-model=… --dooly-suite=cliffs`.

Both neighbours of every edge are timed and kept in the latency DB; the table is in the terminal's summary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_dooly.simulation.predicted_model import PredictedModel
    from pytest_dooly.sweep.plan import Case


def test_neighbour(dooly_neighbour: Case, dooly_time: Callable[[Case], None]) -> None:
    """Times a matrix product at one side of an edge."""
    dooly_time(dooly_neighbour)


def test_cliffs(dooly_model: PredictedModel, dooly_cliffs: Callable[[PredictedModel], None]) -> None:
    """Looks where latencies jump; that they do is the device's nature, and fails nothing."""
    dooly_cliffs(dooly_model)
