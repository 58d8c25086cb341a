"""How much of a step rests on what."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.signature import Signature
from pytest_dooly.prediction.shares import bases_at, shares_at, shares_of
from pytest_dooly.prediction.step import OperationLatency, StepPrediction
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.estimate import Estimate
from tests.samples import ADMISSION, STEP, served, uses
from tests.traced import (
    BETWEEN,
    DEVICE,
    KNOWN,
    NORM,
    TIMED,
)


def basis(kind: BasisKind, error: float | None) -> Basis:
    return Basis(kind, 1, (), error)


def step_of(latencies_s: Mapping[Signature, float]) -> StepPrediction:
    operations = tuple(OperationLatency(each.label, each.kind, 1, latency_s) for each, latency_s in latencies_s.items())
    return StepPrediction(Batch.uniform(1, 1), operations)


def test_shares_add_up_to_one_and_errors_count_by_latency() -> None:
    bases = [basis("measured", 0.01), basis("published", 0.03), basis("across sizes", 0.10), basis("estimate", None)]
    shares = shares_of(step_of({TIMED: 1e-3, KNOWN: 2e-3, BETWEEN: 3e-3, NORM: 4e-3}), bases)
    assert dict(shares.by_kind) == pytest.approx(
        {
            "measured": 0.1,
            "published": 0.2,
            "across sizes": 0.3,
            "another precision": 0.0,
            "another GPU": 0.0,
            "estimate": 0.4,
        }
    )
    assert sum(shares.by_kind.values()) == pytest.approx(1)
    assert shares.error == pytest.approx((1 * 0.01 + 2 * 0.03 + 3 * 0.10) / 6)


def test_of_estimates_no_error_is_known() -> None:
    shares = shares_of(step_of({NORM: 0.0}), [basis("estimate", None)])
    assert shares.error is None
    assert sum(shares.by_kind.values()) == 0


def test_every_operation_of_a_step_has_a_basis_and_what_admits_requests_has_none() -> None:
    bases = {KNOWN: basis("published", 0.03), NORM: basis("estimate", None), ADMISSION: basis("estimate", None)}
    founded = {each.key: Foundation(Estimate(each, DEVICE), of) for each, of in bases.items()}
    model = served(*map(uses, bases))
    assert bases_at(model, founded, Batch.uniform(1, 4)) == [bases[KNOWN], bases[NORM]]
    assert shares_at(model, founded, Batch.uniform(1, 4)).error == 0.03


def test_what_is_done_beside_the_device_is_no_share_of_what_is_seen() -> None:
    founded = {
        NORM.key: Foundation(Estimate(NORM, DEVICE), basis("published", 0.03)),
        STEP.key: Foundation(Estimate(STEP, DEVICE), basis("estimate", None)),
    }
    model, batch = served(uses(NORM), uses(STEP)), Batch.uniform(1, 4)
    alone = shares_at(model, founded, batch)
    assert 0 < alone.by_kind["published"] < 1
    assert shares_at(model, founded, batch, overlapped=True).by_kind["published"] == 1
