"""Models with their operations."""

from __future__ import annotations

import dataclasses

from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.samples import ATTENTION, CPU, GPU, linear, served_model


def test_a_model_is_read_back(db: LatencyDB) -> None:
    db.save_model(served_model(), CPU)
    assert db.load_model("aa", CPU) == served_model()
    assert db.load_model("aa", GPU) is None
    assert db.load_model("bb", CPU) is None
    assert db.signatures().keys() == {linear().key, ATTENTION.key}


def test_a_model_replaces_the_one_under_its_key_in_its_environment(db: LatencyDB) -> None:
    shorter = dataclasses.replace(served_model(), operations=served_model().operations[:1])
    db.save_model(served_model(), CPU)
    db.save_model(served_model(), GPU)
    db.save_model(shorter, CPU)
    assert db.load_model("aa", CPU) == shorter
    assert db.load_model("aa", GPU) == served_model()


def test_the_latest_model_comes_first(db: LatencyDB) -> None:
    one, other, empty = (
        served_model("aa"),
        served_model("bb", "phi4"),
        dataclasses.replace(served_model("cc"), operations=()),
    )
    for model, environment in [(one, CPU), (other, CPU), (empty, GPU), (one, CPU)]:
        db.save_model(model, environment)
    assert db.models(CPU) == [one, other]
    assert db.models(GPU) == [empty]
    assert db.models() == [one, empty, other]
