"""How much of a step rests on what."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.signature import Signature
from pytest_dooly.prediction.shares import shares_of
from pytest_dooly.prediction.step import OperationLatency, StepPrediction
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.estimate import Estimate
from tests.samples import ADMISSION, served, uses
from tests.traced import (
    BETWEEN,
    DEVICE,
    KNOWN,
    NORM,
    TIMED,
)


def founded(kind: BasisKind, error: float | None) -> Foundation:
    return Foundation(Estimate(NORM, DEVICE), Basis(kind, 1, (), error))


def step_of(latencies_s: Mapping[Signature, float]) -> StepPrediction:
    operations = tuple(OperationLatency(each.label, each.kind, 1, latency_s) for each, latency_s in latencies_s.items())
    return StepPrediction(Batch.uniform(1, 1), operations)


def test_shares_add_up_to_one_and_errors_count_by_latency() -> None:
    model = served(*map(uses, (TIMED, KNOWN, BETWEEN, NORM, ADMISSION)))
    foundations = {
        TIMED.key: founded("measured", 0.01),
        KNOWN.key: founded("published", 0.03),
        BETWEEN.key: founded("across sizes", 0.10),
        NORM.key: founded("estimate", None),
        ADMISSION.key: founded("estimate", None),
    }
    step = step_of({TIMED: 1e-3, KNOWN: 2e-3, BETWEEN: 3e-3, NORM: 4e-3})
    shares = shares_of(model, step, foundations)
    assert dict(shares.by_kind) == pytest.approx(
        {"measured": 0.1, "published": 0.2, "across sizes": 0.3, "estimate": 0.4}
    )
    assert sum(shares.by_kind.values()) == pytest.approx(1)
    assert shares.error == pytest.approx((1 * 0.01 + 2 * 0.03 + 3 * 0.10) / 6)


def test_of_estimates_no_error_is_known() -> None:
    shares = shares_of(served(uses(NORM)), step_of({NORM: 0.0}), {NORM.key: founded("estimate", None)})
    assert shares.error is None
    assert sum(shares.by_kind.values()) == 0
