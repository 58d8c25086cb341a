"""Processes that evaluate candidates end with the one that has begun them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BEGUN = """
import multiprocessing, time
from pathlib import Path
from pytest_dooly.searching.workers import _begin

def worker():
    _begin(Path("none.db"), None)
    print("begun", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=worker).start()
    time.sleep(600)
"""


def test_workers_of_a_process_that_is_killed_end(tmp_path: Path) -> None:
    """By SIGKILL, of which the process itself sees nothing."""
    script = tmp_path / "begun.py"
    script.write_text(BEGUN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
        # The pipe ends when the last process that holds it has ended.
        assert process.communicate(timeout=60)[0] == ""
