"""What each request of a step takes the engine's own process, which no table of a GPU's operations knows.

Run as `python -m benchmarks.host_share [--db FILE] [--write DIR]`: `pytest --dooly-model=llama-tiny -k step` on the
real engine here, up to 1,024 decodes at once. The forward pass is not in it, nor logits nor the sampler: schedules,
inputs, and what is done with the tokens are. All is in one process, where a server hands tokens to another one. A step
of a GPU takes that besides, and with asynchronous scheduling where it is longer than the device's work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.public import write
from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.latency_db.db import LatencyDB

MODEL, LIMITS = "llama-tiny", {"max-num-seqs": 1024, "max-num-tokens": 2048, "max-model-len": 256}

FEW = 16
"""Requests up to which what is done once a step decides."""


def main() -> None:
    """Times, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB; a temporary one else")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(_lines(_steps(asked.db or Path(folder) / "latency.db")))
    sys.stdout.write(f"{text}\n")
    if asked.write is not None:
        write(asked.write / "host.md", "What each request of a step takes the engine's process", __doc__, text)


def _steps(path: Path) -> dict[SweepPoint, Measurement]:
    """Steps as timed."""
    flags = [f"--dooly-{flag}={value}" for flag, value in LIMITS.items()]
    command = [sys.executable, "-m", "pytest", f"--dooly-model={MODEL}", f"--dooly-db={path}", *flags, "-k", "step"]
    subprocess.run([*command, "--dooly-target=1000", "--benchmark-quiet", "-q"], check=True, stdout=sys.stderr)
    with LatencyDB.open(path, create=False) as db:
        (environment,) = db.environments()
        (model,) = db.models()
        step = next(each.signature for each in model.operations if each.signature.name == "step")
        return dict(db.measurements(environment)[step.key])


def _lines(steps: dict[SweepPoint, Measurement]) -> list[str]:
    decodes = {}
    for point, measured in steps.items():
        (request, number), *others = point.batch.groups if point.batch is not None else ((None, 0),)
        if request is not None and not others and request.query_len == 1:
            decodes[number] = measured.median_s
    numbers, seconds = (np.array(each, dtype=float) for each in zip(*sorted(decodes.items()), strict=True))
    once_s = seconds[0]
    lines = [f"{'decodes':>8} {'step':>9} {'each beyond one':>16}"]
    for number, latency_s in zip(numbers, seconds, strict=True):
        each = f"{1e6 * (latency_s - once_s) / (number - 1):13.1f} µs" if number > 1 else ""
        lines.append(f"{number:8.0f} {1e3 * latency_s:6.2f} ms {each:>16}")
    many = numbers > FEW
    each_s = np.median((seconds[many] - once_s) / (numbers[many] - 1))
    return [*lines, "", f"Median beyond {FEW} decodes: {1e6 * each_s:.1f} µs a request"]


if __name__ == "__main__":
    main()
