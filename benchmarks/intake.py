"""`make bench-intake`: when a server hands on requests that are sent to it at once: how much of them it reads before.

Run as `python -m benchmarks.intake [--write DIR]`. Requests of 32 tokens that generate one are sent together by vLLM's
own client to vLLM's own server with llama-tiny, which notes when it hands each to the engine. It hands on one or two
first, reads all others, and hands them on then: the share of the time over all that is gone when the third one goes is
what `scheduling/clock.py` takes for its `_READ`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from unittest import mock

from benchmarks.public import write
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.engine.vllm import server
from pytest_dooly.engine.vllm.server import VllmServer

NUMBERS, TIMES = (64, 256, 1000), 5

PROMPT_LEN, FIRST = 32, 2


def main() -> None:
    """Measures, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    asked = parser.parse_args()
    text = "\n".join(report())
    sys.stdout.write(f"{text}\n")
    if asked.write is not None:
        write(asked.write / "intake.md", "When a server hands on what comes at once", __doc__, text)


def report() -> Iterator[str]:
    """A line for each number of requests."""
    yield f"{'at once':>8} {'ms each':>8} {'gone at the third':>18}   each time"
    configuration = resolve("llama-tiny", ServingOptions(max_model_len=64, max_num_seqs=64))
    command = (sys.executable, "-P", str(Path(__file__).with_name("intake_server.py")))
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "noted"
        noted.touch()
        with (
            mock.patch.object(server, "_COMMAND", command),
            mock.patch.dict(os.environ, {"DOOLY_INTAKE": str(noted)}),
            VllmServer(configuration) as running,
        ):
            running.replay(at_once(FIRST))  # what is done once
            for number in NUMBERS:
                found = [_measured(running, number, noted) for _ in range(TIMES)]
                of_each, of_all_s = zip(*found, strict=True)
                shares += of_each
                each_ms = 1e3 * median(of_all_s) / number
                yield f"{number:8,} {each_ms:8.2f} {median(of_each):18.0%}   " + " ".join(f"{s:.0%}" for s in of_each)
    yield f"\nMedian: {median(shares):.0%}"


def at_once(number: int) -> Traffic:
    """Requests that are sent together."""
    return Traffic([TrafficRequest(0.0, PROMPT_LEN, 1)] * number)


def _measured(running: VllmServer, number: int, noted: Path) -> tuple[float, float]:
    """Share of the time that is gone when the third request is handed on, and that time in seconds."""
    noted.write_text("")
    running.replay(at_once(number))
    times = sorted(map(float, noted.read_text().split()))
    assert len(times) == number
    return (times[FIRST] - times[0]) / (times[-1] - times[0]), times[-1] - times[0]


if __name__ == "__main__":
    main()
