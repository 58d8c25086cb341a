"""`dooly` as its users run it, on the fake engine: output, exit status and messages."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pytest_dooly import cli
from pytest_dooly.engine.fake import FakeEngine, _FakeSession
from pytest_dooly.errors import EngineError
from pytest_dooly.latency_db.db import LatencyDB
from tests.core.test_isolation import IN_SITU
from tests.models import LLAMA, write
from tests.published.aiconfigurator import rows as tables
from tests.test_profiling import linears

SMALL = ("--engine=fake", "--max-num-tokens=16", "--max-model-len=32", "--max-num-seqs=2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    return tmp_path


@pytest.fixture
def profiled(place: Path) -> Path:
    flags = [f"--dooly-{flag.removeprefix('--')}" for flag in SMALL]
    command = [sys.executable, "-m", "pytest", "-p", "no:cov", "--dooly-model=model", "-q", *flags]
    subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL)
    return place


def test_trace_prints_every_operation_with_its_origins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "model", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "model (FakeForCausalLM)" in out
    assert "weight fp32 [intermediate_size, hidden_size]" in out
    assert "input fp32 [num_reqs, hidden_size]" in out
    assert max(map(len, out.splitlines())) <= 100


def test_trace_as_json_is_one_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["limits"]["max_model_len"] == 32
    up = next(o for o in document["operations"] if o["label"] == "linear-64x96-fp32")
    assert up["multiplicity"] == 2
    assert up["origins"][1] == {"tensor": "weight", "dtype": "fp32", "shape": ["intermediate_size", "hidden_size"]}


def test_trace_says_what_share_of_a_real_forward_pass_it_covers(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["trace", "model", *SMALL]) == 0
    streams = capsys.readouterr()
    assert re.search(r"covers 100\.0% of \d+ operators of a real forward pass in small; outside: nothing", streams.out)
    assert "running FakeForCausalLM in small" in streams.err
    assert cli.main(["trace", "model", "--json", *SMALL]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["coverage"]["share"] == 1
    assert "in small" not in streams.err  # known from before

    def breaks(*_: object, **__: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(FakeEngine, "open", breaks)
    assert cli.main(["trace", "model", "--db=other.db", *SMALL]) == 0
    assert "coverage not counted: no memory" in capsys.readouterr().out
    assert cli.main(["trace", "model", "--db=other.db", "--no-coverage", *SMALL]) == 0
    assert capsys.readouterr().out.endswith("coverage not counted\n")


def test_trace_compares_two_models(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "other", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=256)
    assert cli.main(["trace", "model", "--diff=other", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "differing (3)\n  embedding-64x128-fp32 -> embedding-64x256-fp32" in out
    assert cli.main(["trace", "model", "--diff=other", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == ["model", "other"]
    assert len(document["shared"]) == 9
    assert 0 < document["share_saved"] < 1


@pytest.mark.parametrize("asked", [["predict", "--batch=1+8"], ["validate"], ["validate", "--prompt", "8"]])
def test_predictions_need_measurements_first(
    place: Path, capsys: pytest.CaptureFixture[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_FakeSession, "generate", lambda *_: pytest.fail("the engine ran in vain"))
    assert cli.main([asked[0], "model", *asked[1:], *SMALL]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "run pytest --dooly-model=model with the same options first" in streams.err


def test_predict_a_step_and_a_workload(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "model", "--batch=1+8,4", *SMALL]) == 0
    assert capsys.readouterr().out.startswith("step of 2 requests, 5 tokens: ")
    assert cli.main(["predict", "model", "--prompt=16", "--output=8", "--concurrency=2", *SMALL]) == 0
    assert capsys.readouterr().out.startswith("prompt 16, output 8, 2 at once: TTFT ")
    assert cli.main(["predict", "model", "--prompt=16", "--output=8", "--routing=zipf:1.2", "--json", *SMALL]) == 0
    skewed = json.loads(capsys.readouterr().out)
    assert cli.main(["predict", "model", "--prompt=16", "--output=8", "--json", *SMALL]) == 0
    uniform = json.loads(capsys.readouterr().out)
    assert uniform["tpot_s"] > 0
    assert uniform == skewed  # a model without experts


def test_a_request_out_of_range_is_answered_with_a_warning(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "model", "--batch=4000", "--json", *SMALL]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["out_of_range"]
    assert "OutOfRangeWarning: linear-64x96-fp32: size 4,000 is outside of the measured 1 to 16" in streams.err


def test_validate_compares_with_the_engine(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "validate",
        "model",
        "--prompt",
        "8",
        "16",
        "--batch",
        "1",
        "--output",
        "1",
        "4",
        "--repeats",
        "2",
        *SMALL,
    ]
    status = cli.main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [row["workload"]["prompt_len"] for row in document["rows"]] == [8, 8, 16, 16]
    assert document["rows"][0]["measured_tpot_s"] is None
    assert document["rows"][1]["measured_tpot_s"] > 0
    assert status == (0 if document["passed"] else 1)
    assert "noise floor" in Path(document["report"]).read_text(encoding="utf-8")
    assert all(row["isolated_s"] > 0 < row["in_situ_s"] for row in document["in_situ"]["rows"])
    cli.main(arguments)
    lines = capsys.readouterr().out
    assert "TTFT: MAPE" in lines
    assert "operations alone, together, against within a pass over " in lines
    cli.main([*arguments, "--no-in-situ"])
    assert "operations alone" not in capsys.readouterr().out


def test_requests_may_follow_each_other(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "model", "--prompt=8", "--output=4", "--concurrency=2", *SMALL]
    assert cli.main([*asked, "--requests=6"]) == 0
    assert capsys.readouterr().out.startswith("prompt 8, output 4, 2 of 6 at once: TTFT ")
    assert cli.main([*asked, "--requests=1"]) == 2
    assert "1 requests in all cannot be 2 at once" in capsys.readouterr().err
    cli.main(["validate", "model", "--prompt=8", "--requests=3", "--repeats=2", "--no-in-situ", "--json", *SMALL])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["workload"]["concurrency"], row["workload"]["num_reqs"]) for row in rows] == [(1, 3)]


def test_validate_draws_workloads_within_a_budget(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", "model", "--points=10", "--budget=60", "--repeats=2", "--json", *SMALL]
    cli.main(arguments)
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    workloads = [tuple(row["workload"].values())[:3] for row in document["rows"]]
    assert len(set(workloads)) == 10
    assert {concurrency for _, _, concurrency in workloads} == {1, 2}
    assert all(prompt + output <= 32 for prompt, output, _ in workloads)
    assert any(prompt > 16 for prompt, _, _ in workloads)  # longer than a step: prefilled in chunks
    assert document["ttft"]["low"] <= document["ttft"]["mape"] <= document["ttft"]["high"]
    assert len(document["drift"]) == 1
    assert re.search(r"drew 10 workloads: [1-9]\d* prefill in chunks beside decodes, 0 shrunk", streams.err)
    cli.main([*arguments, "--seed=1"])
    again = [tuple(row["workload"].values())[:3] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert set(again) != set(workloads)


def test_validate_says_what_a_budget_excludes(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "model", "--budget=1e-6", *SMALL]) == 2
    assert "the smallest workload takes" in capsys.readouterr().err
    cli.main(["validate", "model", "--points=999", "--budget=60", "--repeats=2", *SMALL])
    assert "limits and budget leave room for no more, 999 were asked for" in capsys.readouterr().err


def test_report_writes_page_and_picture(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "model", "--reports=here", "--png=picture.png", *SMALL]) == 0
    assert "report: here/model-fake-cpu/index.html" in capsys.readouterr().out
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


def test_report_as_json_holds_what_was_found_out(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["validation"] is document["in_situ"] is None
    cli.main(["validate", "model", "--prompt", "8", "--repeats", "2", "--json", *SMALL])
    rows = json.loads(capsys.readouterr().out)["rows"]
    with LatencyDB.open(Path(".dooly/latency.db")) as db:
        (environment,) = db.environments()
        (model,) = db.models(environment)
        db.save_finding("in_situ", model.key, environment, IN_SITU.to_json())
    assert cli.main(["report", "model", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["validation"]["rows"] == rows
    assert document["in_situ"] == json.loads(json.dumps(IN_SITU.to_json()))
    assert "Alone and within a real step" in Path(document["report"]).read_text(encoding="utf-8")


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


def test_models_lists_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "llama3.2-1b" in capsys.readouterr().out
    assert cli.main(["models", "--json"]) == 0
    assert "llama-300m" in json.loads(capsys.readouterr().out)["shipped"]


@pytest.fixture
def published(place: Path) -> Path:
    """A place whose latency DB has published linears of an H200: one of the model's own sizes, and others around."""
    around = [(n, k) for n in (32, 64, 128, 192, 256, 320, 384, 512) for k in (32, 40, 48, 64, 128, 192, 256)]
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        db.publish(linears([(96, 64), *around]))
    return place


def test_predict_a_step_on_a_gpu_that_is_not_here(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "model", "--device=h200_sxm", "--batch=1+8,4", *SMALL]
    assert cli.main(asked) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("step of 2 requests, 5 tokens: ")
    (known,) = (line for line in streams.out.splitlines() if "linear-64x96-fp32" in line)
    assert "published, 6 rows" in known
    (between,) = (line for line in streams.out.splitlines() if "linear-96x64-fp32" in line)
    assert "across sizes, 342 rows" in between
    assert "tables 1, 342.parquet" in streams.out
    assert "fitting gemm fp32 on NVIDIA H200 to 342 published latencies" in streams.err
    assert "every figure is an estimate" not in streams.err
    assert cli.main([*asked, "--json"]) == 0
    streams = capsys.readouterr()
    assert "fitting" not in streams.err  # known from before
    document = json.loads(streams.out)
    assert document["device"] == "h200_sxm"
    assert sum(document["shares"]["by_kind"].values()) == pytest.approx(1)
    assert document["shares"]["by_kind"]["published"] > 0 < document["shares"]["by_kind"]["across sizes"]
    assert sum(o["latency_s"] for o in document["operations"]) == pytest.approx(document["latency_s"])
    assert {o["basis"]["kind"] for o in document["operations"]} == {"published", "across sizes", "estimate"}


def test_predict_a_workload_on_a_gpu_that_is_not_here(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "model", "--device=h200_sxm", "--prompt=16", "--output=8", *SMALL]
    assert cli.main(asked) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("prompt 16, output 8, 1 at once: TTFT ")
    assert re.match(r"a decode step rests on: [\d.]+% published, [\d.]+% across sizes, [\d.]+% estimate; ", second)
    assert re.fullmatch(r"memory: 0\.0 GB of weights and 0\.0 GB of caches, of 130 GB that the engine takes", third)
    assert cli.main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tp"], document["device"], document["workload"]["output_len"]) == (1, "h200_sxm", 8)
    assert 0 < document["tpot_s"] < document["ttft_s"] < document["duration_s"]
    assert document["expected_error"] > 0
    assert document["memory"]["fits"]
    assert cli.main(["predict", "model", "--device=h200_sxm", "--batch=4000", *SMALL]) == 0
    assert "OutOfRangeWarning: linear-64x96-fp32: num_tokens 4,000 is outside of the published 1 to 1,024" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("command", "estimated"),
    [
        (["predict", "model", "--batch=1+8"], "rests on: 100.0% estimate"),
        (["predict", "model", "--prompt=8", "--output=8"], "a decode step rests on: 100.0% estimate"),
        (["compare", "model", "--prompt=8", "--output=8"], "0%      0%      100%"),
        (["plan", "model"], "to time"),
    ],
    ids=["step", "workload", "compare", "plan"],
)
def test_a_gpu_of_which_nothing_is_known_is_estimated_and_warned_of(
    published: Path, capsys: pytest.CaptureFixture[str], command: list[str], estimated: str
) -> None:
    assert cli.main([*command, "--device=a100_sxm", *SMALL]) == 0
    streams = capsys.readouterr()
    assert estimated in streams.out
    warning = "nothing of NVIDIA A100-SXM4-80GB is in the latency DB: every figure is an estimate; run dooly import"
    assert [warning in line for line in streams.err.splitlines()].count(True) == 1


def test_compare_models_on_gpus(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(published / "other", LLAMA, hidden_size=64, intermediate_size=192, vocab_size=128)
    asked = [
        "compare",
        "model",
        "other",
        "--device",
        "h200_sxm",
        "l40s",
        "--prompt=16",
        "--output=8",
        "--concurrency=2",
    ]
    assert cli.main([*asked, "--png=ways.png", *SMALL]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[0] == "2 requests of 16 prompt and 8 output tokens"
    assert {tuple(line.split()[:3]) for line in lines[3:7]} == {
        (model, device, "1") for model in ("model", "other") for device in ("h200_sxm", "l40s")
    }
    assert Path("ways.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing of NVIDIA L40S is in the latency DB" in streams.err
    assert cli.main([*asked, "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["workload"] == {"prompt_len": 16, "output_len": 8, "concurrency": 2, "num_reqs": None}
    assert len(document["candidates"]) == 4
    for each in document["candidates"]:
        assert sum(each["shares"].values()) == pytest.approx(1)
        assert (each["expected_error"] is None) == (each["device"] == "l40s")


def test_ranks_are_compared_and_experts_may_be_spread_over_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "model", "--device=h200_sxm", "--prompt=8", "--output=8", "--json", *SMALL]
    assert cli.main([*command, "--tp", "1", "2"]) == 0
    assert [each["tp"] for each in json.loads(capsys.readouterr().out)["candidates"]] == [1, 2]
    assert cli.main([*command, "--tp", "2", "--ep=2"]) == 0
    assert [each["tp"] for each in json.loads(capsys.readouterr().out)["candidates"]] == [2]
    assert cli.main([*command, "--tp", "2", "4", "--ep=2"]) == 2
    assert "ep 2 beside tp 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("png", "complaint"), [("ways.svg", "name a file that ends in .png"), ("model/config.json/a.png", "cannot write")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    place: Path, capsys: pytest.CaptureFixture[str], png: str, complaint: str
) -> None:
    assert cli.main(["compare", "model", "--device=h200_sxm", f"--png={png}", *SMALL]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_a_picture_s_folder_is_made_and_what_is_named_twice_is_compared_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", "model", "model", "--device", "h200_sxm", "h200_sxm", "--tp", "1", "1", "--prompt=8", *SMALL]
    assert cli.main([*asked, "--output=8", "--png=new/folder/ways.png", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 1
    assert Path("new/folder/ways.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*asked, "--output=900"]) == 2
    assert "model: prompt and output of 8 + 900 tokens exceed max_model_len" in capsys.readouterr().err


def test_compare_names_what_is_out_of_range(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        db.publish(linears([(96, 32), (96, 48), (96, 56)]))
    assert cli.main(["compare", "model", "--device=h200_sxm", "--prompt=16", "--output=8", *SMALL]) == 0
    assert "model: linear-64x96-fp32: k 64 is outside of the published 32 to 56 (h200_sxm)" in (capsys.readouterr().err)


def test_plan_before_a_gpu_is_rented(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "model", "--device=h200_sxm", "--target=0.5"]
    assert cli.main([*asked, *SMALL]) == 0
    out = capsys.readouterr().out
    assert re.search(r"linear-64x96-fp32 +in the DB +published, 6 rows", out)
    assert re.search(r"linear-96x64-fp32 +predicted +across sizes, 342 rows", out)
    assert re.search(r"rms_norm-64-fp32 +to time +estimate +\d+ to \d+ +\d+ to \d+\n", out)
    assert re.search(r"all together: [\d.]+ to [\d.]+ device minutes on NVIDIA H200\n", out)
    assert cli.main([*asked, "--price=3", "--json", *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    (plan,) = document["plans"]
    assert (document["target"], plan["price"], plan["tp"]) == (0.5, 3, 1)
    assert plan["device_s"] == plan["set_up_s"] + sum(o["device_s"] for o in plan["operations"])
    assert {o["verdict"] for o in plan["operations"]} == {"in the DB", "predicted", "to time"}


def test_plan_several_models_on_several_gpus(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(published / "other", LLAMA, hidden_size=64, intermediate_size=192, vocab_size=128)
    devices = ["--device", "h200_sxm", "NVIDIA L40S"]
    assert cli.main(["plan", "model", "other", *devices, "--price=2", *SMALL]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(("model  ", "other  "))]
    assert [row[0] for row in rows] == ["model", "model", "other", "model", "model", "other"]  # below its header
    assert int(rows[2][3]) > 0  # what the second shares with the first
    assert re.search(r"on NVIDIA H200, [\d.]+ to [\d.]+ at 2 an hour", out)
    assert "on NVIDIA L40S, " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "nonsense", "--engine=fake"], "unknown model 'nonsense'"),
        (["trace", "model", "--engine=fake", "--tp=none"], "tp must be a whole number, got 'none'"),
        (["validate", "model", "--repeats=1", *SMALL], "--repeats must be at least 2"),
        (["validate", "model", "--prompt", "99", *SMALL], "no workload of that grid fits"),
        (
            ["predict", "model", "--batch=1", "--device=h300", *SMALL],
            "unknown device 'h300': name one of a100_sxm, b200",
        ),
        (["compare", "model", "--device=h300", *SMALL], "unknown device 'h300'"),
        (["compare", "model", *SMALL], "name the GPUs with --device, as in --device h200_sxm"),
        (["plan", "model", *SMALL], "name the GPUs with --device, as in --device h200_sxm"),
        (["plan", "model", "--device=h200_sxm", "--tp=two", *SMALL], "tp must be a whole number, got 'two'"),
        (["compare", "model", "--device=h200_sxm", "--prompt=99", *SMALL], "99 + 64 tokens exceed max_model_len 32"),
        (["plan", "nonsense", "--device=h200_sxm", *SMALL], "unknown model 'nonsense'"),
    ],
)
def test_wrong_usage_exits_2(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["predict", "model"],
        ["predict", "model", "--batch=x"],
        ["predict", "model", "--prompt=0"],
        ["validate", "model", "--budget=0"],
        ["plan", "model", "--price=much"],
        ["plan", "model", "--price=0"],
        ["plan", "model", "--target=5"],
        ["plan"],
        ["compare"],
        ["predict", "model", "--prompt=1.5"],
        ["import", "aiconfigurator"],
        ["import", "nonsense", "--system", "h200_sxm"],
    ],
)
def test_a_line_that_cannot_be_parsed_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2


def test_other_failures_exit_1(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "notes").write_text("mine")
    assert cli.main(["trace", "model", "--db=notes", *SMALL]) == 1
    assert "no latency DB" in capsys.readouterr().err

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_dooly.cli.report.models", interrupt)
    assert cli.main(["models"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_what_an_engine_prints_does_not_reach_standard_output(place: Path) -> None:
    program = (
        "import os, sys\nfrom pytest_dooly import cli\nfrom pytest_dooly.engine.fake import FakeEngine\n"
        "environment = FakeEngine.environment\n"
        "def noisy(self, configuration):\n    os.write(1, b'noise')\n    return environment(self, configuration)\n"
        "FakeEngine.environment = noisy\n"
        f"sys.exit(cli.main(['trace', 'model', '--json', *{SMALL!r}]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["model"] == "model"
    assert "noise" in result.stderr
