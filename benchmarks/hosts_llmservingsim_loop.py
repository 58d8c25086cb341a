"""LLMServingSim's own serving loop, with what stands in for ASTRA-Sim; run with its arguments in a copy of its clone.

`benchmarks/hosts_llmservingsim.py` starts it. Router, scheduler, KV cache, trace generator and output are its own.
ASTRA-Sim is C++ that reads a converted trace; on one rank it waits for each layer in turn, and moves its clock on
by a millisecond where there is nothing to run (`EventQueue::add_current_time` of astra-network-analytical). So does
this, from the trace as it is written; what ASTRA-Sim fetches from the host's memory, some bytes, takes no time here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

IDLE_NS = 1_000_000
NUMBER = 1
"""Line of a trace that holds the number of its layers; they come after the names of their columns."""


class Astra:
    """In the place of the process: takes the path of a workload, `pass`, `done` or `exit`, and tells the time."""

    def __init__(self, arguments: list[str], **_: Any) -> None:
        """Begins with the workload that the arguments name."""
        self.stdin = self.stdout = self
        self._now_ns, self._iteration, self._lines = 0, -1, list[str]()
        (first,) = (text.partition("=")[2] for text in arguments if text.startswith("--workload-configuration="))
        self.write(first)

    def write(self, text: str) -> None:
        """A line that it is told."""
        said = text.strip()
        if said == "exit":
            rule = "-" * 27
            self._lines += ["Checking Non-Exited Systems ...", rule, "All Request Has Been Exited", rule]
            return
        if said in ("pass", "done"):
            self._now_ns += IDLE_NS
        else:
            self._now_ns += _layers_ns(_trace_of(Path(said)))
            self._iteration += 1
        finished = f"sys[0] iteration {self._iteration} finished, {self._now_ns} cycles"
        self._lines += [f"{finished}, exposed communication 0 cycles.", "Waiting"]

    def readline(self) -> str:
        """A line that it says."""
        return self._lines.pop(0) + "\n"

    def flush(self) -> None:
        """Nothing is held back."""


def _trace_of(workload: Path) -> Path:
    """`…/trace/A.txt` for `…/workload/A/llm`."""
    parts = list(workload.parent.parts)
    parts[len(parts) - 1 - parts[::-1].index("workload")] = "trace"
    return Path(*parts).with_name(f"{parts[-1]}.txt")


def _layers_ns(trace: Path) -> int:
    """The second column, added up; the file is not needed any more."""
    lines = trace.read_text(encoding="utf-8").splitlines()
    trace.unlink()
    number = int(lines[NUMBER])
    return sum(int(line.split()[1]) for line in lines[-number:])


def main() -> None:
    """Runs it to its end."""
    sys.path.insert(0, str(Path.cwd()))
    sys.modules.setdefault("pyinstrument", SimpleNamespace(Profiler=None))  # type: ignore[arg-type] # imported, not used
    loop: Any = importlib.import_module("serving.__main__")
    loop.subprocess = SimpleNamespace(Popen=Astra, PIPE=None)
    loop.generate_graph = lambda *_, **__: None  # the converter of Chakra
    loop.main()


if __name__ == "__main__":
    main()
