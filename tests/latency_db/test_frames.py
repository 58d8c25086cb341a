"""Latencies as DataFrames: every one, under names that say their units."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from pytest_dooly.core.batch import Batch, Routing, SweepPoint
from pytest_dooly.core.measurement import Failure
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db import frames
from pytest_dooly.latency_db.all_latencies import LatencyRow
from pytest_dooly.latency_db.db import LatencyDB
from tests.samples import ATTENTION, ENVIRONMENT, LINEAR, MIXTURE, PUBLISHED, SAMPLER, TOKENS, measured, published

OTHER = dataclasses.replace(ENVIRONMENT, driver="another")  # of the same name


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LatencyDB]:
    cases: list[tuple[Any, SweepPoint, Any]] = [
        (ATTENTION, SweepPoint(batch=Batch.parse("8x1+512")), measured(2e-3)),
        (ATTENTION, SweepPoint(batch=Batch.parse("8x1+512,16")), measured(3e-3)),
        (MIXTURE, SweepPoint(num_tokens=64, routing=Routing(8, 20)), measured(4e-3)),
        (SAMPLER, SweepPoint(num_reqs=4), dataclasses.replace(measured(5e-3), noise=0.02)),
        (LINEAR, TOKENS[3], Failure("no memory")),
    ]
    with LatencyDB.open(tmp_path / "latency.db") as opened:
        for signature, point, outcome in cases:
            opened.record(signature, ENVIRONMENT, point, outcome, spent_s=1.0)
        opened.record(LINEAR, OTHER, TOKENS[3], measured(1e-3), spent_s=1.0, held_out=True)
        opened.publish(published({(LINEAR, point): 1e-3 * i for i, point in enumerate(TOKENS, start=1)}))
        yield opened


def test_measurements_have_statistics_in_seconds_and_what_their_points_ask(db: LatencyDB) -> None:
    table = db.frame()
    assert len(table) == 6
    rows = {row["sweep_point"]: row for row in table.to_dict("records") if row["mean_s"] > 0}
    decodes = rows["8x1+512"]
    assert (decodes["kind"], decodes["signature"], decodes["signature_key"]) == (
        "attention",
        ATTENTION.label,
        ATTENTION.key,
    )
    assert (decodes["median_s"], decodes["mean_s"], decodes["min_s"]) == (2e-3,) * 3
    assert (decodes["iqr_s"], decodes["rounds"]) == (1e-4, 20)
    assert (decodes["num_tokens"], decodes["num_reqs"]) == (8, 8)
    assert (decodes["query_len_tokens"], decodes["context_len_tokens"]) == (1, 512)
    assert decodes["device"] == ENVIRONMENT.device
    assert decodes["environment"] == str(ENVIRONMENT)
    mixed = rows["8x1+512,16+0"]
    assert (mixed["num_tokens"], mixed["num_reqs"]) == (24, 9)
    assert pd.isna(mixed["query_len_tokens"])
    assert pd.isna(mixed["context_len_tokens"])
    assert (rows["T64E8M20"]["activated_experts"], rows["T64E8M20"]["busiest_expert_tokens"]) == (8, 20)
    assert rows["R4"]["noise"] == 0.02
    assert pd.isna(rows["R4"]["num_tokens"])
    assert rows["T8"]["held_out"] is True
    (failed,) = table[table["mean_s"].isna()].to_dict("records")
    assert (failed["reason"], failed["sweep_point"]) == ("no memory", "T8")
    assert pd.isna(failed["rounds"])
    assert table.dtypes[["mean_s", "num_tokens", "device_count", "held_out"]].astype(str).tolist() == [
        "float64",
        "Int64",
        "int64",
        "bool",
    ]


def test_one_environment_can_be_asked_for(db: LatencyDB) -> None:
    assert str(ENVIRONMENT) == str(OTHER)
    assert db.frame(environment=OTHER)["driver"].tolist() == ["another"]
    assert len(db.frame(environment=ENVIRONMENT)) == 5
    assert db.frame("published", environment=OTHER).empty


def test_published_latencies_have_their_source(db: LatencyDB) -> None:
    table = db.frame("published")
    assert table["mean_s"].tolist() == pytest.approx([1e-3 * i for i in range(1, 11)])
    assert table["num_tokens"].tolist() == [2**i for i in range(10)]
    assert table["source"].unique().tolist() == ["aiconfigurator-core 0.12.0, gemm.parquet"]
    assert table["environment"].unique().tolist() == [str(PUBLISHED)]
    assert table[["licence", "kernel", "execution"]].drop_duplicates().to_numpy().tolist() == [
        ["Apache-2.0", "cublas", "cuda_graph"]
    ]


def test_columns_are_those_of_an_export_that_have_a_value(db: LatencyDB, tmp_path: Path) -> None:
    exported = {field.name for field in dataclasses.fields(LatencyRow)}
    of_point = {"query_len_tokens", "context_len_tokens", "activated_experts", "busiest_expert_tokens", "environment"}
    own, others = set(db.frame()), set(db.frame("published"))
    assert exported - own == {"source", "licence", "kernel", "variant"}
    assert exported - others == {
        *("median_s", "min_s", "iqr_s", "rounds", "noise", "reason", "measured_at", "held_out"),
    }
    assert own - exported == others - exported == of_point
    with LatencyDB.open(tmp_path / "empty.db") as empty:
        for kind in ("measurements", "published"):
            table = empty.frame(kind)
            assert table.empty
            assert (table.dtypes == db.frame(kind).dtypes).all()


def test_batches_make_no_difference(db: LatencyDB, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = db.frame("published")
    monkeypatch.setattr(frames, "_BATCH_ROWS", 3)
    pd.testing.assert_frame_equal(db.frame("published"), whole)


def test_another_kind_is_refused(db: LatencyDB) -> None:
    with pytest.raises(ConfigurationError, match="no frame of 'predictions': name measurements or published, and for"):
        db.frame(cast("Any", "predictions"))
