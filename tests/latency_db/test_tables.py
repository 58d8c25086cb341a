"""The rows that others refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import ATTENTION, CPU, GPU, MEASUREMENT, POINT, linear, served_model, sqlite


def test_signatures_and_environments_come_in_the_order_of_recording(db: LatencyDB) -> None:
    for signature, environment in [(ATTENTION, GPU), (linear(8), CPU), (linear(2), CPU), (linear(8), GPU)]:
        db.record(signature, environment, POINT, MEASUREMENT, spent_s=1.0)
    assert list(db.signatures().values()) == [ATTENTION, linear(8), linear(2)]
    assert db.environments() == [GPU, CPU]


def test_a_signature_of_a_later_version_is_explained(db: LatencyDB, path: Path) -> None:
    db.save_model(served_model(), CPU)
    with sqlite(path) as connection:
        connection.execute("""UPDATE signature SET document = replace(document, '"linear"', '"telepathy"')""")
    for read in (db.signatures, db.models):
        with pytest.raises(DatabaseError, match=r"cannot read \(Invalid enum value 'telepathy' .*upgrade pytest-dooly"):
            read()
