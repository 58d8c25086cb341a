"""Processes of our own: they answer, their log is shown, and nothing of them stays behind."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import psutil
import pytest

from pytest_dooly.engine.vllm.processes import LOOPBACK, OwnProcess, free_port
from pytest_dooly.errors import ConfigurationError

ECHO = "import sys\nfor line in sys.stdin: print('heard', line.strip(), flush=True)"
STUBBORN = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN); signal.pause()'])
print(child.pid, flush=True)
signal.pause()
"""


def test_a_process_answers_line_by_line_until_it_is_ended(tmp_path: Path) -> None:
    process = OwnProcess([sys.executable, "-c", ECHO], tmp_path / "log", {})
    assert [process.ask(line) for line in ("one", "two")] == ["heard one", "heard two"]
    assert process.alive
    process.end()
    assert not process.alive


def test_what_it_has_started_ends_too_even_where_it_would_not(tmp_path: Path) -> None:
    process = OwnProcess([sys.executable, "-c", STUBBORN], tmp_path / "log", {})
    child = psutil.Process(int(process.ask("")))
    process.end()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_one_that_dies_has_an_empty_answer_and_a_log(tmp_path: Path) -> None:
    code = "import sys; print('\\n'.join(map(str, range(99))), file=sys.stderr); sys.exit('no memory')"
    process = OwnProcess([sys.executable, "-c", code], tmp_path / "log", {})
    assert process.ask("anything") == ""
    lines = process.last_lines().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (12, "88", "no memory")
    process.end()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {taken} of {LOOPBACK} cannot be had"):
            free_port(taken)
    assert free_port(taken) == taken
    assert free_port() > 0
