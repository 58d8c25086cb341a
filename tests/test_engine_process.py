"""Engines in processes of their own: what they are told alike, and what is said of one that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from pytest_dooly import engine_process
from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.engine_process import BrokenOperation, EngineProcess
from pytest_dooly.errors import EngineError
from tests.models import LLAMA, write

HERE = Environment("cpu", 1, "none", "fake", "1", "2", "perf_counter", "warm", "eager")

ANSWERS = f"""#!{sys.executable}
import json, os, sys
told = {{"environment": {asdict(HERE)!r} | {{"driver": os.environ["PYTHONHASHSEED"]}}, "operations": []}}
for line in sys.stdin:
    print(json.dumps(told), flush=True)
    told = {{"opened": True}} if "operations" in line else {{"broken": "MemoryError: no room"}}
"""

SMALL = ServingOptions(max_num_tokens=16, max_model_len=32, max_num_seqs=2)


def engine(python: Path, model: Path, *, seed: int = 1, is_bound: bool = False, own: bool = False) -> EngineProcess:
    configuration = ModelConfiguration("model", model, SMALL)
    return EngineProcess(
        python,
        "fake",
        configuration,
        [Batch.uniform(2, 1, 4)],
        kv_tokens=32,
        is_own=own,
        seed=seed,
        is_bound=is_bound,
    )


@pytest.fixture
def answering(tmp_path: Path) -> Path:
    """What stands for an interpreter."""
    python = tmp_path / "python"
    python.write_text(ANSWERS)
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("seed", [1, 4])
def test_python_s_hash_has_the_seed_that_is_told(answering: Path, seed: int) -> None:
    with engine(answering, answering.parent, seed=seed) as process:
        assert process.open().driver == str(seed)


def test_an_operation_that_raises_is_no_engine_that_has_died(answering: Path) -> None:
    with engine(answering, answering.parent) as process:
        process.open()
        with pytest.raises(BrokenOperation, match="MemoryError: no room"):
            process.turn()


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        ("raise SystemExit('out of luck')", "has ended with exit status 1; its last lines are:\nout of luck"),
        ("import nowhere", "(pip install pytest-dooly there); its last lines are:"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL, by the system for want of memory perhaps;"),
    ],
)
def test_an_engine_that_has_died_is_told_with_how(answering: Path, dies: str, told: str) -> None:
    answering.write_text(f"#!{sys.executable}\n{dies}\n")
    with engine(answering, answering.parent) as process, pytest.raises(EngineError) as caught:
        process.open()
    assert told in str(caught.value)


def test_modules_are_those_of_the_interpreter_and_not_of_the_folder_that_one_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what the user's PYTHONPATH adds, for an engine of this interpreter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "own")
    (tmp_path / "calendar.py").write_text("raise RuntimeError('not this one')\n")
    script = (
        f"#!/bin/sh\nexec {sys.executable} -c 'import calendar, os; raise SystemExit(os.environ[\"PYTHONPATH\"])'\n"
    )
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    for process, is_own in ((engine(python, tmp_path, own=True), True), (engine(python, tmp_path), False)):
        with process, pytest.raises(EngineError) as caught:
            process.open()
        assert str(caught.value).endswith(":own") == is_own


def test_what_is_left_of_a_session_that_was_killed_is_removed_by_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "of a session"
    folder.mkdir()
    (folder / "pytest_dooly").symlink_to(Path(engine_process.__file__).parent)
    (folder / "log").touch()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest_dooly.engine_process"]
    subprocess.run(command, input="", text=True, check=True, env=environment, cwd=tmp_path)
    assert not folder.exists()
    assert Path(engine_process.__file__).exists()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are bound on Linux alone")
def test_the_thread_that_takes_turns_has_a_core_to_itself(tmp_path: Path) -> None:
    write(tmp_path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    places, others = os.sched_getaffinity(0), psutil.Process().children()
    with engine(Path(sys.executable), tmp_path / "model", is_bound=True) as process:
        process.open()
        (child,) = set(psutil.Process().children()) - set(others)
        bound = {thread.id: os.sched_getaffinity(thread.id) for thread in child.threads()}
        assert process.turn().latencies_s
    own = bound.pop(child.pid)
    assert len(own) == 1 or len(places) == 1
    assert all(not of & own for of in bound.values()) or len(places) == 1
