"""What a fitted regressor says, and how it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.errors import DocumentError
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.sweep.grid import sweep
from tests.regress.test_fit import attention, roofline
from tests.samples import (
    ADMISSION,
    ATTENTION,
    LIMITS,
    LINEAR,
    MIXTURE,
    SAMPLER,
    STEP,
    TOKENS,
    fitted,
    measured,
)


@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, ATTENTION, MIXTURE, STEP, ADMISSION])
def test_a_regressor_is_json(signature: Signature) -> None:
    points = sweep(signature, LIMITS)
    regressor = fit(signature, {point: measured(1e-5 * (i + 1)) for i, point in enumerate(points)})
    again = Regressor.from_json(json.loads(json.dumps(regressor.to_json())))
    assert again == regressor
    assert (again.predict_s(points) == regressor.predict_s(points)).all()


def test_arrays_and_points_are_predicted_alike() -> None:
    regressor = fitted(ATTENTION, attention, sweep(ATTENTION, LIMITS))
    batches = [Batch.parse(text) for text in ("3x1+32,61", "1+5", "8x1+700", "200+100,1+3")]
    requests = [request for batch in batches for request in batch.requests]
    starts = np.cumsum([0, *(batch.num_reqs for batch in batches)])[:-1]
    work = Work.of_batches([r.query_len for r in requests], [r.context_len for r in requests], starts)
    assert regressor.predict_s(work) == pytest.approx(regressor.predict_s([SweepPoint(batch=b) for b in batches]))
    assert regressor.predict_s([]).shape == (0,)


def test_out_of_range_says_what_and_how_far() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert regressor.out_of_range(SweepPoint(num_tokens=512)) is None
    line = regressor.out_of_range(SweepPoint(num_tokens=4096))
    assert line is not None
    assert "4,096" in line
    assert "512" in line
    assert regressor.out_of_range(Work.of_sizes([64, 4096, 1024])) == line
    assert regressor.out_of_range(Work.of_sizes([1, 64, 512])) is None
    assert regressor.predict_s([SweepPoint(num_tokens=4096)])[0] >= regressor.predict_s([SweepPoint(num_tokens=512)])[0]


def test_beyond_the_range_the_last_slope_goes_on() -> None:
    regressor = fitted(LINEAR, roofline, TOKENS)
    assert regressor.predict_s([SweepPoint(num_tokens=2048)])[0] == pytest.approx(2048 * 10e-6, rel=0.1)


@pytest.mark.parametrize(
    "damage",
    [
        {"intercept": -1.0},
        {"intercept": math.inf},
        {"features": ["tokens of luck"]},
        {"features": [], "knots": [], "coefficients": [], "ranges": []},
        {"coefficients": []},
        {"coefficients": [[1.0, 2.0]]},
        {"coefficients": [[-1.0]]},
        {"ranges": []},
    ],
)
def test_a_document_that_no_fit_can_have_made_is_refused(damage: Mapping[str, Any]) -> None:
    document = fit(LINEAR, {point: measured(1e-3) for point in TOKENS[:2]}).to_json()
    assert Regressor.from_json(document).num_points == 2
    with pytest.raises(DocumentError, match="a kept Regressor cannot be read"):
        Regressor.from_json({**document, **damage})
