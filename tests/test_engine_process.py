"""Engines in processes of their own: what they are told alike, and what is said of one that fails."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.engine_process import BrokenOperation, EngineProcess
from pytest_dooly.errors import EngineError
from tests.models import LLAMA, write

HERE = Environment("cpu", 1, "none", "fake", "1", "2", "perf_counter", "warm", "eager")

ANSWERS = f"""#!{sys.executable}
import json, os, sys
told = {{"environment": {asdict(HERE)!r} | {{"driver": os.environ["PYTHONHASHSEED"]}}}}
for line in sys.stdin:
    print(json.dumps(told), flush=True)
    told = {{"opened": True}} if "operations" in line else {{"broken": "MemoryError: no room"}}
"""

SMALL = ServingOptions(max_num_tokens=16, max_model_len=32, max_num_seqs=2)


def engine(python: Path, model: Path, *, seed: int = 1, is_bound: bool = False) -> EngineProcess:
    configuration = ModelConfiguration("model", model, SMALL)
    return EngineProcess(
        python, "fake", configuration, [Batch.uniform(2, 1, 4)], kv_tokens=32, seed=seed, is_bound=is_bound
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
    answering.write_text(f"#!{sys.executable}\nraise SystemExit('no such module')\n")
    with engine(answering, answering.parent) as process, pytest.raises(EngineError) as caught:
        process.open()
    assert "has ended; it needs what pytest-dooly needs" in str(caught.value)
    assert str(caught.value).endswith("no such module")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are bound on Linux alone")
def test_the_thread_that_takes_turns_has_a_core_to_itself(tmp_path: Path) -> None:
    write(tmp_path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    places = os.sched_getaffinity(0)
    with engine(Path(sys.executable), tmp_path / "model", is_bound=True) as process:
        process.open()
        (child,) = psutil.Process().children()
        bound = {thread.id: os.sched_getaffinity(thread.id) for thread in child.threads()}
        assert process.turn().latencies_s
    own = bound.pop(child.pid)
    assert len(own) == 1 or len(places) == 1
    assert all(not of & own for of in bound.values()) or len(places) == 1
