"""`dooly validate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_dooly import cli
from tests.cli import SMALL


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
    assert status == document["status"] == {"meets": 0, "misses": 1, "undecided": 4}[document["verdict"]]
    assert document["passed"] == (status == 0)
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
    arguments = ["validate", "model", "--points=10", "--budget=60", "--repeats=2", "--no-in-situ", "--json", *SMALL]
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
    cli.main(["validate", "model", "--points=999", "--budget=0.2", "--repeats=2", "--no-in-situ", *SMALL])
    assert "limits and budget leave room for no more, 999 were asked for" in capsys.readouterr().err
