"""More work is never predicted to take less time, beyond the stated error; `pytest --dooly-suite=monotone`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_dooly.simulation.predicted_model import PredictedModel


@pytest.mark.parametrize("what", ["tokens", "context", "requests"])
def test_monotone(dooly_model: PredictedModel, what: str) -> None:
    """Fails with a batch, shrunk, that is predicted to be faster with more in it."""
    from pytest_dooly.checking.monotone import faster_with_more

    faster = faster_with_more(dooly_model, what)
    if faster is not None:
        pytest.fail(f"{dooly_model.name}: {faster}", pytrace=False)
