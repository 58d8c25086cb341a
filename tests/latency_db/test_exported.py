"""An export read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.core.measurement import Failure
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.export import export
from pytest_dooly.latency_db.exported import read_measurements
from tests.latency_db.samples import ATTENTION, CPU, GPU, MEASUREMENT, OTHER_POINT, POINT, linear


@pytest.mark.parametrize("name", ["latencies.csv", "latencies.parquet"])
def test_measurements_come_back_as_they_were(db: LatencyDB, tmp_path: Path, name: str) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.record(ATTENTION, CPU, OTHER_POINT, MEASUREMENT, spent_s=1.0)
    db.record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
    db.record(linear(8), CPU, POINT, Failure("no room"), spent_s=1.0)
    db.record(linear(9), CPU, POINT, MEASUREMENT, spent_s=1.0, held_out=True)
    export(db, tmp_path / name)
    found = read_measurements(tmp_path / name)
    assert {e.key: of for e, of in found.items()} == {
        CPU.key: {linear().key: {POINT: MEASUREMENT}, ATTENTION.key: {OTHER_POINT: MEASUREMENT}},
        GPU.key: {linear().key: {POINT: MEASUREMENT}},
    }


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"cannot read .*other.csv as an export of a latency DB \('source'\)"):
        read_measurements(tmp_path / "other.csv")
