"""No workload within the model's limits breaks the SLO, in prediction; `pytest --dooly-model=… --dooly-slo=…`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_dooly.searching.objective import Objective
    from pytest_dooly.simulation.predicted_model import PredictedModel


def test_slo(dooly_model: PredictedModel, dooly_slo: Objective) -> None:
    """Fails with the smallest workload that breaks the SLO: fewest requests, then the shortest prompt and output."""
    from pytest_dooly.checking.slo import smallest_that_breaks

    broken = smallest_that_breaks(dooly_model, dooly_slo)
    if broken is not None:
        pytest.fail(f"{dooly_model.name}: {broken}", pytrace=False)
