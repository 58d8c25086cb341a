"""`dooly import`; what else the file of a latency DB goes through is shown where it is done."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from pytest_dooly import cli
from pytest_dooly.cli import files
from pytest_dooly.core.configuration import ModelConfiguration
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.latency_db.db import LatencyDB
from tests.published import test_llmservingsim as bundles
from tests.published.aiconfigurator import rows as tables


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tables of an installed package of another version: 3 files, 5 rows, 2 of them with nothing that they time."""
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "site-packages"
    (installed / "aiconfigurator_core-9.9.dist-info").mkdir(parents=True)
    (installed / "aiconfigurator_core-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: 9.9\n"
    )
    monkeypatch.syspath_prepend(installed)
    root = installed / "aiconfigurator_core"
    tables.write(root, "gemm_perf", [tables.GEMM, {**tables.GEMM, "gemm_dtype": "fp3"}])
    tables.write(root, "kda_perf", [tables.ROW])
    tables.write(root, "moe_perf", [tables.MOE, {**tables.MOE, "num_tokens": 1}])
    tables.write(root, "gemm_perf", [tables.GEMM], system="l40s")
    return root


IMPORT = ("import", "aiconfigurator", "--system", "h200_sxm")


def test_import_says_what_each_file_holds_and_what_is_left_out(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*IMPORT]) == 0
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet 1 latencies, 1 new",
        " 1 rows left out: gemm_dtype fp3 is unknown",
        "h200_sxm/kda/vllm/0.24.0/kda_perf.parquet 0 latencies, nothing to keep",
        " 1 rows left out: no operation of a trace is a kda_perf",
        "h200_sxm/moe/vllm/0.24.0/moe_perf.parquet 2 latencies, 2 new",
        "",
        "3 latencies from aiconfigurator-core 9.9 (Apache-2.0), 3 of them new; 2 rows left out",
    ]
    with LatencyDB.open(Path(".dooly/latency.db"), create=False) as db:
        assert sum(db.sources().values()) == 3
        assert {source.version for source in db.sources()} == {"9.9"}


def test_importing_again_changes_nothing(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*IMPORT]) == 0
    capsys.readouterr()
    before = Path(".dooly/latency.db").read_bytes()
    assert cli.main([*IMPORT]) == 0
    out = capsys.readouterr().out
    assert "2 latencies, as before" in re.sub(" +", " ", out)
    assert "3 latencies from aiconfigurator-core 9.9 (Apache-2.0), 0 of them new" in out
    assert Path(".dooly/latency.db").read_bytes() == before
    assert [path.name for path in Path(".dooly").iterdir()] == ["latency.db"]


def test_import_as_json_is_one_document(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*IMPORT, "l40s", "--json", "--db=here.db"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["new"] == 4
    assert [(file["file"].partition("/")[0], file["latencies"], file["new"]) for file in document["files"]] == [
        ("h200_sxm", 1, 1),
        ("h200_sxm", 0, 0),
        ("h200_sxm", 2, 2),
        ("l40s", 1, 1),
    ]
    first = document["files"][0]
    assert first["source"] == "aiconfigurator-core 9.9, h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
    assert first["unmapped"] == {"gemm_dtype fp3 is unknown": 1}
    assert first["environments"] == [
        "NVIDIA H200 x1, vllm 0.24.0, torch unknown, cuda_graph, cuda_event, repeated caches"
    ]


def test_an_import_of_a_newer_package_takes_the_place_of_the_older_one(package: Path) -> None:
    assert cli.main([*IMPORT]) == 0
    tables.write(package, "moe_perf", [tables.MOE])
    metadata = package.parent / "aiconfigurator_core-9.9.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("9.9", "9.10"))
    assert cli.main([*IMPORT]) == 0
    with LatencyDB.open(Path(".dooly/latency.db")) as db:
        assert {source.version: rows for source, rows in db.sources().items()} == {"9.10": 1}
        assert [sum(db.published_counts(environment).values()) for environment in db.environments()] == [2]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("bad", "status", "message"),
    [
        ("truncated", 1, "moe_perf.parquet cannot be read as Parquet"),
        ("empty", 1, "moe_perf.parquet cannot be read as Parquet"),
        ("no rows", 1, "moe_perf.parquet has no rows"),
        ("columns", 1, "moe_perf.parquet has no column topk"),
        ("types", 1, "moe_perf.parquet has string in its column topk"),
        ("tables", 1, "has no tables under"),
        ("system", 2, "no tables of system 'h300': name one of h200_sxm, l40s"),
        ("engine", 2, "no tables of engine 'tgi' on h200_sxm: name one of vllm"),
        ("version", 2, "no tables of vllm 7 on h200_sxm: name one of 0.24.0"),
    ],
)
def test_bad_input_is_one_message_and_leaves_the_latency_db_as_it_is(
    package: Path, capsys: pytest.CaptureFixture[str], bad: str, status: int, message: str, kept: bool
) -> None:
    if kept:
        assert cli.main(["import", "aiconfigurator", "--system", "l40s"]) == 0
        capsys.readouterr()
    before = {path: path.read_bytes() for path in Path(".dooly").glob("*")}
    path, asked = package / "systems/data/h200_sxm/moe/vllm/0.24.0/moe_perf.parquet", []
    if bad in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 200 if bad == "truncated" else 0])
    elif bad == "no rows":
        tables.write(package, "moe_perf", pa.Table.from_pylist([{**tables.MOE}]).slice(0, 0))
    elif bad == "columns":
        tables.write(package, "moe_perf", [{name: value for name, value in tables.MOE.items() if name != "topk"}])
    elif bad == "types":
        tables.write(package, "moe_perf", [{**tables.MOE, "topk": "two"}])
    elif bad == "tables":
        shutil.rmtree(package / "systems")
    else:
        asked = {
            "system": ["--system", "h200_sxm", "h300"],
            "engine": ["--engine=tgi"],
            "version": ["--engine-version=7"],
        }[bad]
    assert cli.main([*IMPORT, *asked]) == status
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert message in streams.err
    assert {path: path.read_bytes() for path in Path(".dooly").glob("*")} == before


def test_a_package_that_is_missing_is_asked_for(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert cli.main([*IMPORT]) == 1
    assert "run pip install 'pytest-dooly[public-data]'" in capsys.readouterr().err
    assert not Path(".dooly").exists()


def test_a_bundle_of_llmservingsim_is_imported_with_the_operations_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "load_engine", lambda name: FakeEngine())
    asked: list[ModelConfiguration] = []

    def serve(engine: object, configuration: ModelConfiguration, *rest: object, **others: object) -> ServedModel:
        asked.append(configuration)
        return bundles.model()

    monkeypatch.setattr(files, "serve", serve)
    command = ["import", "llmservingsim", str(bundles.write(tmp_path))]
    assert cli.main([*command, "--model", "llama3"]) == 0
    assert cli.main(command) == 0
    assert [(c.name, c.options.dtype, c.options.tensor_parallel_size) for c in asked] == [
        ("llama3", "bfloat16", 2),
        ("someone/Some-8B", "bfloat16", 2),
    ]
    out = capsys.readouterr().out
    assert "7 latencies from LLMServingSim 1.0.0 (MIT), 7 of them new; 4 rows left out" in out
    assert "7 latencies from LLMServingSim 1.0.0 (MIT), 0 of them new; 4 rows left out" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("aiconfigurator",), "name systems, as in --system h200_sxm"),
        (("aiconfigurator", "somewhere/tp1", "--system", "l40s"), "name systems, as in --system h200_sxm"),
        (("llmservingsim",), "name a directory of a clone, as in profiler/perf"),
        (("llmservingsim", "somewhere/tp1", "--system", "l40s"), "name a directory of a clone"),
    ],
)
def test_each_package_has_options_of_its_own(
    command: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", *command]) == 2
    assert message in capsys.readouterr().err
