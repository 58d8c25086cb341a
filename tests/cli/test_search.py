"""`dooly search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_dooly import cli
from pytest_dooly.searching.study import Finished
from tests.cli import SMALL
from tests.models import LLAMA, write

ENGINE = ("--engine=fake", "--max-model-len=32", "--kv-blocks=50")
ASKED = (
    *("search", "model", "--device", "h200_sxm", "l40s", "--max-num-seqs", "2", "4", "--max-num-tokens=16"),
    *("--prompt=12", "--output=8", "--requests=40", "--slo=ttft_p99:500ms,tpot_p90:40ms", "--jobs=1", *ENGINE),
)


def found(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, object]:
    assert cli.main([*ASKED, "--json", *arguments]) == status
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_candidates_are_ranked_and_the_best_is_deployed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASKED, "--price", "h200_sxm=3,l40s=1", "--png=search.png"]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[0].startswith("4 of 4 candidates under ttft_p99:500ms,tpot_p90:40ms")
    assert lines[2].split()[:5] == ["#", "device", "seqs", "cost/Mtok", "req/s"]
    assert "vllm serve model --tensor-parallel-size 1" in streams.out
    assert "nothing of NVIDIA L40S is in the latency DB: every figure is an estimate" in streams.err
    assert "mostly estimates from the data sheet" in streams.out
    assert Path("search.png").read_bytes().startswith(b"\x89PNG")
    document = found(capsys, "--price=h200_sxm=3,l40s=1")
    assert document["resumed"] == document["grid"] == 4
    candidates: list[dict[str, dict[str, float]]] = document["candidates"]  # type: ignore[assignment]
    costs = [each["bill"]["cost"] for each in candidates]
    assert costs == sorted(costs)
    assert document["front"][0] == 1  # type: ignore[index]


def test_without_prices_throughput_decides_and_a_rate_asks_for_replicas(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = found(capsys)
    first = document["candidates"][0]  # type: ignore[index]
    assert document["cost_of"] is None
    assert first["bill"]["cost"] is None
    rate = 2.5 * first["outcome"]["rate"]
    document = found(capsys, f"--rate={rate}")
    assert document["resumed"] == 4
    assert {each["bill"]["replicas"] for each in document["candidates"]} >= {3}  # type: ignore[attr-defined]
    assert cli.main([*ASKED, f"--rate={rate}"]) == 0
    assert "# 3 replicas" in capsys.readouterr().out


def test_what_limits_a_candidate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASKED, "--explain=2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("2: model on ")
    assert "and meets the SLO: ttft_p99" in text
    assert cli.main([*ASKED, "--explain=9"]) == 2
    streams = capsys.readouterr()
    assert streams.out.startswith("4 of 4 candidates")  # found is found
    assert streams.err.endswith("dooly: --explain 9: name a line from 1 to 4\n")


def test_an_slo_that_nothing_meets(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASKED, "--slo=tpot:0.001ms", "--explain=1"]) == 3
    streams = capsys.readouterr()
    assert streams.err.endswith("dooly: --explain 1: there is no candidate to explain\n")
    text = streams.out
    assert text.splitlines()[0].endswith(" s, 0 of them simulated")
    assert "no candidate meets the SLO; the nearest is model on" in text
    assert "times its bound where a request meets no other" in text
    assert "4 candidates not simulated: a request that meets no other misses the SLO already" in text


def test_several_values_of_each_option_and_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "trace.csv").write_text("arrival_s,prompt_len,output_len\n" + "".join(f"{n},8,4\n" for n in range(1, 40)))
    command = ["search", "model", "--device=h200_sxm", "--tp", "1", "2", "--ep", "1", "2", "--trace=trace.csv"]
    command += ["--prefix-caching", "on", "off", "--kv-cache-dtype", "auto", "--slo=ttft:1s", "--jobs=1", "--json"]
    assert cli.main([*command, "--max-num-tokens", "8", "16", "--max-num-seqs=4", *ENGINE]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert document["grid"] == 12  # tp 1; tp 2 with and without experts spread; caching; tokens
    assert cli.main([*command, "--prompt=8", "--max-num-seqs=4", *ENGINE]) == 2
    assert "--prompt does not go with --trace" in capsys.readouterr().err


def test_a_value_that_goes_with_none_of_the_others_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASKED, "--tp", "1", "2", "--ep", "1", "4", "--json"]) == 0
    streams = capsys.readouterr()
    (left_out,) = json.loads(streams.out)["left_out"]
    assert left_out.startswith("ep 4 goes with none of tp 1 2 and dp 1: ")
    assert f"left out: {left_out}" in streams.err


def test_traffic_is_asked_for_before_anything_is_traced(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_dooly.cli.search.opened", None)
    asked = [each for each in ASKED if not each.startswith("--prompt")]
    assert cli.main(asked) == 2
    assert "name the tokens of each prompt with --prompt, or a file with --trace" in capsys.readouterr().err


def test_several_models_are_one_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "other", LLAMA, hidden_size=64, intermediate_size=192, vocab_size=128)
    asked = list(ASKED)
    asked.insert(2, "other")
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[1] == "model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--price=tpu=3"], "unknown device 'tpu'"),
        (["--price=h200_sxm=3"], "--price names none of l40s"),
        (["--price=h200_sxm"], "as a price"),
        (["--slo=ttft:5"], "of the SLO"),
        (["--device=tpu"], "unknown device 'tpu'"),
        (["--max-num-seqs=many"], "max-num-seqs must be a whole number, got 'many'"),
        (["--tp=0"], "tp must be at least 1, got 0"),
        (["--tp=2", "--ep=4"], "ep 4 goes with none of tp 2 and dp 1: experts are spread over all ranks or over none"),
        (["--dp=2"], "dp 2 is for the experts of a mixture, which model has none of"),
        (["--prompt=40"], "exceed"),
    ],
)
def test_wrong_options_are_one_message(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status = cli.main([*ASKED, *arguments])
    streams = capsys.readouterr()
    assert status in (1, 2, 3)
    assert message in streams.err + streams.out
    assert status == 3 or "estimate" not in streams.err


def test_an_interrupted_search_says_how_to_go_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def interrupt(finished: Finished) -> None:
        told.append(finished)
        if len(told) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pytest_dooly.cli.search._bar", interrupt)
        assert cli.main(ASKED) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "dooly: interrupted: run the same again to go on; what is finished is kept"
    )
    assert found(capsys)["resumed"] == 2


def test_no_device_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "model", "--slo=ttft:1s", "--prompt=8", *SMALL]) == 2
    assert "name the GPUs with --device" in capsys.readouterr().err
