"""`make bench`: seconds and memory of an hour of traffic, simulated natively and with vLLM's own scheduler.

The hour `short` is llama3-70b on four ranks of H100 at 10 Poisson requests a second: prompts of 256 to 768 tokens,
outputs of 64 to 192, prefix caching on. vLLM's own scheduler serves the first 1,000 requests of it. The hour `long` has
the numbers of Mooncake's conversations: 12,000 requests of 12,000 tokens, of which 41 % continue what was said before,
and of 340 tokens of output; a KV cache of a million tokens, whose blocks and evictions count, not the steps' times.
Each simulation has a process of its own, so that a peak is its own; what a process holds before, latency models
included, is told beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.engines import LONGEST, NUM_SEQS, NUM_TOKENS
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.footprint import cache_room
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.scheduling.clock import run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, Scheduler, SchedulerOptions
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.synthetic import Sessions, SyntheticTraffic

MODEL, RANKS, DEVICE = "llama3-70b", 4, "h100_sxm"
OPTIONS = ServingOptions(
    tensor_parallel_size=RANKS, max_num_tokens=NUM_TOKENS, max_num_seqs=NUM_SEQS, max_model_len=LONGEST
)
TRAFFIC = SyntheticTraffic(Arrivals.parse("10"), PromptAndOutput(Lengths.around(512, 0.5), Lengths.around(128, 0.5)))
CONVERSATIONS = SyntheticTraffic(
    Arrivals.parse("1.67"),
    PromptAndOutput(Lengths.parse("lognormal:7000,6000,100,40000"), Lengths.parse("lognormal:343,250,1,2000")),
    sessions=Sessions(Lengths.parse("uniform:1,3"), think_s=60.0),
)
CACHED_TOKENS, BLOCK_SIZE = 1_000_000, 16
CASES = (
    ("native", "short", 36_000),
    ("native", "short", 1_000),
    ("vllm", "short", 1_000),
    ("native", "long", 6_016),
)
"""Scheduler, hour, and requests of it, or sessions."""


class Linear:
    """Step times without a model."""

    def step_s(self, step: Scheduled) -> float:
        """Ten milliseconds, and a second for 50,000 tokens."""
        return 0.01 + 2e-5 * step.num_tokens


def measure(db_path: Path, name: str, hour: str, number: int) -> dict[str, float]:
    """One simulation in this process."""
    times, options = _llama(db_path) if hour == "short" else _linear()
    traffic = (TRAFFIC if hour == "short" else CONVERSATIONS).draw(num_requests=number)
    scheduler = _scheduler(name, options)
    before_bytes = _peak_bytes()
    start = time.perf_counter()
    simulated = run(traffic, scheduler, times)
    seconds = time.perf_counter() - start
    return {
        "requests": len(traffic.requests),
        "simulated_s": float(simulated.last_s.max()),
        "wall_s": seconds,
        "steps": len(simulated.steps),
        "before_bytes": before_bytes,
        "peak_bytes": _peak_bytes(),
    }


def _llama(db_path: Path) -> tuple[StepTimes, SchedulerOptions]:
    device = device_named(DEVICE)
    with LatencyDB.open(db_path) as db:
        (model,) = db.models()
        models = {key: found.model for key, found in Grounds(db, device).of(model).items()}
        times = StepTimes(model, models, overlapped=True)
    return times, SchedulerOptions(model.limits, cache_room(model, device).num_blocks)


def _linear() -> tuple[Linear, SchedulerOptions]:
    limits = Limits(max_num_tokens=8192, max_num_seqs=1024, max_model_len=140_000)
    return Linear(), SchedulerOptions(limits, CACHED_TOKENS // BLOCK_SIZE, BLOCK_SIZE)


def _scheduler(name: str, options: SchedulerOptions) -> Scheduler:
    if name == "native":
        return NativeScheduler(options)
    from pytest_dooly.engine.vllm.scheduler import VllmScheduler

    return VllmScheduler(options)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trace_into(db: LatencyDB) -> None:
    """The tables and the model that every simulation reads."""
    from pytest_dooly.engine import load_engine
    from pytest_dooly.serving import serve

    import_tables(db, [DEVICE])
    engine = load_engine("vllm")
    configuration = resolve(MODEL, OPTIONS)
    serve(engine, configuration, db, engine.environment(configuration), progress=progress)


def main() -> None:
    """One row a simulation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="of a process of its own: latency DB, scheduler, hour, number, answer")
    case = parser.parse_args().case
    if case:
        path, name, hour, number, answer = case
        Path(answer).write_text(json.dumps(measure(Path(path), name, hour, int(number))), encoding="utf-8")
        return
    out = sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        path, answer = Path(folder) / "latency.db", Path(folder) / "row.json"
        with LatencyDB.open(path) as db:
            trace_into(db)
        out.write(
            f"{'scheduler':9} {'hour':5} {'requests':>8} {'simulated s':>11} {'wall s':>7} {'steps':>8} {'steps/s':>8} "
        )
        out.write(f"{'peak GB':>7} {'before':>7}\n")
        for name, hour, number in CASES:
            command = [sys.executable, "-m", "benchmarks.simulation_speed", str(path), name, hour, str(number)]
            command.append(str(answer))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            row = json.loads(answer.read_text(encoding="utf-8"))
            peak, before = (f"{row[column] / 1e9:7.2f}" for column in ("peak_bytes", "before_bytes"))
            out.write(
                f"{name:9} {hour:5} {row['requests']:8,} {row['simulated_s']:11,.0f} {row['wall_s']:7.1f} "
                f"{row['steps']:8,} {row['steps'] / row['wall_s']:8,.0f} {peak} {before}\n"
            )
            out.flush()


if __name__ == "__main__":
    main()
