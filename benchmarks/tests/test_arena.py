"""Published runs as they are read, and their errors as they are added up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.arena.calibration import calibration, system_error
from benchmarks.arena.models import document_of
from benchmarks.arena.predictions import Predicted
from benchmarks.arena.report import Row, tables, within
from benchmarks.arena.runs import PublishedRun, read_runs
from benchmarks.arena.theirs import estimates, key_of
from pytest_dooly.prediction.interval import operations_error
from pytest_dooly.prediction.shares import Shares

RUNS = list(read_runs())
FOUND = [run for run, _, _ in RUNS if run is not None]


def test_every_row_is_a_run_or_has_a_reason() -> None:
    assert len(RUNS) == 1478
    assert all((run is None) == bool(reason) for run, _, reason in RUNS)
    assert len(FOUND) == 1069


def test_a_run_is_what_its_row_says() -> None:
    run = next(each for each in FOUND if each.model == "openai/gpt-oss-120b" and each.version == "0.11.2")
    assert (run.device, run.ranks, run.kv_cache_dtype) == ("b200_sxm", 1, "fp8")
    assert (run.prompt_len, run.output_len, run.shortest) == (1024, 1024, 0.8)
    assert (run.concurrency, run.num_requests, run.max_num_tokens, run.max_num_seqs) == (4, 40, 8192, 512)
    assert run.ttft_s == pytest.approx(0.0442424)
    assert run.tpot_s == pytest.approx(0.0037348)
    assert run.async_scheduling
    assert not run.low_trust


def test_lengths_may_be_known_roughly() -> None:
    rough = [run for run in FOUND if run.roughly]
    a6000 = next(run for run in rough if run.device == "rtx_a6000" and "3-8B" in run.model)
    assert (a6000.prompt_len, a6000.output_len, a6000.concurrency, a6000.medians) == (280, 310, 1, True)
    rtx_3090 = next(run for run in rough if run.device == "rtx_3090" and run.concurrency == 10)
    assert (rtx_3090.prompt_len, rtx_3090.output_len, rtx_3090.num_requests) == (184, 285, 200)
    reasons = Counter(reason for _, row, reason in RUNS if "coding-agent" in row["notes"])
    assert list(reasons) == ["prompts of agents begin alike, and how much of them is not published"]


def test_scheduling_is_asynchronous_by_default_since_0_14() -> None:
    versions = {run.version: run.async_scheduling for run in FOUND if "async-scheduling" not in run.row["notes"]}
    assert (versions["0.10.2"], versions["0.12.0"], versions["0.18.0"]) == (False, False, True)


def test_the_most_requests_of_a_step_may_be_those_at_once() -> None:
    run = next(each for each in FOUND if "max-num-seqs=concurrency" in each.row["notes"])
    assert run.max_num_seqs == run.concurrency


def test_configurations_are_as_published() -> None:
    pytest.importorskip("aiconfigurator_core")
    llama, minimax = (document_of(name) for name in ("nvidia/Llama-3.3-70B-Instruct-FP8", "MiniMaxAI/MiniMax-M2.5"))
    assert llama is not None
    assert minimax is not None
    assert (llama["hidden_size"], llama["quantization_config"]["quant_method"]) == (8192, "modelopt")
    assert minimax["quantization_config"]["weight_block_size"] == [128, 128]
    assert document_of("nobody/nothing") is None


def row(run: PublishedRun, tpot_s: float, ttft_s: float, *, mixture: bool = False) -> Row:
    shares = Shares({"published": 1.0}, 0.02)
    return Row(replace(run, ttft_s=0.1, tpot_s=0.01), Predicted(ttft_s, tpot_s, 100.0, shares, shares, mixture=mixture))


def test_a_checkpoint_in_fp8_is_served_as_one() -> None:
    assert {run.model for run in FOUND if run.precision == "fp8" and "Qwen3-32B" in run.model} == {"Qwen/Qwen3-32B-FP8"}


def test_intervals_hold_nine_of_ten() -> None:
    near, far = [row(FOUND[0], 0.011, 0.1)] * 17, [row(FOUND[0], 0.02, 0.1)] * 3
    assert system_error(near, "tpot") < math.log(1.1)  # a part of it is the operations'
    wide = system_error([*near, *far], "tpot")
    assert math.hypot(wide, operations_error(far[0].ours.decode)) == pytest.approx(math.log(2))
    assert within(far[0], "tpot", wide)
    assert not within(far[0], "tpot", system_error(near, "tpot"))
    assert system_error([], "tpot") == 0.0
    assert within(replace(far[0], run=replace(FOUND[0], tpot_s=None)), "tpot", wide) is None


def test_a_region_is_judged_by_what_is_fitted_to_the_others() -> None:
    near, far = [row(FOUND[0], 0.011, 0.1)] * 5, row(FOUND[0], 0.02, 0.1)
    far = replace(far, run=replace(far.run, prompt_len=5000))
    lines = [line for line in calibration([*near, far]) if "left out: " in line]
    assert [line.split(":")[1].split("  ")[0].strip() for line in lines] == ["prompts of 4,096 tokens and more"]
    judged, tpot, ttft = lines[0].split("|")
    assert judged.split()[-1] == "1"
    assert tpot.split() == [f"{system_error(near, 'tpot'):.2f}", "0%"]
    assert ttft.split() == ["0.00", "100%"]


def test_errors_add_up_by_group_and_kind() -> None:
    run = next(run for run in FOUND if not run.low_trust and not run.unsaid)
    rows = [row(run, 0.011, 0.15), row(run, 0.008, 0.1, mixture=True)]
    text = list(tables(rows, Counter({"no reason": 3})))
    lines = {line[:64].strip(): line for line in text}
    assert "10.0% (+10.0%, 10%)" in lines["dense"]
    assert "20.0% (-20.0%, 20%)" in lines["mixtures"]
    assert "15.0% (-5.0%, 19%)" in lines["all"]
    assert "50.0%" in lines["dense"]
    assert text[-1] == "    3 no reason"


def test_what_aiconfigurator_estimates_stands_beside() -> None:
    theirs = estimates()
    keys = {key_of(run) for run in FOUND}
    assert len(theirs) > 300
    assert keys >= theirs.keys()
    run = next(run for run in FOUND if key_of(run) in theirs and not run.low_trust and not run.unsaid)
    beside = replace(row(run, 0.011, 0.15), theirs=(0.2, 0.005))
    assert beside.their_error("ttft") == pytest.approx(1.0)
    assert beside.their_error("tpot") == pytest.approx(-0.5)
    assert row(run, 0.011, 0.15).their_error("tpot") is None
    total = next(line for line in tables([beside], Counter()) if line.startswith("all that aiconfigurator"))
    assert total.split()[-3:] == ["50.0%", "|", "100.0%"]
