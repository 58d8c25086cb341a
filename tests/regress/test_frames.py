"""Predictions as a DataFrame: what the stored regressors say of what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import pytest_dooly
from pytest_dooly.core.measurement import Failure
from pytest_dooly.errors import ConfigurationError, DatabaseError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.frames import frame
from pytest_dooly.regress.stored import fit_regressors, regressors_of
from tests.samples import ENVIRONMENT, LINEAR, REQUESTS, SAMPLER, TOKENS, measured, published, served, uses

OTHER = dataclasses.replace(ENVIRONMENT, driver="another")  # of the same name


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    """A linear that is twice as slow in the other environment, with one point held out that is 25 % too fast there."""
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        for environment, factor in ((ENVIRONMENT, 1), (OTHER, 2)):
            for point in TOKENS[:-1]:
                latency_s = factor * 1e-5 * (point.num_tokens or 0)
                opened.record(LINEAR, environment, point, measured(latency_s), spent_s=1.0)
            fit_regressors([served(uses(LINEAR))], opened, environment)
        held_out = measured(0.75 * 2e-5 * 512)
        opened.record(LINEAR, OTHER, TOKENS[-1], held_out, spent_s=1.0, held_out=True)
        opened.record(LINEAR, ENVIRONMENT, TOKENS[-1], Failure("no memory"), spent_s=1.0)
        opened.record(SAMPLER, ENVIRONMENT, REQUESTS[0], measured(1e-3), spent_s=1.0)
        opened.publish(published({(LINEAR, TOKENS[0]): 1e-3}))
        yield opened


def test_every_measurement_is_beside_what_its_own_environment_s_regressor_says(db: LatencyDB) -> None:
    table = frame(db, "predictions")
    assert len(table) == 19  # no failure, and nothing of the sampler, which has no regressor
    fitted = table[~table["held_out"]]
    assert fitted["predicted_s"].tolist() == pytest.approx(fitted["mean_s"].tolist(), rel=0.01)
    assert fitted["relative_error"].abs().max() < 0.01
    (held_out,) = table[table["held_out"]].to_dict("records")
    assert held_out["relative_error"] == pytest.approx(1 / 3, rel=0.02)
    assert (held_out["driver"], held_out["num_tokens"]) == ("another", 512)
    methods = {
        environment.driver: regressors_of(db, environment)[LINEAR.key].method for environment in (ENVIRONMENT, OTHER)
    }
    assert table["regressor"].tolist() == [methods[driver] for driver in table["driver"]]
    assert {"signature", "environment", "iqr_s"} <= set(table)
    assert "reason" not in table


def test_a_path_does_as_well_and_the_other_kinds_are_the_latency_db_s(db: LatencyDB, tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    assert len(pytest_dooly.frame(path, "predictions")) == len(frame(str(path), "predictions")) == 19
    assert len(frame(path)) == len(db.frame()) == 21
    assert len(frame(path, "published")) == len(db.frame("published")) == 1
    with pytest.raises(
        ConfigurationError, match="no frame of 'luck': name one of measurements, published, predictions"
    ):
        frame(db, cast("Any", "luck"))
    with pytest.raises(DatabaseError, match="there is no latency DB"):
        frame(tmp_path / "none.db")


def test_a_latency_db_without_regressors_has_the_columns_alone(db: LatencyDB, tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "empty.db") as empty:
        table = frame(empty, "predictions")
    assert table.empty
    assert list(table) == list(frame(db, "predictions"))
