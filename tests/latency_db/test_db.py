import dataclasses
import math
import os
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

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.published_latency import PublishedLatency, PublishedTable, Source
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.errors import DatabaseError
from pytest_dooly.latency_db import db as latency_db
from pytest_dooly.latency_db.db import LatencyDB

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
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.test_db import SOURCE, SweepPoint, row, table
rows = [row(1e-3, point=SweepPoint(num_tokens=num_tokens)) for num_tokens in range(1, 301)]
with LatencyDB.open(Path(sys.argv[1])) as db:
    for file in range(1_000_000):
        print("file", flush=True)
        db.publish(table(*rows, source=dataclasses.replace(SOURCE, file=str(file)), odd=7))
"""


@pytest.mark.parametrize("alive_for", [1, 2, 5])
def test_a_killed_import_has_each_file_whole_or_not_at_all(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
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


# Killed and interrupted


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
from pytest_dooly.latency_db.db import LatencyDB
from tests.latency_db.test_db import CPU, MEASUREMENT, SweepPoint, linear
with LatencyDB.open(Path(sys.argv[1])) as db:
    for num_tokens in range(1, 1_000_000):
        db.record(linear(), CPU, SweepPoint(num_tokens=num_tokens), MEASUREMENT, spent_s=1.0)
        print(num_tokens, flush=True)
"""


@pytest.mark.parametrize("alive_for", [1, 2, 50, 700])
def test_a_killed_run_loses_the_case_in_flight_at_most(path: Path, alive_for: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
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
