"""What was found out about models."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import CPU, GPU, served_model, sqlite


def test_a_finding_is_read_back_and_replaced_and_goes_with_its_model(db: LatencyDB) -> None:
    model = served_model()
    db.save_model(model, CPU)
    assert db.load_finding("validation", model.key, CPU) is None
    documents: list[dict[str, list[float]]] = [{"rows": []}, {"rows": [1.5]}]
    for document in documents:
        db.save_finding("validation", model.key, CPU, document)
        assert db.load_finding("validation", model.key, CPU) == document
    assert db.load_finding("validation", model.key, GPU) is None
    assert db.load_finding("coverage", model.key, CPU) is None
    db.save_model(model, CPU)
    assert db.load_finding("validation", model.key, CPU) is None


def test_a_damaged_finding_is_named(db: LatencyDB, path: Path) -> None:
    db.save_model(served_model(), CPU)
    db.save_finding("coverage", "aa", CPU, {"ops": 1})
    with sqlite(path) as connection:
        connection.execute("UPDATE finding SET document = '{'")
    with pytest.raises(DocumentError, match="a kept coverage cannot be read .*damaged; run what made it again"):
        db.load_finding("coverage", "aa", CPU)
