"""Published traffic: what is read of it, what is sent to the simulation, and what the figures are compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.traffic import PAUSE_S, Predicted, Run, Stage, figures, fitted_s, named, read_runs, report
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import resolve
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.synthetic import SharedPrefix


def made_up(model: str = "llama-2-7b", *rates: float) -> Run:
    stages = tuple(Stage(rate, 30.0, 0, np.array([2.0, 0.05, 4.0, 0.1])) for rate in rates or (2.0,))
    lengths = PromptAndOutput(Lengths.fixed(60), Lengths.fixed(5))
    return Run(model, "general", 1, 100, SharedPrefix(2, 3, 40), lengths, stages)


def predicted(model: str, ttft_s: float, *, num_failed: int = 0, served: float | None = None) -> Predicted:
    of = made_up(model)
    simulated_s = np.array([1.0, ttft_s, 5.0, 0.1])
    stage = replace(of.stages[0], num_failed=num_failed)
    return Predicted(of, stage, simulated_s, 0.8 * simulated_s, 1.25 * simulated_s, served)


class Constant:
    def step_s(self, step: Scheduled) -> float:
        return 0.01


def test_every_row_of_the_file_is_a_stage_of_a_run() -> None:
    runs = read_runs()
    assert [len(runs), sum(len(each.stages) for each in runs)] == [16, 24]
    assert sorted(each.model for each in runs if each.stages[0].num_failed) == [
        "codellama-34b",
        "llama-2-70b",
        "llama-2-7b",
        "mixtral-8x7b",
    ]
    first = runs[0]
    assert (first.model, first.kind, first.ranks, first.kv_blocks) == ("llama-2-7b", "codegen", 1, 7463)
    assert [stage.rate for stage in first.stages] == [5.0, 10.0]
    assert first.stages[0].measured_s == pytest.approx([1.81032, 0.02504, 2.18883, 0.04597])


def test_a_stage_has_its_requests_and_begins_when_the_one_before_has_ended() -> None:
    requests = made_up("llama-2-7b", 2.0, 4.0).traffic().requests
    stages = np.array([request.stage for request in requests])
    times_s = np.array([request.arrival_s for request in requests])
    assert np.bincount(stages).tolist() == [60, 0, 120]
    assert times_s[stages == 0].max() == pytest.approx(30.0)
    assert times_s[stages == 2].max() == pytest.approx(60.0 + PAUSE_S)
    assert times_s[stages == 2].min() > 30.0 + PAUSE_S
    gaps_s = np.diff(times_s[stages == 2])
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.4)  # exponential


def test_a_stage_of_constant_gaps_is_there_to_compare() -> None:
    times_s = [request.arrival_s for request in made_up().traffic("constant").requests]
    assert np.diff(times_s) == pytest.approx(np.full(59, 0.5))


def test_questions_of_all_groups_are_asked_over_and_over_behind_their_system_prompts() -> None:
    requests = made_up().traffic().requests
    asked = [request.segments for request in requests]
    assert len(set(asked[:6])) == 6
    assert asked[:54] == asked[6:]
    assert {tuple(tokens for _, tokens in segments) for segments in asked} == {(40, 60)}
    groups = [segments[0] for segments in asked[:6]]
    assert sorted(map(groups.count, set(groups))) == [3, 3]
    assert {request.prompt_len for request in requests} == {100}
    assert {request.output_len for request in requests} == {5}


def test_figures_are_those_of_each_stage() -> None:
    requests = [TrafficRequest(float(at), 8, 4, stage=2 * (at > 1)) for at in range(4)]
    sent_s, zeros = np.arange(4, dtype=np.float64), np.zeros(4, dtype=np.int64)
    first_s, last_s = sent_s + np.array([1.0, 3.0, 5.0, 5.0]), sent_s + np.array([2.0, 4.0, 8.0, 8.0])
    simulated = Simulated(Traffic(requests), sent_s, sent_s, first_s, last_s, zeros, zeros, [])
    first, second = figures(simulated)
    assert first == pytest.approx([3.0, 2.0, 3.98, 2.98])
    assert second == pytest.approx([8.0, 5.0, 8.0, 5.0])


def test_errors_are_relative_with_what_the_server_adds() -> None:
    row = predicted("llama-2-7b", 0.02)
    assert row.errors(0.0) == pytest.approx([-0.5, -0.6, 0.25, 0.0])
    assert row.errors(0.01) == pytest.approx([-0.495, -0.4, 0.2525, 0.1])


def test_what_the_server_adds_shifts_every_latency_however_it_is_divided() -> None:
    traffic, options = made_up().traffic(), SchedulerOptions(Limits(64, 8, 128), 100)
    bare, first, second = (
        run(traffic, NativeScheduler(options), Constant(), server)
        for server in (None, Server(0.004, 0.005), Server(0.009, 0.0))
    )
    for shifted in (first, second):
        assert shifted.ttft_s == pytest.approx(bare.ttft_s + 0.009)
        assert shifted.latency_s == pytest.approx(bare.latency_s + 0.009)


def test_the_constant_is_the_median_of_what_is_missing_without_the_model_that_is_left_out() -> None:
    rows = [
        predicted("llama-2-7b", 0.048),
        predicted("llama-2-70b", 0.044),
        predicted("llama-2-70b", 0.042),
        predicted("llama-2-70b", 0.001, num_failed=1),
    ]
    assert fitted_s(rows) == pytest.approx(0.006)
    assert fitted_s(rows, "llama-2-7b") == pytest.approx(0.007)
    assert fitted_s(rows, "llama-2-70b") == pytest.approx(0.002)


def test_a_report_has_every_stage_once_the_errors_of_each_model_and_says_where_overload_is_not_as_measured() -> None:
    rows = [
        predicted("llama-2-7b", 0.048),
        predicted("llama-2-70b", 0.044),
        predicted("llama-2-70b", 9.0, num_failed=7),
        predicted("llama-2-7b", 9.0, num_failed=7, served=1.5),
    ]
    lines = "\n".join(report(rows)).splitlines()
    assert sum(" general " in line for line in lines) == 4
    errors = [line for line in lines if " (a) none " in line]
    assert [line.split()[0] for line in errors] == ["llama-2-7b", "llama-2-70b", "all"]
    assert errors[0].split("|")[2].split() == ["4.0%", "-4.0%"]
    assert "  llama-2-7b    6.0 ms" in lines
    assert [line.strip() for line in lines if "failed; " in line] == [
        "7 of 60 failed; not recognised: NOT AS MEASURED",
        "7 of 60 failed; recognised, 1.50 requests/s served",
    ]
    assert max(map(len, lines)) <= 124


def test_models_that_are_not_shipped_are_written_where_the_engine_finds_them(tmp_path: Path) -> None:
    assert named("mixtral-8x7b", tmp_path) == "mixtral-8x7b"
    document = resolve(named("codellama-34b", tmp_path)).document
    assert (document["num_hidden_layers"], document["num_key_value_heads"], document["rope_theta"]) == (48, 8, 1e6)
