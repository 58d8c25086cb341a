"""Parameters of regressors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pytest_dooly.errors import DatabaseError, DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import CPU, GPU, MEASUREMENT, POINT, linear, sqlite


def test_a_regressor_is_read_back_and_replaced(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.save_regressor(linear().key, CPU, {"kind": "linear", "slope_s": [1e-6]}, error=0.5)
    db.save_regressor(linear().key, GPU, {"kind": "other"}, error=0.5)
    db.save_regressor(linear().key, CPU, {"kind": "linear", "slope_s": [2e-6, None]}, error=0.01)
    assert db.load_regressors(CPU) == {linear().key: {"kind": "linear", "slope_s": [2e-6, None]}}
    assert db.load_regressors(GPU) == {linear().key: {"kind": "other"}}


def test_a_regressor_of_an_unknown_signature_is_refused(db: LatencyDB) -> None:
    with pytest.raises(DatabaseError, match="FOREIGN KEY constraint failed"):
        db.save_regressor(linear().key, CPU, {}, error=0.1)
    assert db.load_regressors(CPU) == {}


def test_a_regressor_is_json_and_nothing_else(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    for parameter in (object(), math.nan):
        with pytest.raises((TypeError, ValueError), match="JSON"):
            db.save_regressor(linear().key, CPU, {"parameter": parameter}, error=0.1)
    assert db.load_regressors(CPU) == {}


def test_a_regressor_across_sizes_is_read_back_and_replaced(db: LatencyDB) -> None:
    kept = {"name": "gemm bf16", "error": 0.1, "fitted_to": "old"}
    db.save_family_regressor("gemm", GPU, {"trees": [1.5]}, **kept)  # type: ignore[arg-type]
    db.save_family_regressor("other", GPU, {"trees": []}, **{**kept, "error": None})  # type: ignore[arg-type]
    assert db.load_family_regressor("gemm", GPU, "old") == {"trees": [1.5]}
    assert db.load_family_regressor("gemm", GPU, "new") is None
    assert db.load_family_regressor("gemm", CPU, "old") is None
    db.save_family_regressor("gemm", GPU, {"trees": [2.5]}, **{**kept, "fitted_to": "new"})  # type: ignore[arg-type]
    assert db.load_family_regressor("gemm", GPU, "old") is None
    assert db.load_family_regressor("gemm", GPU, "new") == {"trees": [2.5]}
    assert db.load_family_regressor("other", GPU, "old") == {"trees": []}
    with pytest.raises(ValueError, match="JSON"):
        db.save_family_regressor("gemm", GPU, {"trees": [math.nan]}, **kept)  # type: ignore[arg-type]
    assert db.load_family_regressor("gemm", GPU, "new") == {"trees": [2.5]}


@pytest.mark.parametrize("damage", ["", "{", "NaN", '{"a": 1e400}', '{"a": NaN}'])
def test_a_damaged_document_is_as_good_as_none(db: LatencyDB, path: Path, damage: str) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.save_regressor(linear().key, CPU, {}, error=None)
    db.save_family_regressor("family", CPU, {}, name="f", error=None, fitted_to="rows")
    with sqlite(path) as connection:
        connection.execute("UPDATE regressor SET document = ?", [damage])
        connection.execute("UPDATE family_regressor SET document = ?", [damage])
    assert db.load_regressors(CPU) == {}
    with pytest.raises(DocumentError, match="a kept regressor of a family cannot be read .*run what made it again"):
        db.load_family_regressor("family", CPU, "rows")
