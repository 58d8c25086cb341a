"""Exports: every latency once, readable, in one order; whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from pytest_dooly import cli
from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.errors import ConfigurationError, DatabaseError, MissingExtraError
from pytest_dooly.latency_db import all_latencies
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.export import COLUMNS, ExportError, export
from pytest_dooly.latency_db.tables import Tables
from tests.latency_db.samples import contents
from tests.samples import ATTENTION, ENVIRONMENT, LINEAR, PUBLISHED, TOKENS, measured, published

NEWER = dataclasses.replace(ENVIRONMENT, engine_version="2")
DECODES = SweepPoint(batch=Batch.parse("8x1+512"))


def record(db: LatencyDB, *, order: int = 1) -> None:
    """Two environments, held-out points, a failure and published latencies, in one order or the other."""
    cases: list[tuple[Environment, SweepPoint, Measurement | Failure, bool]] = [
        (ENVIRONMENT, TOKENS[0], dataclasses.replace(measured(1e-3), noise=0.02), False),
        (ENVIRONMENT, TOKENS[3], measured(0.1 + 0.2), True),
        (NEWER, TOKENS[3], measured(2e-3), False),
        (NEWER, TOKENS[5], Failure('no "kernel", and\nno memory'), False),
    ]
    for environment, point, outcome, held_out in cases[::order]:
        db.record(LINEAR, environment, point, outcome, spent_s=1.0, held_out=held_out)
    tables = [
        published({(LINEAR, TOKENS[3]): 3e-3, (LINEAR, TOKENS[1]): 1e-3}),
        published({(ATTENTION, DECODES): 4e-3}, file="attention.parquet"),
    ]
    for table in tables[::order]:
        db.publish(table)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LatencyDB]:
    monkeypatch.setattr(Tables, "_now", staticmethod(lambda: "2025-01-01T00:00:00.000000+00:00"))
    with LatencyDB.open(tmp_path / "db" / "latency.db") as opened:
        record(opened)
        yield opened


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_latency_is_a_row_with_all_that_is_known_of_it(db: LatencyDB, tmp_path: Path) -> None:
    written = export(db, tmp_path / "all.csv")
    assert (written.path, written.rows, len(written.environments)) == (tmp_path / "all.csv", 7, 3)
    rows = read(written.path)
    assert len(rows) == 7
    of_others, _, _, first, own, _, failed = rows
    assert tuple(own) == COLUMNS
    assert own == {
        "kind": "linear",
        "signature": "linear-64x128-bf16",
        "signature_key": LINEAR.key,
        "sweep_point": "T8",
        "num_tokens": "8",
        "num_reqs": "",
        "median_s": "0.30000000000000004",
        "mean_s": "0.30000000000000004",
        "min_s": "0.30000000000000004",
        "iqr_s": repr((0.1 + 0.2) / 20),
        "rounds": "20",
        "noise": "",
        "reason": "",
        **{name: str(value) for name, value in dataclasses.asdict(ENVIRONMENT).items()},
        "measured_at": "2025-01-01T00:00:00.000000+00:00",
        "source": "",
        "licence": "",
        "kernel": "",
        "variant": "",
        "held_out": "True",
    }
    assert first["noise"] == "0.02"
    assert failed["reason"] == 'no "kernel", and\nno memory'
    assert (of_others["signature"], of_others["sweep_point"], of_others["mean_s"]) == (
        ATTENTION.label,
        "8x1+512",
        "0.004",
    )
    assert (of_others["num_tokens"], of_others["num_reqs"], of_others["median_s"]) == ("8", "8", "")
    assert of_others["source"] == "aiconfigurator-core 0.12.0, attention.parquet"
    assert (of_others["licence"], of_others["kernel"]) == ("Apache-2.0", "cublas")
    assert (of_others["engine_version"], of_others["held_out"]) == (PUBLISHED.engine_version, "False")


def test_the_order_is_not_that_of_recording(db: LatencyDB, tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "reversed.db") as other:
        record(other, order=-1)
        assert export(other, tmp_path / "other.csv").path.read_bytes() == export(db, tmp_path).path.read_bytes()


def test_parquet_has_what_csv_has_with_types(db: LatencyDB, tmp_path: Path) -> None:
    table = parquet.read_table(export(db, tmp_path, file_format="parquet").path)
    types = {field.name: str(field.type) for field in table.schema}
    assert tuple(types) == COLUMNS
    assert {types[name] for name in ("num_tokens", "rounds", "device_count")} == {"int64"}
    assert {types[name] for name in ("mean_s", "noise")} == {"double"}
    assert types["held_out"] == "bool"
    as_text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
    assert as_text == read(export(db, tmp_path).path)


def test_parquet_of_several_row_groups_is_complete(
    db: LatencyDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_dooly.latency_db.export._BATCH_ROWS", 2)
    monkeypatch.setattr(all_latencies, "_BATCH_ROWS", 3)
    path = export(db, tmp_path, file_format="parquet").path
    assert parquet.ParquetFile(path).num_row_groups == 4
    assert parquet.read_table(path).num_rows == 7


@pytest.mark.parametrize(
    ("out", "file_format", "expected"),
    [
        (".", None, "latencies.csv"),
        ("deeper/there", "parquet", "deeper/there/latencies.parquet"),
        ("deeper/mine.csv", None, "deeper/mine.csv"),
        ("mine.PARQUET", "parquet", "mine.PARQUET"),
        ("folder.csv", None, "folder.csv/latencies.csv"),
        ("v1.2", None, "v1.2/latencies.csv"),
    ],
)
def test_where_an_export_goes(db: LatencyDB, tmp_path: Path, out: str, file_format: Any, expected: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert export(db, tmp_path / out, file_format=file_format).path == tmp_path / expected
    magic = (tmp_path / expected).read_bytes()[:4]
    assert magic == (b"PAR1" if expected.lower().endswith("parquet") else b"kind")


def test_a_suffix_of_another_format_is_refused(db: LatencyDB, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"mine\.csv is no name for a file in format parquet: name a \.parquet"
    ):
        export(db, tmp_path / "mine.csv", file_format="parquet")
    with pytest.raises(ConfigurationError, match=r"mine\.xlsx is no name of a CSV or Parquet file, nor a directory"):
        export(db, tmp_path / "mine.xlsx")
    assert list(tmp_path.glob("mine*")) == []


def test_environments_are_chosen_by_a_part_of_their_name(db: LatencyDB, tmp_path: Path) -> None:
    assert export(db, tmp_path, environment="FAKE 2").environments == (NEWER,)
    assert [row["engine_version"] for row in read(tmp_path / "latencies.csv")] == ["2", "2"]
    with pytest.raises(
        ConfigurationError, match=r"no environment in the latency DB has 'tpu' in its name; there are: CPU"
    ):
        export(db, tmp_path, environment="tpu")
    assert len(read(tmp_path / "latencies.csv")) == 2


def test_an_empty_latency_db_has_a_header_alone(tmp_path: Path) -> None:
    with LatencyDB.open(tmp_path / "empty.db") as db:
        assert export(db, tmp_path).rows == export(db, tmp_path, file_format="parquet").rows == 0
        with pytest.raises(ConfigurationError, match="there are: none"):
            export(db, tmp_path, environment="x")
    assert (tmp_path / "latencies.csv").read_text(encoding="utf-8").split() == [",".join(COLUMNS)]
    assert parquet.read_table(tmp_path / "latencies.parquet").column_names == list(COLUMNS)


def test_rows_are_not_held_in_memory(db: LatencyDB, tmp_path: Path) -> None:
    db.publish(published({(LINEAR, SweepPoint(num_tokens=i)): 1e-3 for i in range(100, 20_100)}, file="large"))
    export(db, tmp_path)  # whatever is only loaded once
    tracemalloc.start()
    try:
        assert export(db, tmp_path).rows > 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # a thousand rows at a time; all of them are more than 20 MB


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_a_full_disk_leaves_the_file_that_was_there(db: LatencyDB, tmp_path: Path, file_format: Any) -> None:
    db.publish(published({(LINEAR, SweepPoint(num_tokens=i)): i * 1.1e-3 for i in range(100, 5_100)}, file="large"))
    out = tmp_path / "out"
    out.mkdir()
    (out / f"latencies.{file_format}").write_text("before")
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ExportError, match=r"cannot write .*latencies\.\w+: File too large; name another file"):
            export(db, out, file_format=file_format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == before


def test_a_directory_that_cannot_be_made_is_explained(db: LatencyDB, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ExportError, match="cannot write .*file is a file, where a folder is needed; name another file"):
        export(db, tmp_path / "file" / "deeper")


def test_an_interrupt_leaves_the_file_that_was_there(
    db: LatencyDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(db, tmp_path / "out").path.parent
    before = contents(out)

    def interrupted(*_: object) -> Iterator[object]:
        yield next(LatencyDB.latencies(db, [ENVIRONMENT]))
        raise KeyboardInterrupt

    monkeypatch.setattr(db, "latencies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(db, out)
    assert contents(out) == before


KILLED = """
import os, sys
from pathlib import Path
from pytest_dooly.latency_db import export
from pytest_dooly.latency_db.db import LatencyDB
os.fsync = lambda _: os.kill(os.getpid(), 9)
with LatencyDB.open(Path(sys.argv[1])) as db:
    export.export(db, Path(sys.argv[2]))
"""


def test_a_kill_leaves_the_file_that_was_there(db: LatencyDB, tmp_path: Path) -> None:
    (tmp_path / "latencies.csv").write_text("before")
    db.close()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "db" / "latency.db"), str(tmp_path)]
    assert subprocess.run(command, env=environment).returncode == -9
    assert (tmp_path / "latencies.csv").read_text() == "before"


def test_parquet_without_pyarrow_says_what_to_install(
    db: LatencyDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pytest-dooly\[public-data\]', or export to CSV"):
        export(db, tmp_path, file_format="parquet")
    assert list(tmp_path.iterdir()) == [tmp_path / "db"]
    assert export(db, tmp_path).rows == 7


def test_a_latency_db_that_becomes_unreadable_is_explained(db: LatencyDB, tmp_path: Path) -> None:
    db._db.execute("DROP TABLE published_measurement")
    with pytest.raises(DatabaseError, match="cannot read latency DB .*published_measurement"):
        export(db, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "db"]


def test_the_command(db: LatencyDB, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "db" / "latency.db", tmp_path / "out"
    assert cli.main(["export", f"--db={path}", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"7 latencies of 3 environments: {out}/latencies.csv\n"
    assert (
        cli.main(["export", f"--db={path}", f"--out={out}", "--format=parquet", "--environment=fake 2", "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document == {"file": f"{out}/latencies.parquet", "rows": 2, "environments": [str(NEWER)]}
    assert cli.main(["export", f"--db={path}", "--environment=tpu"]) == 2
    assert cli.main(["export", f"--db={tmp_path}/none.db"]) == 1
    assert "there is no latency DB" in capsys.readouterr().err
