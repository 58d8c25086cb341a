"""`dooly compare` and `dooly plan`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.latency_db.db import LatencyDB
from tests.cli import SMALL
from tests.models import LLAMA, write
from tests.test_profiling import linears


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
