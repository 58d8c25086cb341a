"""What `make gpu-check` makes of its steps, on processes that answer at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import Check, Plan, Run, cpu_plan, gpu_plan

ACCURACY = {"median": 0.03, "mape": 0.04, "low": 0.03, "high": 0.05, "noise": 0.01, "mean_noise": 0.02, "count": 4}
ANSWERS: dict[str, dict[str, Any]] = {
    "trace": {"operations": [{}] * 12, "architecture": "LlamaForCausalLM"},
    "--diff": {"shared": ["sampler", "step"], "saved_s": 30.04, "share_saved": 0.25},
    "predict": {"workload": {}, "ttft_s": 0.1, "tpot_s": 0.01, "out_of_range": []},
    "validate": {"ttft": ACCURACY, "tpot": None, "passed": False, "rows": [], "report": "elsewhere/index.html"},
}
JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"/><testcase name="c"/>
<testcase name="d"><skipped message="measured: 3 µs in latency.db"/></testcase>
<testcase name="e"><skipped message="not needed: held-out error 1.0%"/></testcase>{}</testsuite></testsuites>"""
BROKEN = '<testcase name="f"><failure message="Failed: linear[8]: RuntimeError: no kernel"/></testcase>'
FOUND = {"gpu": "NVIDIA H100", "vllm": "0.26.0", "torch": "2.11.0", "flashinfer": True, "flashinfer_kernels": True}


class Answering(Check):
    """Runs no process; `junit` is what pytest writes, None for a crash, and `mute` what answers nothing."""

    junit: str | None = JUNIT.format("")
    mute: tuple[str, ...] = ()

    def _process(self, command: Sequence[str]) -> tuple[int, str, str]:
        self.commands = [*getattr(self, "commands", []), command]
        if "pytest" in command:
            (path,) = (Path(part.partition("=")[2]) for part in command if part.startswith("--junitxml"))
            if self.junit is None:
                return 139, "", "dooly: starting vllm ...\nSegmentation fault"
            path.write_text(self.junit, encoding="utf-8")
            return ("<failure" in self.junit), "", ""
        verb = "--diff" if any(part.startswith("--diff") for part in command) else command[3]
        if verb in self.mute:
            return 1, "", "Traceback\ndooly: there is no room\n"
        return (verb == "validate"), json.dumps(ANSWERS[verb]), ""


def check(tmp_path: Path, budget_s: float = 100, **answers: Any) -> Answering:
    steps = {"trace": 1.0, "profile": 2.0, "predict": 1.0, "validate": 1.0, "saved": 1.0}
    runs = (Run("llama3", "FLASH_ATTN"), Run("qwen2.5-7b", "FLASH_ATTN", after="llama3"))
    plan = Plan(runs, ("max-num-seqs=32",), ("target=8",), ("--repeats", "2"), ("--prompt", "8"), steps)
    made = Answering(
        plan, device="cuda", folder=tmp_path, reports=tmp_path / "r", db=tmp_path / "db", budget_s=budget_s
    )
    vars(made).update(answers)
    for run in plan.runs:
        made.run(run)
    made.write(FOUND)
    return made


def test_every_step_of_every_run_is_in_the_summary(tmp_path: Path) -> None:
    made = check(tmp_path)
    assert (made.failed, made.left_out) == ([], [])
    first, second = json.loads((tmp_path / "r/summary.json").read_text(encoding="utf-8"))["runs"]
    assert list(first["steps"]) == ["trace", "profile", "predict", "validate"]
    counted = {"timed": 3, "reused": 1, "not_needed": 1, "failed": 0, "share_reused": 0.25}
    assert first["steps"]["profile"] == second["steps"]["profile"] == counted
    assert second["steps"]["saved"]["saved_s"] == 30.0
    summary = (tmp_path / "r/summary.md").read_text(encoding="utf-8")
    assert "| llama3 | FLASH_ATTN | eager | 12 | 3 | 1 | 0 | 0 | 4.0% (2.0%) | - |" in summary
    assert "qwen2.5-7b after llama3 (FLASH_ATTN): 25% of its cases reused, 2 operations shared, 30.0 s saved" in summary


def test_options_reach_every_command(tmp_path: Path) -> None:
    for command in check(tmp_path).commands:
        prefix = "--dooly-" if "pytest" in command else "--"
        asked = {"device=cuda", "execution=eager", "attention-backend=FLASH_ATTN", "max-num-seqs=32"}
        assert {f"{prefix}{option}" for option in asked} <= set(command)


def test_an_operation_that_failed_is_named_and_the_check_goes_on(tmp_path: Path) -> None:
    made = check(tmp_path, junit=JUNIT.format(BROKEN))
    assert made.failed[0] == "llama3 FLASH_ATTN eager: f: Failed: linear[8]: RuntimeError: no kernel"
    assert len(made.failed) == 2
    assert all("validate" in outcome.steps for outcome in made.outcomes)


@pytest.mark.parametrize(
    ("answers", "step", "reason"),
    [({"junit": None}, "profile", "Segmentation fault"), ({"mute": ("trace",)}, "trace", "dooly: there is no room")],
)
def test_a_crash_ends_its_run_alone(tmp_path: Path, answers: dict[str, Any], step: str, reason: str) -> None:
    made = check(tmp_path, **answers)
    assert [line for line in made.failed if f"{step}: " in line] == [
        f"{run} FLASH_ATTN eager: {step}: {reason}" for run in ("llama3", "qwen2.5-7b")
    ]
    assert all("validate" not in outcome.steps for outcome in made.outcomes)
    assert "## Failed" in (tmp_path / "r/summary.md").read_text(encoding="utf-8")


def test_what_the_budget_does_not_reach_is_left_out_and_no_failure(tmp_path: Path) -> None:
    made = check(tmp_path, budget_s=1.5)
    assert made.failed == []
    expected = "profile, predict, validate: the budget of 2 s is spent"
    assert made.left_out == [f"{run} FLASH_ATTN eager: {expected}" for run in ("llama3", "qwen2.5-7b")]


def test_the_plan_for_a_gpu_names_the_backend_that_it_cannot_run() -> None:
    left_out = list[str]()
    assert "FLASHINFER" in {run.backend for run in gpu_plan(FOUND, left_out).runs}
    assert left_out == []
    for lacking in ("flashinfer", "flashinfer_kernels"):
        plan = gpu_plan({**FOUND, lacking: False}, left_out)
        assert {run.backend for run in plan.runs} == {"FLASH_ATTN", "TRITON_ATTN"}
        assert left_out.pop().startswith("FLASHINFER: ")


def test_a_cpu_runs_every_step_and_says_what_it_cannot(tmp_path: Path) -> None:
    left_out = list[str]()
    plan = cpu_plan(tmp_path, left_out)
    assert any(run.after for run in plan.runs)
    assert all((Path(run.model) / "config.json").exists() for run in plan.runs if "/" in run.model)
    assert len(left_out) == 3
