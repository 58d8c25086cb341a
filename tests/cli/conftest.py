"""A directory with a model, profiled by the fake engine or known from published latencies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_dooly.latency_db.db import LatencyDB
from tests.cli import SMALL
from tests.models import LLAMA, write
from tests.test_profiling import linears


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    return tmp_path


@pytest.fixture
def profiled(place: Path) -> Path:
    flags = [f"--dooly-{flag.removeprefix('--')}" for flag in SMALL]
    command = [sys.executable, "-m", "pytest", "-p", "no:cov", "--dooly-model=model", "-q", *flags]
    subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL)
    return place


@pytest.fixture
def published(place: Path) -> Path:
    """A place whose latency DB has published linears of an H200: one of the model's own sizes, and others around."""
    around = [(n, k) for n in (32, 64, 128, 192, 256, 320, 384, 512) for k in (32, 40, 48, 64, 128, 192, 256)]
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        db.publish(linears([(96, 64), *around]))
    return place
