"""`dooly predict`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.engine.fake import _FakeSession
from pytest_dooly.latency_db.db import LatencyDB
from tests.cli import SMALL
from tests.published.test_grounds import attended
from tests.test_profiling import linears
from tests.traced import table


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


def test_predict_with_anybody_s_estimator(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "from sklearn.dummy import DummyRegressor as Dummy",
        "third = Dummy(strategy='constant', constant=1 / 3)",
        "negative = Dummy(strategy='constant', constant=-1)",
    ]
    Path("mine.py").write_text("\n".join(lines))
    asked = ["predict", "model", "--batch=1+8,4", "--json", *SMALL]
    assert cli.main(asked) == 0
    ours = json.loads(capsys.readouterr().out)
    assert cli.main([*asked, "--regressor=mine:third"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    times = {operation["label"]: operation["multiplicity"] for operation in ours["operations"]}
    assert {o["label"]: o["latency_s"] for o in theirs["operations"]} == pytest.approx(
        {label: number / 3 for label, number in times.items()}
    )
    assert cli.main([*asked, "--regressor=mine:negative"]) == 1
    assert re.fullmatch(r"dooly: mine:negative predicts -1 s for \S+ where .*\n", capsys.readouterr().err)
    assert cli.main([*asked, "--regressor=mine:nothing"]) == 2
    assert "module mine has no nothing" in capsys.readouterr().err
    assert cli.main([*asked, "--regressor=mine:third", "--device=h200_sxm"]) == 2
    assert "drop --device h200_sxm" in capsys.readouterr().err
    assert cli.main(asked) == 0
    assert json.loads(capsys.readouterr().out) == ours


def test_a_request_out_of_range_is_answered_with_a_warning(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "model", "--batch=200x20", "--json", *SMALL]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["out_of_range"]
    assert "OutOfRangeWarning: linear-64x96-fp32: size 4,000 is outside of the measured 1 to 16" in streams.err


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
    first, prompt, decode, memory = capsys.readouterr().out.splitlines()
    assert first.startswith("prompt 16, output 8, 1 at once: TTFT ")
    rests = r"rests on: [\d.]+% published, [\d.]+% across sizes, [\d.]+% estimate; "
    assert re.match(rf"a step with a prompt {rests}", prompt)
    assert re.match(rf"a decode step {rests}", decode)
    assert re.fullmatch(r"memory: 0\.0 GB of weights and 0\.0 GB of caches, of 138 GB that the engine takes", memory)
    assert cli.main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [document[each] for each in ("tp", "ep", "dp", "device")] == [1, 1, 1, "h200_sxm"]
    assert document["workload"]["output_len"] == 8
    # Nothing of so small a model takes the device longer than the engine takes over a step.
    assert 0 < document["tpot_s"] <= document["ttft_s"] < document["duration_s"]
    assert document["expected_error"] > 0
    assert document["memory"]["fits"]
    assert cli.main(["predict", "model", "--device=h200_sxm", "--batch=200x20", *SMALL]) == 0
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


@pytest.mark.parametrize("device", [[], ["--device=h200_sxm"]])
def test_a_request_that_is_too_long_is_refused_as_a_step_too(
    profiled: Path, device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "model", "--batch=2x1+8,1+32", *device, *SMALL]) == 2
    assert "a request of 32 + 1 tokens exceeds max_model_len 32" in capsys.readouterr().err
    assert cli.main(["predict", "model", "--batch=2x1+31", *device, *SMALL]) == 0


@pytest.mark.parametrize("option", ["--output=8", "--concurrency=1", "--requests=4"])
def test_a_step_takes_no_options_of_a_workload(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "model", "--batch=1+8", option]) == 2
    name = option.partition("=")[0]
    assert f"{name} goes with --prompt: a --batch is one step" in capsys.readouterr().err


def test_a_step_says_what_it_takes_of_memory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "model", "--device=l40s", "--batch=2x1+8", *SMALL]
    assert cli.main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["fits"]
    assert cli.main(asked) == 0
    assert "of 44 GB that the engine takes" in capsys.readouterr().out.splitlines()[-1]


def test_a_latency_db_that_is_named_must_be_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "model", "--batch=1+8", "--device=l40s", "--db=nosuch.db", *SMALL]) == 1
    assert (
        "there is no latency DB at nosuch.db: name one that there is, or make it with dooly import aiconfigurator "
        "--system l40s --db nosuch.db or pytest --dooly-model=model --dooly-db=nosuch.db"
    ) in capsys.readouterr().err
    assert not Path("nosuch.db").exists()
    LatencyDB.open(Path("empty.db")).close()
    assert cli.main(["predict", "model", "--batch=1+8", "--device=l40s", "--db=empty.db", *SMALL]) == 0
    assert "run dooly import aiconfigurator --system l40s --db empty.db" in capsys.readouterr().err


def test_a_named_gpu_replays_graphs_unless_it_is_to_run_eagerly(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def captured(*options: str) -> int | None:
        load = ["--rate=1", "--requests=4", "--prompt=8", "--output=2", "--kv-blocks=50"]
        assert cli.main(["simulate", "model", "--device=l40s", "--json", *load, *options, *SMALL]) == 0
        most: int | None = json.loads(capsys.readouterr().out)["max_captured"]
        return most

    assert captured() is captured("--execution=cuda_graph") is None  # vLLM's default
    assert captured("--execution=eager") == captured("--max-cudagraph-capture-size=0") == 0
    asked = ["predict", "model", "--batch=1+8", "--device=l40s", *SMALL]
    assert cli.main([*asked, "--execution=eager", "--max-cudagraph-capture-size=8"]) == 2
    assert "--execution eager contradicts --max-cudagraph-capture-size 8: name one" in capsys.readouterr().err
    assert cli.main([*asked, "--execution=cuda_graph", "--max-cudagraph-capture-size=0"]) == 2
    assert cli.main([*asked, "--execution=lazy"]) == 2
    assert "unknown execution 'lazy'" in capsys.readouterr().err


def test_a_named_gpu_has_the_attention_backends_that_something_is_known_of(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["predict", "model", "--batch=1+8", "--device=h200_sxm", "--attention-backend=FLASHINFER", *SMALL]
    assert cli.main(asked) == 2
    message = "nothing is known of attention by FLASHINFER on NVIDIA H200: "
    assert f"{message}leave --attention-backend out" in capsys.readouterr().err
    with LatencyDB.open(Path(".dooly/latency.db")) as db:
        h200 = next(iter(linears([(96, 64)]).rows))
        db.publish(table(attended("prefill") | attended("decode"), file="attention", environment=h200))
    assert cli.main(asked) == 2
    assert f"{message}name FLASH_ATTN, or none" in capsys.readouterr().err
    assert cli.main([*asked, "--attention-backend=FLASH_ATTN"]) == 0
