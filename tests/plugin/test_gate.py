"""`--dooly-gate` as its users run it: the fake engine is traced and profiled, its turns are made up.

What noise does to a verdict is tested where it is decided, in `tests/drift/`; here turns are as quiet as they are told.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pytest_dooly import engine_process
from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.turn import Place, Turn
from pytest_dooly.gating import Gate
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.export import export
from pytest_dooly.plugin.gate import BROKEN, DRIFT, UNDECIDED
from pytest_dooly.regress.stored import regressors_of
from pytest_dooly.report import gate_report as _gate_report  # noqa: F401 - loaded once, not by each inner session
from pytest_dooly.timing import turns as timing_turns
from tests.models import LLAMA, write

SMALL = ("--dooly-engine=fake", "--dooly-max-num-tokens=16", "--dooly-max-model-len=32", "--dooly-max-num-seqs=2")
APART = ("-p", "no:cov", "-p", "no:hypothesispytest")
GATE = (*SMALL, *APART, "--dooly-model=model", "--dooly-gate", "--dooly-workload=8+8x2", "--dooly-gate-budget=0")

LINEAR = "linear-64x96-fp32"


SLOWER = 1.0
"""Drift, whatever share of a step the profile of a busy machine gives the operation."""


REFERENCES_S = {"product": 1e-4, "launches": 1e-5}


@dataclass
class Machine:
    """What turns are made up of.

    Attributes:
        slower: relative slowdown, by label of the operation.
        noise: relative, of every value; half of the turns have it the other way round, so that it changes no mean.
        raises: what the third turn does.
    """

    slower: dict[str, float] = field(default_factory=dict)
    noise: float = 0.001
    raises: Callable[[], None] | None = None


@pytest.fixture
def machine(profile: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made, taken = Machine(), list[int]()
    with LatencyDB.open(profile / ".dooly/latency.db") as db:
        (environment,) = db.environments()
        regressors = regressors_of(db, environment)

    def usual_s(place: Place) -> float:
        return float(regressors[place.signature].predict_s([SweepPoint.parse(place.point)])[0])

    def noisy(of: object, latency_s: float) -> float:
        half, turn = divmod(len(taken), 8)
        noise = random.Random(f"{of} {turn}").gauss(0, made.noise)
        return latency_s * (1 + (noise if half % 2 else -noise))

    def turn(self: timing_turns.Turns) -> Turn:
        taken.append(1)
        if made.raises is not None and len(taken) % 16 == 3:
            made.raises()
        labels = {each.signature.key: each.signature.label for each in self._operations}
        slower = {place: made.slower.get(labels[place.signature], 0.0) for place in sorted(self.places)}
        latencies_s = {str(place): noisy(place, usual_s(place) * (1 + by)) for place, by in slower.items()}
        return Turn({name: noisy(name, usual) for name, usual in REFERENCES_S.items()}, latencies_s, spent_s=0.1)

    monkeypatch.setattr(timing_turns.Turns, "turn", turn)
    monkeypatch.setattr(engine_process, "OwnProcess", InThisProcess)
    return made


class InThisProcess:
    """Answers as an engine's own process does, here, where turns are made up."""

    def __init__(self, *_: object) -> None:
        self._told = deque[str]()
        self._answers = engine_process.answers(iter(self._told.popleft, None))

    def tell(self, line: str) -> None:
        self._told.append(line)

    def answer(self) -> str:
        return json.dumps(next(self._answers))

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with what profiling it leaves: coarse, since only shares are made of it."""
    folder = tmp_path_factory.mktemp("profile")
    write(folder / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *APART,
        "--dooly-model=model",
        "--dooly-target=1000",
        "--dooly-precision=50",
        "-q",
        *SMALL,
    ]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def place(pytester: pytest.Pytester, profile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(profile, pytester.path, dirs_exist_ok=True)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(name, raising=False)
    return pytester.path


def gate(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*GATE, *args)


def begun(pytester: pytest.Pytester) -> None:
    """A baseline of the gate's own."""
    assert gate(pytester, "-q", "-k", "rms_norm").ret == 0


def test_a_first_run_is_the_baseline_and_a_slowdown_fails_by_name(
    pytester: pytest.Pytester, place: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = place / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_SHA", "c0ffee")
    first = gate(pytester)
    assert first.ret == 0
    first.stdout.fnmatch_lines(
        [
            "dooly: gate of model: compared with latencies profiled with fake 1, torch *",
            "model: baseline: no drift that latencies profiled with * could show, *: this run is the baseline from *",
            "::notice title=latency baseline of model::*",
        ]
    )
    second = gate(pytester)
    assert second.ret == 0
    second.stdout.fnmatch_lines(
        ["dooly: gate of model: compared with the run from * at c0ffee, *", "model: passed: no drift beyond 3 % of *"]
    )
    machine.slower[LINEAR] = SLOWER
    third = gate(pytester, "--dooly-gate-json=out/gate.json", "--junitxml=junit.xml")
    assert third.ret == DRIFT
    third.stdout.fnmatch_lines(
        [
            f"drift: {LINEAR}: +*% (*%), *% of a figure, so worth +*% (false discovery rate *; fails)",
            "model: drift: * because of " + LINEAR + " +*%, against 2 runs from *",
            "::error title=latency drift of model::*" + LINEAR + "*",
        ]
    )
    document = json.loads((place / "out/gate.json").read_text())
    assert document["outcome"] == "drift"
    assert {each["case"] for each in document["operations"] if each["outcome"] == "drift"} == {LINEAR}
    assert document["commit"] == "c0ffee"
    junit = (place / "junit.xml").read_text()
    assert f'name="test_drift[{LINEAR}]"' in junit
    assert '<property name="dooly_change" value="0.' in junit
    text = summary.read_text()
    assert text.count("## ") == 3
    assert f"| `{LINEAR}` |" in text
    assert '--dooly-accept "why"' in text
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        assert [run.outcome for run in db.gate_runs()] == ["baseline", "passed", "drift"]


@pytest.mark.parametrize("option", ["--dooly-accept=why", "--dooly-against=python", "--dooly-workload=8+8"])
def test_an_option_of_the_gate_without_it_is_not_taken_in_silence(pytester: pytest.Pytester, option: str) -> None:
    pytester.makepyfile("def test_own(): pass")
    result = pytester.runpytest_inprocess(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.partition('=')[0]} is an option of the gate: add --dooly-gate, or drop it"])


def test_a_gate_is_not_forgotten_beside_tests_that_are_named(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    pytester.makepyfile(test_own="def test_own(): pass")
    begun(pytester)
    machine.slower[LINEAR] = SLOWER
    assert gate(pytester, "test_own.py").ret == DRIFT
    pytester.makepyfile(test_own="def test_own(): assert False")
    assert gate(pytester, "test_own.py", "-k", f"own or {LINEAR}").ret == pytest.ExitCode.TESTS_FAILED


def test_selections_judge_what_they_select(
    pytester: pytest.Pytester, place: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(pytester)
    machine.slower[LINEAR] = SLOWER
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    embedding = gate(pytester, "-k", "embedding")
    assert embedding.ret == 0
    embedding.stdout.fnmatch_lines(["of the cases that were selected: passed, and the exit status is theirs"])
    assert "::error" not in embedding.stdout.str()
    stopped = gate(pytester, "-x", "-k", f"tpot or {LINEAR} or rms_norm")
    assert stopped.ret == DRIFT
    assert stopped.parseoutcomes()["failed"] == 1
    again = gate(pytester, "--lf")
    assert again.ret == DRIFT
    assert "passed" not in again.parseoutcomes()


def test_an_accepted_run_moves_the_baseline_and_says_why(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    machine.slower[LINEAR] = 3.0
    accepted = gate(pytester, "--dooly-accept=new kernels are more exact")
    assert accepted.ret == 0
    accepted.stdout.fnmatch_lines(["model: accepted: accepted as the baseline from now on: new kernels are more exact"])
    machine.slower.clear()
    faster = gate(pytester)
    assert faster.ret == 0
    faster.stdout.fnmatch_lines([f"*{LINEAR}: -*faster)", "*Faster than the baseline by more than the limit: *"])
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        assert [run.accepted for run in db.gate_runs()] == [None, "new kernels are more exact", None]


def test_an_engine_with_other_operations_is_undecided_until_it_is_accepted(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    with contextlib.closing(sqlite3.connect(place / ".dooly/latency.db")) as db, db:  # as if it had run another one
        ((key, document),) = db.execute("SELECT key, document FROM gate_run").fetchall()
        of_linear = next(each for each in json.loads(document)["operations"] if each["case"] == LINEAR)["signature"]
        others = document.replace(of_linear, "gone").replace(LINEAR, "linear-of-before")
        db.execute("UPDATE gate_run SET document = ?", (others,))
        for position, turn in db.execute("SELECT position, document FROM gate_turn WHERE run = ?", (key,)).fetchall():
            changed = turn.replace(of_linear, "gone")
            db.execute("UPDATE gate_turn SET document = ? WHERE position = ?", (changed, position))
    undecided = gate(pytester)
    assert undecided.ret == UNDECIDED
    undecided.stdout.fnmatch_lines(["*linear-of-before at T*, not timed on both sides*"])
    assert gate(pytester, "--dooly-accept=fused").ret == 0
    after = gate(pytester)
    after.stdout.fnmatch_lines(["model: passed: *"])
    machine.slower[LINEAR] = SLOWER
    assert gate(pytester).ret == DRIFT


def test_an_accepted_run_has_as_many_starts_as_its_budget_pays_for(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    rest = [each for each in GATE if "budget" not in each]
    accepted = pytester.runpytest_inprocess(*rest, "--dooly-gate-budget=2.5", "--dooly-accept=calmer")
    assert sum("starting fake" in line for line in accepted.outlines) == 2
    later = gate(pytester)
    assert sum("starting fake" in line for line in later.outlines) == 2


def test_what_took_turns_with_another_engine_is_no_part_of_the_baseline(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    machine.slower[LINEAR] = SLOWER  # of both engines: beside each other nothing has changed
    beside = gate(pytester, f"--dooly-against={sys.executable}")
    beside.stdout.fnmatch_lines(["model: passed: *, which took turns with this one"])
    alone = gate(pytester)
    assert alone.ret == DRIFT
    alone.stdout.fnmatch_lines(["model: drift: *, against the run from *"])


def test_noise_is_undecided_with_what_it_would_take(pytester: pytest.Pytester, place: Path, machine: Machine) -> None:
    begun(pytester)
    machine.noise = 0.2
    noisy = gate(pytester)
    assert noisy.ret == UNDECIDED
    noisy.stdout.fnmatch_lines(
        ["undecided: TTFT of 8+8x2: * turns would decide it, *", "model: undecided: the noise is too large to say *"]
    )
    text = (place / "reports/gate-model.md").read_text()
    assert "**What to do:** About" in text
    assert "--dooly-gate-budget=" in text


def test_other_workloads_than_the_baseline_s_are_refused_until_a_run_is_accepted_with_them(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    refused = gate(pytester, "--dooly-workload=4+4")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(
        ["ERROR: the baseline of model has other workloads than 8+8x2, 4+4x1: it has 8+8x2; name those with *"]
    )
    accepted = gate(pytester, "--dooly-workload=4+4", "--dooly-accept=more of them")
    assert accepted.ret == 0
    accepted.stdout.fnmatch_lines(["model: accepted: accepted as the baseline from now on: more of them"])
    assert gate(pytester, "--dooly-workload=4+4").ret == 0
    fewer = gate(pytester)
    assert fewer.ret == 0
    assert "4+4" not in fewer.stdout.str()


def test_what_no_one_has_expected_takes_no_turns_again(
    pytester: pytest.Pytester, place: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def fails(self: Gate, *_: object) -> None:
        judged.append(1)
        raise ValueError("nobody knows")

    monkeypatch.setattr(Gate, "_judge", fails)
    result = gate(pytester)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(judged) == 1


def test_a_selection_without_any_of_its_cases_leaves_the_verdict_as_it_was(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    begun(pytester)
    before = (place / "reports/gate-model.md").read_text()
    assert gate(pytester, "-k", "nothing_of_the_kind").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert (place / "reports/gate-model.md").read_text() == before


def test_an_operation_that_raises_is_broken(pytester: pytest.Pytester, place: Path, machine: Machine) -> None:
    def breaks() -> None:
        raise MemoryError("no room for 2 rows")

    machine.raises = breaks
    result = gate(pytester)
    assert result.ret == BROKEN
    result.stdout.fnmatch_lines(["*broken: model cannot be timed: MemoryError: no room for 2 rows*"])
    assert "no room for 2 rows" in (place / "reports/gate-model.md").read_text()
    assert "Traceback" not in result.stdout.str()


AT_THE_THIRD = """
    import os, signal
    from pytest_dooly.latency_db.gate_runs import GateTables

    def keeps(self, run, position, turn, keep=GateTables.keep_gate_turn):
        keep(self, run, position, turn)
        if position == 2:
            {}

    GateTables.keep_gate_turn = keeps
"""


ENDS = pytest.mark.parametrize(
    ("does", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", pytest.ExitCode.INTERRUPTED),
    ],
)


@ENDS
def test_a_kill_and_an_interrupt_lose_the_turn_in_flight_at_most(
    pytester: pytest.Pytester, place: Path, machine: Machine, does: str, status: int
) -> None:
    conftest = pytester.makeconftest(AT_THE_THIRD.format(does))
    assert pytester.runpytest_subprocess(*GATE).ret == status
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        (run,) = db.gate_runs()
        assert (run.outcome, run.is_baseline, len(db.gate_turns(run.key))) == (None, False, 3)
    assert "this run has no verdict" in (place / "reports/gate-model.md").read_text()
    assert_no_engine_is_left(place)
    conftest.unlink()
    assert gate(pytester, "-q").ret == 0
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        assert [run.outcome for run in db.gate_runs()] == [None, "baseline"]


@ENDS
def test_no_engine_that_takes_turns_outlives_a_kill_or_an_interrupt(
    pytester: pytest.Pytester, place: Path, does: str, status: int
) -> None:
    pytester.makeconftest(AT_THE_THIRD.format(does))
    assert pytester.runpytest_subprocess(*GATE, f"--dooly-against={sys.executable}").ret == status
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        new, old = db.gate_runs()
        assert sorted(len(db.gate_turns(run.key)) for run in (new, old)) == [2, 3]
        assert {run.outcome for run in (new, old)} == {None}
    assert_no_engine_is_left(place)


def assert_no_engine_is_left(place: Path) -> None:
    engines = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if "pytest_dooly.engine_process" in (process.info["cmdline"] or ()) and process.info["cwd"] == str(place)
    ]
    _, alive = psutil.wait_procs(engines, timeout=20)
    assert alive == []


def test_without_anything_it_profiles_first(pytester: pytest.Pytester, place: Path, machine: Machine) -> None:
    shutil.rmtree(place / ".dooly")
    result = gate(pytester, "--dooly-target=1000", "--benchmark-disable-gc")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "dooly: gate of model: compared with nothing: this run is the baseline",
            "model: baseline: no earlier run of this model on this device: this run is the baseline from now on",
        ]
    )


def test_a_baseline_in_a_file(pytester: pytest.Pytester, place: Path, machine: Machine) -> None:
    begun(pytester)
    (place / "base.db").write_bytes((place / ".dooly/latency.db").read_bytes())
    with LatencyDB.open(place / "base.db") as db:
        db._db.execute("DELETE FROM measurement")
        db._db.commit()
    shutil.rmtree(place / ".dooly")
    machine.slower[LINEAR] = SLOWER
    before = (place / "base.db").read_bytes()
    assert gate(pytester, "--dooly-baseline=base.db").ret == DRIFT
    assert (place / "base.db").read_bytes() == before


def test_a_run_beside_an_export_is_no_baseline_where_there_is_one(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        export(db, place / "out.csv")
    begun(pytester)
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        before = [run.key for run in db.gate_runs() if run.is_baseline]
    out = gate(pytester, "--dooly-baseline=out.csv").stdout.str()
    assert "engine_version" not in out  # nothing but the text of a CSV differs
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        assert [run.key for run in db.gate_runs() if run.is_baseline] == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--dooly-gate-json=.",), "--dooly-gate-json=. is a directory: name a file in it"),
        (("--dooly-against= ",), "--dooly-against names no interpreter: *"),
        (("--dooly-against=python", "--dooly-baseline=none.db"), "--dooly-against compares with the engine * drop *"),
        (("--dooly-workload=lots",), "cannot read 'lots' as a workload: write PROMPT+OUTPUT[[]xCONCURRENCY*"),
        (("--dooly-baseline=none.db",), "there is no latency DB at *none.db: name another file"),
        (("--dooly-baseline=none.parquet",), "cannot read *none.parquet as an export of a latency DB *"),
        (("--dooly-baseline=far.db",), "the baseline *far.db is of another device (far away), *"),
        (("--dooly-gate-limit=0",), "--dooly-gate-limit must be above 0: *"),
        (("--dooly-accept= ",), "--dooly-accept takes the reason why the baseline moves, in words"),
        (("--dooly-workload=30+8",), "workload 30+8x1 does not fit model as it is served, with 32 tokens a request *"),
        (("--dooly-plan",), "--dooly-plan says what profiling would time, and the gate takes turns: drop one"),
    ],
)
def test_wrong_usage_is_one_line(pytester: pytest.Pytester, place: Path, args: tuple[str, ...], message: str) -> None:
    if "far.db" in args[0]:
        with LatencyDB.open(place / "far.db") as db:
            far = Environment("far away", 1, "none", "fake", "1", "2", "perf_counter", "warm", "eager")
            db.begin_gate_run("series", "model", far, "")
    result = gate(pytester, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_models_of_one_name_have_a_summary_each(pytester: pytest.Pytester, place: Path, machine: Machine) -> None:
    (place / "other").mkdir()
    write(place / "other" / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128, num_hidden_layers=3)
    assert gate(pytester, "-q", "-k", "rms_norm", "--dooly-model=other/model").ret == 0
    assert sorted(path.name for path in (place / "reports").glob("gate-*")) == ["gate-model-1.md", "gate-model-2.md"]


def test_no_place_to_write_to_is_found_before_anything_is_timed(
    pytester: pytest.Pytester, place: Path, machine: Machine
) -> None:
    (place / "taken").write_text("a file")
    result = gate(pytester, "--dooly-reports=taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: cannot write *taken/gate-model.md: *; name another file"])
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        assert db.gate_runs() == []


def test_without_a_model_it_says_what_is_missing(pytester: pytest.Pytester) -> None:
    none = pytester.runpytest_inprocess("--dooly-gate")
    assert none.ret == pytest.ExitCode.USAGE_ERROR
    none.stderr.fnmatch_lines(["ERROR: --dooly-gate needs to know what is served: name it with --dooly-model"])


def test_another_interpreter_s_engine_takes_turns(pytester: pytest.Pytester, place: Path) -> None:
    """For real, on the fake engine of this very interpreter: what comes of it is the machine's affair."""
    beside = gate(pytester, f"--dooly-against={sys.executable}", "--dooly-gate-json=o.json")
    assert beside.ret in (0, DRIFT, UNDECIDED)
    document = json.loads((place / "o.json").read_text())
    assert document["interleaved"]
    assert sum("starting both engines" in line for line in beside.outlines) == 4  # twice in either order
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        new, old = db.gate_runs()
        assert len(db.gate_turns(new.key)) == len(db.gate_turns(old.key)) == document["turns"]
    other = gate(pytester, f"--dooly-against={sys.executable}", "--dooly-workload=4+4", "--dooly-accept=other")
    assert other.ret == 0  # of what takes turns nothing is asked of the baseline
    missing = gate(pytester, "--dooly-against=/nowhere/python", "-x")
    assert missing.ret == pytest.ExitCode.TESTS_FAILED
    missing.stdout.fnmatch_lines(
        ["*cannot run /nowhere/python (No such file or directory): name a Python interpreter*"]
    )
