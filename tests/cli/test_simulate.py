"""`dooly simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pytest_dooly
from pytest_dooly import cli
from tests.cli import SMALL

LOAD = ("--rate=20", "--prompt=12", "--output=6", "--duration=20")


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert cli.main(["simulate", "model", "--json", *arguments, *SMALL]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_a_load_on_what_was_profiled_here(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = simulated(capsys, *LOAD)
    assert document["completed"] == 400
    assert document["total_input_tokens"] == 400 * 12
    assert document["total_output_tokens"] == 400 * 6
    assert document["mean_ttft_ms"] > 0  # type: ignore[operator]
    assert document["p99_e2el_ms"] >= document["median_e2el_ms"]  # type: ignore[operator]
    assert document == simulated(capsys, *LOAD)
    assert document != simulated(capsys, *LOAD, "--seed=1")
    assert cli.main(["simulate", "model", *LOAD, *SMALL]) == 0
    assert "Mean TTFT (ms):" in capsys.readouterr().out


def test_stages_closed_loops_prefixes_and_goodput(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged = simulated(capsys, "--rate=2@10,5@10", "--prompt=12", "--arrivals=constant", "--slo=ttft:1s", "--output=4")
    stages: list[dict[str, float]] = staged["stages"]  # type: ignore[assignment]
    assert [(each["stage"], each["request_rate"], each["completed"]) for each in stages] == [(0, 2, 20), (1, 5, 50)]
    assert all(each["mean_itl_ms"] > 0 for each in stages)
    assert staged["request_goodput"] is not None
    loop = simulated(capsys, "--concurrency=2", "--requests=10", "--prompt=12", "--output=4", "--range-ratio=0.5")
    assert (loop["completed"], loop["max_concurrent_requests"]) == (10, 2)
    assert loop["total_input_tokens"] < 120  # type: ignore[operator]
    shared = simulated(capsys, "--rate=1", "--requests=30", "--prompt=4", "--output=2", "--shared-prefix=1x2x16")
    assert shared["prefix_cache_hit_rate"] > 0.5  # type: ignore[operator]
    apart = simulated(
        capsys, "--rate=1", "--requests=30", "--prompt=4", "--output=2", "--shared-prefix=1x2x16", "--no-prefix-caching"
    )
    assert apart["prefix_cache_hit_rate"] == 0


def test_a_trace_is_served_and_what_is_too_long_is_counted(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (profiled / "trace.csv").write_text("arrival_s,prompt_len,output_len\n0,8,4\n1,8,4\n2,800,4\n")
    assert cli.main(["simulate", "model", "--json", "--trace=trace.csv", "--out=requests.csv", *SMALL]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["completed"] == 2
    assert "1 request of trace.csv left out" in captured.err
    assert cli.main(["simulate", "model", "--json", "--trace=trace.csv", "--requests=9", *SMALL]) == 0
    assert "trace.csv gives 2 requests, fewer than the 9 of --requests" in capsys.readouterr().err
    assert cli.main(["simulate", "model", "--json", "--trace=trace.csv", "--duration=0.5", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 1
    assert len((profiled / "requests.csv").read_text().splitlines()) == 3


def test_a_load_beyond_capacity_is_called_so(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--rate=100000", "--requests=400", "--prompt=12", "--output=4")
    document = simulated(capsys, *load)
    served, rate = document["sustained_throughput"], document["sustainable_rate"]
    assert document["overloaded"]
    assert 0.5 * served < rate < 1.2 * served  # type: ignore[operator]
    assert simulated(capsys, f"--rate={0.9 * rate}", *load[1:])["sustained_throughput"] is None  # type: ignore[operator]
    assert cli.main(["simulate", "model", *load, *SMALL]) == 0
    assert f"the same requests would be kept up with at about {rate:.3g}/s" in capsys.readouterr().out


def test_a_file_is_read_as_its_options_say(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"timestamp": %d, "input_length": 20, "output_length": 2, "hash_ids": [1, 2]}\n'
    (profiled / "qwen.jsonl").write_text("".join(line % at for at in range(3)))
    document = simulated(capsys, "--trace=qwen.jsonl", "--trace-hash-tokens=16", "--trace-time-unit=60")
    assert document["completed"] == 3
    assert document["duration"] > 120  # type: ignore[operator]
    assert document["prefix_cache_hit_rate"] > 0.5  # type: ignore[operator]
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    (profiled / "burst.csv").write_text(header + "".join(f"{i},{m},8,2,10,x\n" for i, m in enumerate(("A", "B", "B"))))
    assert simulated(capsys, "--trace=burst.csv", "--trace-model=B")["completed"] == 2
    assert cli.main(["simulate", "model", "--rate=1", "--prompt=8", "--trace-model=B", *SMALL]) == 2
    assert "--trace-model says how a file is read: name it with --trace" in capsys.readouterr().err


def test_a_file_without_times_is_served_in_a_closed_loop(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (profiled / "lengths.csv").write_text("prompt_len,output_len\n" + "8,4\n" * 6)
    document = simulated(capsys, "--trace=lengths.csv", "--concurrency=2")
    assert (document["completed"], document["max_concurrent_requests"]) == (6, 2)
    assert cli.main(["simulate", "model", "--trace=lengths.csv", *SMALL]) == 2
    assert "name a rate or a concurrency" in capsys.readouterr().err


def test_a_gpu_that_is_not_here_is_served_with_its_own_limits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--rate=5", "--requests=20", "--prompt=8", "--kv-blocks=100"]
    asked = ["simulate", "model", "--engine=fake", "--device=h200_sxm", *load]
    assert cli.main([*asked, "--json"]) == 0
    served = json.loads(capsys.readouterr().out)
    assert (served["max_num_tokens"], served["max_num_seqs"], served["max_model_len"]) == (8192, 1024, 512)
    for figure in ("mean_ttft", "mean_tpot", "p99_ttft", "p99_e2el"):
        assert served[f"{figure}_low_ms"] < served[f"{figure}_ms"] < served[f"{figure}_high_ms"]
    assert served["may_overload"] is False
    assert served["server_ms"] == pytest.approx(6.1)
    assert served["shares"]["by_kind"]["estimate"] > 0
    kept = pytest_dooly.predict("model", workload=pytest_dooly.Workload(8, 4, 100), device="h200_sxm")
    assert kept.ttft_s > 0  # the options are in the latency DB, and they name no limits
    assert cli.main([*asked, "--max-num-tokens=64", "--max-num-seqs=2"]) == 0
    text = capsys.readouterr().out
    assert "tp 1, up to 64 tokens and 2 requests a step" in text
    assert "a decode step rests on: " in text
    assert cli.main([*asked, "--rate=1000000", "--requests=500", "--max-num-seqs=1", "--json"]) == 0
    beyond = json.loads(capsys.readouterr().out)
    assert beyond["overloaded"]
    assert "mean_ttft_low_ms" not in beyond
    assert cli.main([*asked, "--max-num-seqs=2", "--gpu-memory-utilization=90"]) == 2
    assert "must be above 0 and at most 1, got 90" in capsys.readouterr().err


def test_an_older_release_does_what_it_did(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step waits for the one before, and less of the memory is the engine's; what is named counts before that."""
    load = ["--concurrency=8", "--requests=32", "--prompt=8", "--output=64", "--kv-blocks=100", "--json"]
    asked = ["simulate", "model", "--engine=fake", "--device=h200_sxm", *load]

    def served(*more: str) -> dict[str, Any]:
        assert cli.main([*asked, *more]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    newest, old = served(), served("--release=0.10.2")
    assert (newest["release"], newest["async_scheduling"]) == (None, True)
    assert (old["release"], old["async_scheduling"]) == ("0.10.2", False)
    assert old["median_tpot_ms"] > newest["median_tpot_ms"]
    assert [old["gpu_memory_utilization"], newest["gpu_memory_utilization"]] == [0.9, 0.92]
    assert served("--release=0.20.1", "--gpu-memory-utilization=0.8")["gpu_memory_utilization"] == 0.8
    assert served("--release=0.20.1", "--no-async-scheduling")["median_tpot_ms"] == old["median_tpot_ms"]
    for wrong, message in {
        "--release=0.7.3": "vLLM 0.7.3 has an engine before V1",
        "--release=new": "unknown release of vLLM 'new': name it as in 0.10.2",
    }.items():
        assert cli.main([*asked, wrong]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["simulate", "model", "--release=0.10.2", *SMALL, *load]) == 2
    assert "--release is of a GPU that is not here: name it with --device" in capsys.readouterr().err


def test_a_picture(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated(capsys, *LOAD, "--png=load.png")
    assert (profiled / "load.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_adds_no_more_than_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["simulate", "model", "--prompt=8", "--rate=1", "--requests=3", "--server-ms=1e300"])
    assert "must be at most 3,600,000, got 1e300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate=1", "--prompt=8"], "name a --duration or --requests"),
        (["--rate=1"], "name the tokens of each prompt with --prompt"),
        (["--prompt=8"], "name a rate"),
        (["--prompt=8", "--concurrency=2", "--gpu-memory-utilization=0.5"], "name it with --device"),
        (["--prompt=8", "--concurrency=2", "--arrivals=constant"], "--arrivals says how requests of a --rate come"),
        (["--trace=t.csv", "--prompt=8"], "--prompt does not go with --trace"),
        (["--prompt=8", "--concurrency=2", "--duration=5"], "--duration goes with --rate"),
        (["--prompt=8", "--rate=1", "--requests=3", "--out=requests.txt"], "name a .csv or .parquet file"),
        (["--prompt=8", "--rate=fast"], "fast"),
        (["--prompt=8", "--rate=1", "--requests=3", "--slo=soon"], "of the SLO"),
        (["--prompt=lognormal:1e-300,1e8,1,8", "--rate=1", "--requests=3"], "a mean of at least 0.001"),
        (["--prompt=800", "--rate=1", "--requests=3"], "exceeds max_model_len 32"),
        (["--trace=missing.csv"], "missing.csv"),
        (["--prompt=8", "--rate=1", "--requests=3", "--kv-blocks=2"], "do not hold one request"),
        (
            ["--prompt=8", "--concurrency=2", "--requests=4", "--replicas=2"],
            "several replicas take open arrivals",
        ),
        (["--prompt=8", "--rate=1", "--requests=3", "--dp=2"], "simulate them as dooly simulate --replicas 2"),
        (["--prompt=uniform:4,8", "--rate=1", "--requests=3", "--range-ratio=0.8"], "goes with a number of tokens"),
    ],
)
def test_wrong_usage_is_one_message(
    profiled: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(["simulate", "model", *arguments, *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_the_fake_engine_has_no_scheduler_of_its_own(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "model", *LOAD, "--scheduler=vllm", *SMALL]) == 1
    assert "scheduler of its own" in capsys.readouterr().err
