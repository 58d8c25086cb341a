import dataclasses
import math
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from pytest_dooly import latency_db
from pytest_dooly.batch import Batch, Limits, SweepPoint
from pytest_dooly.environment import Environment
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db import LatencyDB
from pytest_dooly.measurement import Failure, Measurement
from pytest_dooly.migrations import APPLICATION_ID, MIGRATIONS
from pytest_dooly.operation import OperationKind
from pytest_dooly.published import PublishedLatency, PublishedTable, Source
from pytest_dooly.signature import ModelOperation, ServedModel, Signature

CPU = Environment("AMD EPYC", 2, "avx512", "vllm", "0.32.0", "2.13.0+cpu", "perf_counter", "rotated", "eager")
GPU = dataclasses.replace(CPU, device="NVIDIA H200", device_count=1, clock="cuda_event")
POINT = SweepPoint(num_tokens=128)
MEASUREMENT = Measurement(rounds=10, min_s=0.1, median_s=0.2, mean_s=0.3, iqr_s=0.05)


def linear(columns: int = 4096) -> Signature:
    tensors = (("input", "bf16", ("num_tokens", 1024)), ("weight", "bf16", (columns, 1024)))
    return Signature(OperationKind.LINEAR, "linear", tensors, (("has_bias", False),), "num_tokens")


ATTENTION = Signature(
    OperationKind.ATTENTION,
    "attention",
    (("query", "bf16", ("num_tokens", 32, 128)), ("key", "bf16", ("num_tokens", 8, 128))),
    (("head_size", 128), ("num_heads", 32), ("num_kv_heads", 8), ("scale", 0.0883)),
    "batch",
)


def served_model(key: str = "aa", name: str = "llama3") -> ServedModel:
    return ServedModel(
        key=key,
        name=name,
        architecture="LlamaForCausalLM",
        limits=Limits(max_num_tokens=2048, max_num_seqs=256, max_model_len=8192),
        operations=(
            ModelOperation(
                signature=linear(),
                multiplicity=2,
                layers=("model.layers.0.up", "model.layers.1.up"),
                origins=(
                    ("input", "bf16", ("num_tokens", "hidden_size")),
                    ("weight", "bf16", ("4*hidden_size", "1024")),
                ),
            ),
            ModelOperation(signature=ATTENTION, multiplicity=2, layers=("model.layers.0.attn",), origins=()),
        ),
    )


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


@contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below the directory, so that a comparison sees a changed byte and a file left behind."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refusal(path: Path, *, create: bool = True) -> str:
    """Message of the one error; nothing in the directory may change."""
    before = contents(path.parent)
    with pytest.raises(DatabaseError) as raised:
        LatencyDB.open(path, create=create)
    assert contents(path.parent) == before
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Outcomes


points = (
    st.builds(SweepPoint, num_tokens=st.integers(1, 100_000))
    | st.builds(SweepPoint, num_reqs=st.integers(1, 1_000))
    | st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5).map(
        lambda pairs: SweepPoint(batch=Batch.of(pairs))
    )
)
seconds = st.floats(0, allow_nan=False, allow_infinity=False)
outcomes = st.builds(Measurement, st.integers(3, 10_000), seconds, seconds, seconds, seconds) | st.builds(
    Failure, st.text()
)
cases = st.tuples(st.sampled_from([linear(), ATTENTION]), st.sampled_from([CPU, GPU]), points)


@given(st.dictionaries(cases, st.tuples(outcomes, seconds), max_size=6))
def test_what_was_recorded_is_read_back(
    recording: dict[tuple[Signature, Environment, SweepPoint], tuple[Measurement | Failure, float]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "latencies.sqlite"
        with LatencyDB.open(path) as db:
            for (signature, environment, point), (outcome, spent_s) in recording.items():
                db.record(signature, environment, point, outcome, spent_s=spent_s)
        with LatencyDB.open(path, create=False) as db:
            for environment in (CPU, GPU):
                assert {
                    (key, point): (outcome, db.spent_s(environment)[key][point])
                    for key, by_point in db.outcomes(environment).items()
                    for point, outcome in by_point.items()
                } == {
                    (signature.key, point): recording[signature, where, point]
                    for signature, where, point in recording
                    if where == environment
                }
            assert db.signatures() == {signature.key: signature for signature, _, _ in recording}
            assert set(db.environments()) == {environment for _, environment, _ in recording}


@pytest.mark.parametrize(
    ("earlier", "later", "kept"),
    [
        (MEASUREMENT, dataclasses.replace(MEASUREMENT, rounds=20), "later"),
        (Failure("out of memory"), MEASUREMENT, "later"),
        (Failure("out of memory"), Failure("killed"), "later"),
        (MEASUREMENT, Failure("out of memory"), "earlier"),
    ],
)
def test_a_failure_never_replaces_a_measurement(
    db: LatencyDB, earlier: Measurement | Failure, later: Measurement | Failure, kept: str
) -> None:
    db.record(linear(), CPU, POINT, earlier, spent_s=1.0)
    db.record(linear(), CPU, POINT, later, spent_s=2.0)
    outcome, spent_s = (later, 2.0) if kept == "later" else (earlier, 1.0)
    assert db.outcomes(CPU) == {linear().key: {POINT: outcome}}
    assert db.spent_s(CPU) == {linear().key: {POINT: spent_s}}


def test_what_is_held_out_is_kept_apart(db: LatencyDB) -> None:
    other = SweepPoint(num_tokens=77)
    noisy = dataclasses.replace(MEASUREMENT, noise=0.04)
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.record(linear(), CPU, other, noisy, spent_s=2.0, held_out=True)
    assert db.outcomes(CPU) == {linear().key: {POINT: MEASUREMENT}}
    assert db.outcomes(CPU, held_out=True) == {linear().key: {other: noisy}}
    assert db.spent_s(CPU, held_out=True) == {linear().key: {other: 2.0}}
    db.record(linear(), CPU, other, noisy, spent_s=2.0)  # a sweep may take it after all
    assert db.outcomes(CPU, held_out=True) == {}


def test_a_settled_sweep_is_read_back_and_replaced(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.settle(linear().key, CPU, target=0.1, error=None, grid="old")
    db.settle(linear().key, CPU, target=0.05, error=0.03, grid="new")
    assert db.settled(CPU) == {linear().key: (0.05, "new")}
    assert db.settled(GPU) == {}


def test_an_environment_without_outcomes_has_none(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert db.outcomes(GPU) == {} == db.spent_s(GPU)


def test_signatures_and_environments_come_in_the_order_of_recording(db: LatencyDB) -> None:
    for signature, environment in [(ATTENTION, GPU), (linear(8), CPU), (linear(2), CPU), (linear(8), GPU)]:
        db.record(signature, environment, POINT, MEASUREMENT, spent_s=1.0)
    assert list(db.signatures().values()) == [ATTENTION, linear(8), linear(2)]
    assert db.environments() == [GPU, CPU]


def test_outcomes_are_one_query_however_many_there_are(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        statements: list[str] = []
        db._db.conn.set_trace_callback(statements.append)
        assert len(db.outcomes(CPU)[linear().key]) == 100
    assert sum("SELECT" in statement for statement in statements) == 1


def test_a_latency_that_is_no_number_is_refused_and_nothing_of_the_case_kept(db: LatencyDB) -> None:
    with pytest.raises(
        DatabaseError, match="cannot write to latency DB .*: CHECK constraint failed: latencies_or_reason"
    ):
        db.record(linear(), CPU, POINT, dataclasses.replace(MEASUREMENT, mean_s=math.nan), spent_s=1.0)
    assert (db.outcomes(CPU), db.signatures(), db.environments()) == ({}, {}, [])


# Models and regressors


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


def test_a_regressor_is_read_back_and_replaced(db: LatencyDB) -> None:
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    db.save_regressor(linear().key, CPU, {"kind": "linear", "slope_s": [1e-6]}, error=0.5)
    db.save_regressor(linear().key, GPU, {"kind": "other"}, error=0.5)
    db.save_regressor(linear().key, CPU, {"kind": "linear", "slope_s": [2e-6, None]}, error=0.01)
    assert db.load_regressors(CPU) == {linear().key: {"kind": "linear", "slope_s": [2e-6, None]}}
    assert db.load_regressors(GPU) == {linear().key: {"kind": "other"}}


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


# Published latencies

SOURCE = Source("tables", "1.0", "MIT", "h200/gemm.parquet", "abc", 1)
OTHER_POINT = SweepPoint(batch=Batch.parse("8x1+512"))


def row(latency_s: float = 1e-3, signature: Signature | None = None, **changes: Any) -> PublishedLatency:
    latency = PublishedLatency(signature or linear(), POINT, latency_s, "cutlass")
    return dataclasses.replace(latency, **changes)


def table(
    *rows: PublishedLatency, source: Source = SOURCE, where: Environment = GPU, **unmapped: int
) -> PublishedTable:
    return PublishedTable(source, {where: rows}, unmapped)


def dump(path: Path) -> list[str]:
    with sqlite(path) as connection:
        return list(connection.iterdump())


def test_what_was_published_is_read_back(db: LatencyDB) -> None:
    both = PublishedTable(
        SOURCE, {GPU: (row(), row(2e-3, ATTENTION, point=OTHER_POINT)), CPU: (row(3e-3),)}, {"odd": 4}
    )
    assert db.publish(both) == 3
    assert db.published(GPU) == {linear().key: [row()], ATTENTION.key: [row(2e-3, ATTENTION, point=OTHER_POINT)]}
    assert db.published(GPU, [ATTENTION.key, "unknown"]).keys() == {ATTENTION.key}
    assert db.published(GPU, []) == {}
    assert db.published(CPU) == {linear().key: [row(3e-3)]}
    assert db.published_counts(GPU) == {linear().key: 1, ATTENTION.key: 1}
    assert db.published(dataclasses.replace(GPU, driver="1")) == {}
    assert db.unmapped() == {SOURCE.file: {"odd": 4}}
    assert db.signatures() == {linear().key: linear(), ATTENTION.key: ATTENTION}


def test_sources_are_counted_by_environment_and_by_signature(db: LatencyDB) -> None:
    other = dataclasses.replace(SOURCE, file="h200/attention.parquet")
    db.publish(PublishedTable(SOURCE, {GPU: (row(), row(1e-3, linear(8))), CPU: (row(),)}, {}))
    db.publish(table(row(1e-3, ATTENTION), source=other))
    assert db.sources() == {other: 1, SOURCE: 3}
    assert db.sources(GPU) == {other: 1, SOURCE: 2}
    assert db.sources(CPU) == {SOURCE: 1}
    assert db.sources(GPU, [ATTENTION.key]) == {other: 1}
    assert db.sources(GPU, [linear(8).key]) == {SOURCE: 1}


def test_publishing_the_same_file_again_changes_nothing(path: Path) -> None:
    with LatencyDB.open(path) as db:
        assert db.publish(table(row(), row(2e-3, linear(8)), odd=4)) == 2
    before = contents(path.parent)
    with LatencyDB.open(path) as db:
        assert db.publish(table(row(), row(2e-3, linear(8)), odd=4)) == 0
    assert contents(path.parent) == before


@pytest.mark.parametrize("change", [{"version": "2.0"}, {"sha256": "def"}, {"mapping": 2}])
def test_a_newer_file_takes_the_place_of_the_older_one(db: LatencyDB, change: dict[str, Any]) -> None:
    newer = dataclasses.replace(SOURCE, **change)
    neighbour = dataclasses.replace(SOURCE, file="h200/moe.parquet")
    db.publish(table(row(9e-3), source=neighbour, odd=1))
    db.publish(table(row(), row(1e-3, linear(8)), odd=4))
    assert db.publish(table(row(5e-3), source=newer, where=CPU, even=1)) == 1
    assert db.published(GPU) == {linear().key: [row(9e-3)]}
    assert db.published(CPU) == {linear().key: [row(5e-3)]}
    assert db.sources() == {newer: 1, neighbour: 1}
    assert db.unmapped() == {SOURCE.file: {"even": 1}, neighbour.file: {"odd": 1}}


def test_the_same_file_of_another_package_is_kept_beside_it(db: LatencyDB) -> None:
    other = dataclasses.replace(SOURCE, package="others")
    db.publish(table(row()))
    db.publish(table(row(2e-3), source=other))
    assert sorted(latency.latency_s for latency in db.published(GPU)[linear().key]) == [1e-3, 2e-3]
    assert db.sources().keys() == {SOURCE, other}


def test_kernels_and_variants_of_one_point_are_kept_apart(db: LatencyDB) -> None:
    rows = [row(), row(2e-3, kernel="triton"), row(3e-3, variant="balanced")]
    db.publish(table(*rows))
    assert sorted(db.published(GPU)[linear().key], key=lambda each: each.latency_s) == rows


def test_our_own_measurement_and_a_published_latency_leave_each_other_alone(db: LatencyDB) -> None:
    db.record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
    db.publish(table(row()))
    db.publish(table(row(2e-3), source=dataclasses.replace(SOURCE, version="2.0")))
    assert db.outcomes(GPU) == {linear().key: {POINT: MEASUREMENT}}
    assert db.spent_s(GPU) == {linear().key: {POINT: 1.0}}
    db.record(linear(), GPU, POINT, dataclasses.replace(MEASUREMENT, rounds=20), spent_s=1.0)
    assert db.published(GPU) == {linear().key: [row(2e-3)]}


def test_a_file_that_cannot_be_kept_leaves_what_was_there(path: Path) -> None:
    with LatencyDB.open(path) as db:
        db.publish(table(row(), odd=4))
    before = dump(path)
    newer = dataclasses.replace(SOURCE, version="2.0")
    with LatencyDB.open(path) as db, pytest.raises(DatabaseError, match="NOT NULL constraint failed"):
        db.publish(table(row(5e-3), row(math.nan, linear(8)), source=newer))
    assert dump(path) == before


def test_a_disk_that_is_full_leaves_what_was_there(path: Path) -> None:
    rows = [row(1e-3, point=SweepPoint(num_tokens=num_tokens)) for num_tokens in range(1, 1000)]
    newer = dataclasses.replace(SOURCE, version="2.0")
    with LatencyDB.open(path) as db:
        db.publish(table(row()))
        pages = db._db.execute("PRAGMA page_count").fetchone()[0]
        db._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(DatabaseError, match="database or disk is full"):
            db.publish(table(*rows, source=newer))
        assert db.published(GPU) == {linear().key: [row()]}
        assert db.sources() == {SOURCE: 1}
        db._db.execute("PRAGMA max_page_count = 1000000")
        assert db.publish(table(*rows, source=newer)) == len(rows)


PUBLISHING = """
import dataclasses, sys
from pathlib import Path
from pytest_dooly.latency_db import LatencyDB
from tests.test_latency_db import SOURCE, SweepPoint, row, table
rows = [row(1e-3, point=SweepPoint(num_tokens=num_tokens)) for num_tokens in range(1, 301)]
with LatencyDB.open(Path(sys.argv[1])) as db:
    for file in range(1_000_000):
        print("file", flush=True)
        db.publish(table(*rows, source=dataclasses.replace(SOURCE, file=str(file)), odd=7))
"""


@pytest.mark.parametrize("alive_for", [1, 2, 5])
def test_a_killed_import_has_each_file_whole_or_not_at_all(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PUBLISHING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(alive_for):
            process.stdout.readline()
        process.kill()
        started = alive_for + len(process.stdout.read().splitlines())
    assert process.returncode == -9
    with LatencyDB.open(path, create=False) as db:
        sources = db.sources()
        assert started - 1 <= len(sources) <= started
        assert set(sources.values()) <= {300}
        assert db.unmapped() == {source.file: {"odd": 7} for source in sources}
        assert sum(db.published_counts(GPU).values()) == 300 * len(sources)


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


# What people browse


def test_people_see_labels_seconds_and_utc(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        db.record(ATTENTION, CPU, SweepPoint(batch=Batch.parse("8x1+512,128")), Failure("no kernel"), spent_s=1.0)
    with sqlite(recorded) as connection:
        rows = connection.execute(
            "SELECT signature, sweep_point, num_tokens, num_reqs, median_s, reason, environment FROM latency "
            "WHERE num_tokens >= 100 ORDER BY num_tokens"
        ).fetchall()
        (measured_at,) = connection.execute("SELECT max(measured_at) FROM measurement").fetchone()
    assert rows == [
        ("linear-1024x4096-bf16", "T100", 100, None, 0.2, None, str(CPU)),
        ("attention-32h8kv128-bf16", "8x1+512,128+0", 136, 9, None, "no kernel", str(CPU)),
    ]
    assert datetime.fromisoformat(measured_at).utcoffset() == timedelta(0)
    assert datetime.now(UTC) - datetime.fromisoformat(measured_at) < timedelta(days=1)


def test_people_see_a_published_latency_with_its_source(path: Path) -> None:
    with LatencyDB.open(path) as db:
        db.record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
        db.publish(table(row(), row(2e-3, ATTENTION, point=OTHER_POINT)))
    with sqlite(path) as connection:
        rows = connection.execute(
            "SELECT signature, sweep_point, num_tokens, num_reqs, median_s, mean_s, rounds, reason, environment, "
            "source FROM latency ORDER BY source, signature"
        ).fetchall()
    assert rows == [
        ("linear-1024x4096-bf16", "T128", 128, None, 0.2, 0.3, 10, None, str(GPU), None),
        ("attention-32h8kv128-bf16", "8x1+512", 8, 8, None, 2e-3, None, None, str(GPU), SOURCE.name),
        ("linear-1024x4096-bf16", "T128", 128, None, None, 1e-3, None, None, str(GPU), SOURCE.name),
    ]


def test_keys_are_equal_in_every_db(tmp_path: Path) -> None:
    keys = []
    for name, order in [("one", [1, 2]), ("other", [2, 1])]:
        with LatencyDB.open(tmp_path / name) as db:
            for num_tokens in order:
                db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        with sqlite(tmp_path / name) as connection:
            keys.append(set(connection.execute("SELECT environment, signature, sweep_point FROM measurement")))
    assert len(keys[0]) == 2
    assert keys[0] == keys[1]


# Opening


def test_a_db_and_its_directory_are_created_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1?" / "deeper" / "latencies.sqlite"
    LatencyDB.open(path).close()
    with sqlite(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_opening_changes_nothing_and_leaves_nothing_beside(recorded: Path) -> None:
    before = contents(recorded.parent)
    LatencyDB.open(recorded).close()
    assert contents(recorded.parent) == before
    assert list(before) == [str(recorded)]


def test_an_empty_file_becomes_a_db(path: Path) -> None:
    path.touch()
    assert "there is no latency DB" in refusal(path, create=False)
    with LatencyDB.open(path) as db:
        assert db.environments() == []


def test_a_missing_file_is_missed(path: Path) -> None:
    assert "there is no latency DB" in refusal(path, create=False)


def test_a_missing_directory_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no latency DB"):
        LatencyDB.open(tmp_path / "missing" / "latencies.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "Is a directory; name a file that can be read and written" in refusal(tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DatabaseError, match="Not a directory"):
        LatencyDB.open(tmp_path / "file" / "latencies.sqlite")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_link_is_followed(recorded: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(recorded)
    with LatencyDB.open(link) as db, LatencyDB.open(link) as other:
        assert other.outcomes(CPU) == db.outcomes(CPU) != {}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"\n", b"name: llama3\n" * 100, b"SQLite format 2\x00" * 100])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes, create: bool) -> None:
    path.write_bytes(content)
    assert "is no latency DB, nor any other SQLite file: name another file" in refusal(path, create=create)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_an_sqlite_file_of_another_program_is_refused(path: Path, journal_mode: str) -> None:
    with sqlite(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE measurement (latency_s REAL)")
    assert "is an SQLite file of another program, no latency DB: name another file" in refusal(path)


def test_a_db_of_a_newer_version_is_refused(recorded: Path) -> None:
    with sqlite(recorded) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, ?, ?)",
            [MIGRATIONS.name, "m999_from_the_future", "2099"],
        )
    message = refusal(recorded)
    assert "newer version of pytest-dooly (it has m999_from_the_future): upgrade pytest-dooly" in message


def test_a_killed_db_of_a_newer_version_is_refused(recorded: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    with LatencyDB.open(recorded) as db:
        MIGRATIONS._record_applied(db._db, "m999_from_the_future")
        shutil.copytree(recorded.parent, crashed, ignore=shutil.ignore_patterns("*-shm", "crashed"))
    main, log = crashed / recorded.name, crashed / f"{recorded.name}-wal"
    before = main.read_bytes(), log.read_bytes()
    with pytest.raises(DatabaseError, match="m999_from_the_future"):
        LatencyDB.open(main)
    assert (main.read_bytes(), log.read_bytes()) == before


def test_a_db_of_an_older_version_is_brought_up_to_date(path: Path) -> None:
    with sqlite(path) as connection:
        older = Database(connection, execute_plugins=False)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        MIGRATIONS.apply(older, stop_before="m003_regressors")
    with LatencyDB.open(path, create=False) as db:
        assert db.load_regressors(CPU) == {}


def test_a_db_from_before_published_latencies_keeps_its_measurements_and_takes_them(path: Path) -> None:
    with sqlite(path) as connection:
        older = Database(connection, execute_plugins=False)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        MIGRATIONS.apply(older, stop_before="m006_published")
        LatencyDB(path, older).record(linear(), GPU, POINT, MEASUREMENT, spent_s=1.0)
    with LatencyDB.open(path, create=False) as db:
        assert db.outcomes(GPU) == {linear().key: {POINT: MEASUREMENT}}
        assert (db.published(GPU), db.sources(), db.unmapped()) == ({}, {}, {})
        assert db.publish(table(row())) == 1
        assert db._db.execute("SELECT count(*), count(source) FROM latency").fetchone() == (2, 1)


@pytest.mark.parametrize("length", [16, 99, 100, 4096, 5000, -4096, -1])
def test_a_truncated_db_is_refused(recorded: Path, length: int) -> None:
    recorded.write_bytes(recorded.read_bytes()[:length])
    assert "damaged" in refusal(recorded)


def test_a_db_with_a_damaged_page_is_refused(recorded: Path) -> None:
    content = bytearray(recorded.read_bytes())
    for page in range(1, len(content) // 4096):
        damaged = content.copy()
        damaged[page * 4096 : page * 4096 + 200] = b"\xff" * 200
        recorded.write_bytes(damaged)
        assert "damaged" in refusal(recorded)


def test_rows_in_the_wrong_order_are_damage_too(recorded: Path) -> None:
    with sqlite(recorded) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'environment'").fetchone()
    content = bytearray(recorded.read_bytes())
    header = (page - 1) * 4096
    content[header + 7] = 1
    recorded.write_bytes(content)
    assert "is damaged (" in refusal(recorded)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory, while the process has no more rights than an ordinary user has."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(user)


def test_a_file_that_cannot_be_written_is_refused(ordinary_user: Path) -> None:
    path = ordinary_user / "latencies.sqlite"
    LatencyDB.open(path).close()
    path.chmod(0o444)
    assert "Permission denied; name a file that can be read and written" in refusal(path)


@pytest.mark.parametrize("name", ["latencies.sqlite", "deeper/latencies.sqlite"])
def test_a_directory_that_cannot_be_written_is_refused(ordinary_user: Path, name: str) -> None:
    closed = ordinary_user / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(DatabaseError, match="cannot open latency DB .*; name a file") as raised:
        LatencyDB.open(closed / name)
    assert str(closed / name) in str(raised.value)
    assert list(closed.iterdir()) == []


# Writing


def test_a_lock_is_explained(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_db, "_BUSY_TIMEOUT_S", 0.01)
    with LatencyDB.open(recorded) as db, sqlite(recorded) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="database is locked; another process is writing to it: wait") as raised:
            db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
        assert str(recorded) in str(raised.value)
        other.rollback()
        db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
        assert db.outcomes(CPU)[ATTENTION.key] == {POINT: MEASUREMENT}


def test_a_lock_while_opening_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_db, "_BUSY_TIMEOUT_S", 0.01)
    path.touch()
    with sqlite(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseError, match="cannot open latency DB .*: database is locked"):
            LatencyDB.open(path)
        other.rollback()
    LatencyDB.open(path).close()


def record_until_it_fails(db: LatencyDB) -> tuple[int, str]:
    """Number of measurements that were kept, and the message."""
    for num_tokens in range(1, 10_000):
        try:
            db.record(linear(), GPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        except DatabaseError as error:
            return num_tokens - 1, str(error)
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_explained_and_loses_one_case(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        pages = db._db.execute("PRAGMA page_count").fetchone()[0]
        db._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        kept, message = record_until_it_fails(db)
        assert "database or disk is full; free some disk space and run again" in message
        assert len(db.outcomes(GPU)[linear().key]) == kept
        db._db.execute("PRAGMA max_page_count = 1000000")
        db.record(ATTENTION, GPU, POINT, MEASUREMENT, spent_s=1.0)
        assert db.outcomes(GPU)[ATTENTION.key] == {POINT: MEASUREMENT}


def test_a_disk_that_fails_is_explained_and_loses_one_case(recorded: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LatencyDB.open(recorded) as db:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            kept, message = record_until_it_fails(db)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "disk I/O error; check the disk and its free space" in message
    with LatencyDB.open(recorded) as db:
        assert len(db.outcomes(GPU)[linear().key]) == kept


def test_a_db_that_becomes_unreadable_is_explained(recorded: Path) -> None:
    with LatencyDB.open(recorded) as db:
        db._db.execute("DROP TABLE regressor")
        with pytest.raises(DatabaseError, match="cannot read latency DB .*: no such table: regressor"):
            db.load_regressors(CPU)


def test_a_signature_of_a_later_version_is_explained(db: LatencyDB, path: Path) -> None:
    db.save_model(served_model(), CPU)
    with sqlite(path) as connection:
        connection.execute("""UPDATE signature SET document = replace(document, '"linear"', '"telepathy"')""")
    for read in (db.signatures, db.models):
        with pytest.raises(DatabaseError, match=r"cannot read \('telepathy' is not a valid .*upgrade pytest-dooly"):
            read()


KILLED = """
import sys
from pathlib import Path
from pytest_dooly.latency_db import LatencyDB
from tests.test_latency_db import CPU, MEASUREMENT, SweepPoint, linear
with LatencyDB.open(Path(sys.argv[1])) as db:
    for num_tokens in range(1, 1_000_000):
        db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        print(num_tokens, flush=True)
"""


@pytest.mark.parametrize("alive_for", [1, 2, 50, 700])
def test_a_killed_run_loses_the_case_in_flight_at_most(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(alive_for)]
        process.kill()
        printed += [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -9
    assert path.with_name(f"{path.name}-wal").exists()
    with LatencyDB.open(path, create=False) as db:
        survivors = sorted(point.num_tokens or 0 for point in db.outcomes(CPU)[linear().key])
        assert survivors in (printed, [*printed, len(printed) + 1])
        db.record(ATTENTION, CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert list(contents(path.parent)) == [str(path)]


def test_a_run_that_is_interrupted_in_a_write_keeps_nothing_of_it(
    db: LatencyDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latency_db, "_now", interrupt)
        db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert (db.outcomes(CPU), db.signatures()) == ({}, {})
    db.record(linear(), CPU, POINT, MEASUREMENT, spent_s=1.0)
    assert db.outcomes(CPU) == {linear().key: {POINT: MEASUREMENT}}
