"""A directory with a model, profiled by the fake engine or known from published latencies."""

from __future__ import annotations

import shutil
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
    _write_model(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one profiling run of the model leaves: it takes seconds, and a copy of it none."""
    folder = tmp_path_factory.mktemp("profile")
    _write_model(folder)
    flags = [f"--dooly-{flag.removeprefix('--')}" for flag in SMALL]
    command = [sys.executable, "-m", "pytest", "-p", "no:cov", "--dooly-model=model", "-q", *flags]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def profiled(place: Path, profile: Path) -> Path:
    shutil.copytree(profile, place, dirs_exist_ok=True)
    return place


@pytest.fixture
def published(place: Path) -> Path:
    """A place whose latency DB has published linears of an H200: one of the model's own sizes, and others around."""
    around = [(n, k) for n in (32, 64, 128, 192, 256, 320, 384, 512) for k in (32, 40, 48, 64, 128, 192, 256)]
    with LatencyDB.open(place / ".dooly/latency.db") as db:
        db.publish(linears([(96, 64), *around]))
    return place


def _write_model(folder: Path) -> None:
    write(folder / "model", LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
