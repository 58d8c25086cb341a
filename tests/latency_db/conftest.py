"""A latency DB, open, closed, or with something in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import CPU, MEASUREMENT, linear


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latencies.sqlite"


@pytest.fixture
def db(path: Path) -> Iterator[LatencyDB]:
    with LatencyDB.open(path) as opened:
        yield opened


@pytest.fixture
def recorded(path: Path) -> Path:
    with LatencyDB.open(path) as db:
        for num_tokens in range(1, 101):
            db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
    return path
