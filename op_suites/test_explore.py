"""Points where regressors are most wrong, timed and kept; `pytest --dooly-model=… --dooly-explore=MINUTES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_dooly.core.signature import ModelOperation, ServedModel


def test_explore(
    dooly_explored: tuple[ServedModel, ModelOperation],
    dooly_explore: Callable[[ServedModel, ModelOperation], None],
) -> None:
    """Times points of one operation for its share of the minutes; what they took is in the latency DB."""
    dooly_explore(*dooly_explored)
