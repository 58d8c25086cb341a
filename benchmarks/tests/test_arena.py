"""Published runs as they are read, and their errors as they are added up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.arena.calibration import calibration, system_error
from benchmarks.arena.client import longest_of, server_of, traffic_of
from benchmarks.arena.models import document_of, is_known, written
from benchmarks.arena.predictions import Predicted
from benchmarks.arena.report import Row, tables, within
from benchmarks.arena.runs import RUNS as RUNS_FILE
from benchmarks.arena.runs import PublishedRun, read_runs
from benchmarks.arena.theirs import estimates, key_of
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.prediction.interval import operations_error
from pytest_dooly.prediction.shares import Shares

RUNS = list(read_runs())
FOUND = [run for run, _, _ in RUNS if run is not None]


def test_every_row_is_a_run_or_has_a_reason() -> None:
    assert len(RUNS) == 1478
    assert all((run is None) == bool(reason) for run, _, reason in RUNS)
    assert len(FOUND) == 1352


def test_attention_may_be_data_parallel() -> None:
    """Eight engines of one rank each, whose experts lie on all eight."""
    shared = [run for run in FOUND if run.engines > 1]
    assert {(run.model, run.ranks, run.engines, run.experts) for run in shared} == {
        ("MiniMaxAI/MiniMax-M2.5", 1, 8, 8),
        ("deepseek-ai/DeepSeek-V3.2", 1, 8, 8),
    }
    assert len(shared) == 8


def test_a_run_is_what_its_row_says() -> None:
    run = next(each for each in FOUND if each.model == "openai/gpt-oss-120b" and each.version == "0.11.2")
    assert (run.device, run.ranks, run.kv_cache_dtype) == ("b200_sxm", 1, "fp8")
    assert (run.prompt_len, run.output_len, run.shortest) == (1024, 1024, 0.8)
    assert (run.concurrency, run.num_requests, run.max_num_tokens, run.max_num_seqs) == (4, 40, 8192, 512)
    assert run.ttft_s == pytest.approx(0.0442424)
    assert run.tpot_s == pytest.approx(0.0037348)
    assert run.async_scheduling
    assert not run.low_trust


def test_what_the_kv_cache_had_room_for_says_its_dtype() -> None:
    """And before vLLM 0.13 a checkpoint's own was not followed."""
    llama = {(run.model, run.device): run.kv_cache_dtype for run in FOUND if run.model.startswith("nvidia/Llama-3")}
    assert llama == {
        ("nvidia/Llama-3.3-70B-Instruct-FP8", "h100_sxm"): "bfloat16",
        ("nvidia/Llama-3.3-70B-Instruct-FP8", "h200_sxm"): "fp8",
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "h200_sxm"): "bfloat16",
    }
    assert {run.kv_cache_dtype for run in FOUND if "Nemotron" in run.model} == {None}
    slow = {(run.model, run.device, run.version) for run in FOUND if run.attends_in_two_bytes}
    assert slow == {("nvidia/Llama-3.3-70B-Instruct-FP8", "h200_sxm", "0.10.2")}


def test_lengths_may_be_known_roughly() -> None:
    rough = [run for run in FOUND if run.roughly]
    a6000 = next(run for run in rough if run.device == "rtx_a6000" and "3-8B" in run.model and run.concurrency == 1)
    assert (a6000.prompt_len, a6000.output_len, a6000.concurrency, a6000.medians) == (280, 310, 1, True)
    rtx_3090 = next(run for run in rough if run.device == "rtx_3090" and run.concurrency == 10)
    assert (rtx_3090.prompt_len, rtx_3090.output_len, rtx_3090.num_requests) == (184, 285, 200)
    reasons = Counter(reason for _, row, reason in RUNS if "coding-agent" in row["notes"])
    assert list(reasons) == ["prompts of agents begin alike, and how much of them is not published"]


def test_conversations_are_mostly_short() -> None:
    run = next(run for run in FOUND if run.sharegpt and run.concurrency is None and run.row["num_prompts"] == "1000")
    assert (run.prompt_len, run.output_len, run.roughly, run.rate) == (219, 200, True, None)
    requests = traffic_of(run).requests
    for lengths, mean in (([each.prompt_len for each in requests], 219), ([each.output_len for each in requests], 200)):
        assert np.mean(lengths) == pytest.approx(mean, rel=0.1)
        assert np.median(lengths) == pytest.approx(mean * np.log(2), rel=0.1)  # of an exponential law
        assert np.percentile(lengths, 10) < mean / 5
    assert max(each.prompt_len + each.output_len for each in requests) <= longest_of(run) == 2048
    assert {each.arrival_s for each in requests} == {0.0}


def test_requests_of_a_rate_come_at_random_or_evenly() -> None:
    poisson = next(run for run in FOUND if run.rate == 25.0)
    assert (poisson.concurrency, poisson.num_requests, poisson.in_process) == (None, 200, True)
    gaps = np.diff([each.arrival_s for each in traffic_of(poisson).requests])
    assert np.mean(gaps) == pytest.approx(1 / 25, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 25, rel=0.25)
    even = next(run for run in FOUND if run.evenly and run.rate == 4.0)
    assert np.ptp(np.diff([each.arrival_s for each in traffic_of(even).requests])) < 1e-9


def test_throughput_may_follow_from_what_else_is_said() -> None:
    long = next(run for run in FOUND if run.row["total_tok_per_s"] and not run.row["output_tok_per_s"])
    share = long.output_len / (long.prompt_len + long.output_len)
    assert long.tokens_per_s == pytest.approx(float(long.row["total_tok_per_s"]) * share)
    batch = next(run for run in FOUND if run.row["e2e_mean_ms"] == "997.542")
    assert batch.tokens_per_s == pytest.approx(8 * 128 / 0.997542)
    alone = next(run for run in FOUND if run.row["itl_median_ms"] == "7.75" and run.concurrency == 1)
    assert alone.tpot_s == pytest.approx(7.75e-3)
    assert all(run.tpot_s or run.ttft_s or run.tokens_per_s for run in FOUND)


def test_an_engine_in_the_client_s_process_has_no_server() -> None:
    alone = next(run for run in FOUND if run.in_process)
    behind = next(run for run in FOUND if not run.in_process)
    assert (server_of(alone).request_s, server_of(alone).token_s) == (0.0, 0.0)
    assert server_of(behind).request_s > 0


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


def test_a_type_of_transformers_becomes_a_model_with_what_differs() -> None:
    air, large = document_of("zai-org/GLM-4.5-Air"), document_of("zai-org/GLM-4.6-FP8")
    assert air is not None
    assert large is not None
    assert (air["n_routed_experts"], air["num_hidden_layers"], air["architectures"]) == (
        128,
        46,
        ["Glm4MoeForCausalLM"],
    )
    assert (large["n_routed_experts"], large["num_hidden_layers"], large["use_qk_norm"]) == (160, 92, True)
    assert large["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] == "channel"


def test_a_configuration_may_be_brought_along(tmp_path: Path) -> None:
    assert not is_known("somebody/else", tmp_path)
    own = tmp_path / "somebody--else"
    own.mkdir()
    (own / "config.json").write_text('{"hidden_size": 7}')
    assert is_known("somebody/else", tmp_path)
    assert written("somebody/else", tmp_path) == str(own)
    assert (own / "config.json").read_text() == '{"hidden_size": 7}'


def test_runs_of_other_people_are_read_alike(tmp_path: Path) -> None:
    rows = RUNS_FILE.read_text(encoding="utf-8").splitlines()
    few = tmp_path / "runs.csv"
    few.write_text("\n".join(rows[:3]) + "\n", encoding="utf-8")
    assert [row for _, row, _ in read_runs(few)] == [row for _, row, _ in RUNS[:2]]


def test_files_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*nowhere.csv: FileNotFoundError: .*; name a CSV file"):
        list(read_runs(tmp_path / "nowhere.csv"))
    few = tmp_path / "few.csv"
    few.write_text("hf_model,device\nme/mine,h100_sxm\n")
    with pytest.raises(ConfigurationError, match="has no column engine_version, precision, tp, ep, prompt_len"):
        list(read_runs(few))
    header, first = RUNS_FILE.read_text(encoding="utf-8").splitlines()[:2]
    few.write_text(f"{header}\n{first.replace('concurrency=', 'concurrency=many')}\n")
    ((run, _, reason),) = read_runs(few)
    assert run is None
    assert reason.startswith("its row cannot be read: ValueError: invalid literal for int()")


def test_four_ranks_that_are_called_sixteen_are_four() -> None:
    named = [run for run in FOUND if "attention_dp=4 moe_tp=1 moe_ep=16" in run.row["notes"]]
    assert {(run.ranks, run.experts, run.device) for run in named} == {(4, 4, "h100_sxm")}
    assert len(named) == 15


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


def test_a_queue_s_interval_is_the_one_that_simulate_states() -> None:
    """Wider than the figure's own; none of a load beyond capacity."""
    far = row(FOUND[0], 0.02, 0.1)
    queued = replace(far, ours=replace(far.ours, within_s={"ttft": None, "tpot": (0.009, 0.03)}))
    assert not within(far, "tpot")
    assert within(queued, "tpot")
    assert within(queued, "ttft") is None


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
