"""The requests that other simulators and we are given, and what stands in for parts of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hosts import Served, told, trace_of
from benchmarks.hosts_llmservingsim_loop import IDLE_NS, Astra
from benchmarks.hosts_sglang import PromptsFirst, tokens_of
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.simulation.traces import read_trace


def test_requests_that_fit_come_at_the_rate_that_is_named(tmp_path: Path) -> None:
    source = tmp_path / "conv.csv"
    rows = ["1.0,10,5", "2.0,4000,97", "3.0,20,6", "5.0,30,7", "9.0,40,8"]
    source.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows, ""]))
    requests = read_trace(trace_of(source, tmp_path / "out.csv", 3, 0.5)).traffic.requests
    assert [(r.prompt_len, r.output_len) for r in requests] == [(10, 5), (20, 6), (30, 7)]
    assert [r.arrival_s for r in requests] == pytest.approx([0, 3, 6])


def test_means_are_told_beside_our_own() -> None:
    theirs = Served("theirs", [0.2, 0.4], [0.02], 10.0, 9.0)
    own = Served("ours", [0.1, 0.3], [0.02], 1.0, 1.0)
    assert told([theirs, own]) == "Beside our own simulation: theirs: mean TTFT +50.0%, mean TPOT +0.0%."
    assert theirs.row == "| theirs | 300.0 | 300.0 | 398.0 | 20.00 | 20.00 | 10.0 | 9.0 |"


def test_sglang_serves_prompts_before_any_decode() -> None:
    scheduler = PromptsFirst(SchedulerOptions(Limits(max_num_tokens=8, max_num_seqs=4, max_model_len=32), 99))
    for place, (prompt, output) in enumerate([(5, 2), (6, 1)]):
        scheduler.add(place, TrafficRequest(0.0, prompt, output))
    steps, ended = [], list[int]()
    while step := scheduler.schedule():
        steps.append(list(zip(step.requests, step.query_lens, step.context_lens, strict=True)))
        ended += scheduler.update(step)
    assert steps == [[(0, 5, 0), (1, 3, 0)], [(1, 3, 3)], [(0, 1, 5)]]
    assert ended == [1, 0]


def test_prompts_begin_alike_where_their_segments_do() -> None:
    prompts = [TrafficRequest(0.0, 5, 1, ((7, 3), (other, 2))) for other in (8, 9)]
    first, second = (tokens_of(place, prompt) for place, prompt in enumerate(prompts))
    assert first[:3] == second[:3]
    assert not set(first[3:]) & set(second[3:])
    assert tokens_of(0, TrafficRequest(0.0, 2, 1)) != tokens_of(1, TrafficRequest(0.0, 2, 1))


def test_what_stands_in_for_astra_sim_waits_for_each_layer_in_turn(tmp_path: Path) -> None:
    for name, layers in (
        ("event", "EVENT\n1\nLayername comp_time\nevent_40ns 40\n"),
        ("batch", "A\n2\nL c\na 3\nb 4\n"),
    ):
        (tmp_path / "trace").mkdir(exist_ok=True)
        (tmp_path / "trace" / f"{name}.txt").write_text(layers)
    astra = Astra(["astra", f"--workload-configuration={tmp_path}/workload/event/llm"])
    said = [astra.readline() for _ in range(2)]
    for told_to in ("pass", f"{tmp_path}/workload/batch/llm"):
        astra.write(told_to + "\n")
        said += [astra.readline() for _ in range(2)]
    cycles = [line.split(", ")[1] for line in said[::2]]
    assert cycles == ["40 cycles", f"{40 + IDLE_NS} cycles", f"{47 + IDLE_NS} cycles"]
    assert set(said[1::2]) == {"Waiting\n"}
    assert not list((tmp_path / "trace").iterdir())
    astra.write("exit\n")
    assert [astra.readline() for _ in range(4)][2] == "All Request Has Been Exited\n"
