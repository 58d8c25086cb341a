"""SGLang Simulator on our step times, beside our own simulation of the same requests.

Run as `python -m benchmarks.hosts_sglang --clone DIR --python PATH --trace FILE [--db FILE] [--write DIR]`. DIR is a
clone of sgl-project/sglang, PATH an interpreter that has our requirements and the SGLang that the clone's simulator is
made for, FILE requests in a form that `dooly simulate --trace` reads. SGLang's own scheduler and radix cache run, on
the processor; both get Qwen3-8B on an H100, KV tokens as many, and steps of the same size. Two loads: the trace, whose
prompts have nothing in common, and as many requests that we draw, in groups with the same beginning.

The simulator adds the seconds that the scheduler takes on this machine to its simulated clock. So that the scheduler
can be told from the machine, it runs once more with a clock that leaves them out, and so with prompts and decodes in
one step (`--enable-mixed-chunk`), which SGLang does not do by default. Our own simulation runs as vLLM schedules, with
and without a step scheduled ahead, and once with SGLang's order: prompts alone before any decode.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hosts import HEAD, Served, children_s, told
from benchmarks.public import write
from pytest_dooly.core.configuration import aliases
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.scheduling.clock import Server
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.simulate import Engine, joined
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic
from pytest_dooly.simulation.traces import TraceOptions, read_trace

MODEL, DEVICE, GROUPS = "qwen3-8b", "h100_sxm", 4


class PromptsFirst:
    """SGLang's order in our own simulation: a step is prompts, or where none waits a decode of all that run.

    KV blocks are not counted: it is for loads that they suffice for, and without a prefix cache.
    """

    def __init__(self, options: SchedulerOptions) -> None:
        """An idle engine."""
        self._limits = options.limits
        self._waiting: deque[int] = deque()
        self._running: dict[int, int] = {}  # tokens generated
        self._requests: dict[int, TrafficRequest] = {}
        self._computed: dict[int, int] = {}
        self.used_blocks = 0

    def add(self, place: int, request: TrafficRequest) -> None:
        """Lets a request wait."""
        self._requests[place], self._computed[place] = request, 0
        self._waiting.append(place)

    def schedule(self) -> Scheduled | None:
        """Prompts in the order of arrival while the step has room; the last one may get a part of it."""
        budget, places, queries = self._limits.max_num_tokens, list[int](), list[int]()
        contexts, sampling = list[int](), list[int]()
        while self._waiting and budget and len(self._running) + len(places) < self._limits.max_num_seqs:
            place = self._waiting[0]
            left = self._requests[place].prompt_len - self._computed[place]
            query_len = min(left, budget)
            places.append(place)
            queries.append(query_len)
            contexts.append(self._computed[place])
            self._computed[place] += query_len
            budget -= query_len
            if query_len == left:
                sampling.append(self._waiting.popleft())
        if not places:
            places = sampling = list(self._running)
            queries = [1] * len(places)
            contexts = [self._requests[place].prompt_len + self._running[place] - 1 for place in places]
        return Scheduled(places, queries, contexts, sampling) if places else None

    def update(self, step: Scheduled) -> Sequence[int]:
        """Those that have their last token."""
        ended = []
        for place in step.sampling:
            self._running[place] = self._running.get(place, 0) + 1
            if self._running[place] == self._requests[place].output_len:
                ended.append(place)
                del self._running[place]
        return ended

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that decode."""
        return len(self._running)

    def cached_tokens(self, place: int) -> int:
        """None."""
        return 0


@dataclass(frozen=True)
class Host:
    """What runs the simulator.

    Attributes:
        clone: of sgl-project/sglang.
        python: interpreter that has SGLang.
        db: latency DB.
        folder: for its files.
        options: how it is to schedule, in our words.
    """

    clone: Path
    python: str
    db: Path
    folder: Path
    options: SchedulerOptions

    def serve(self, name: str, traffic: Traffic, *, own_time: bool = False, **changed: Any) -> tuple[Served, str]:
        """One run of the simulator in processes of its own; and what it says of its clock and its cache.

        Args:
            name: for people.
            traffic: that arrives.
            own_time: whether the seconds of its own processor count, as they do by default.
            changed: options of SGLang.
        """
        out = Path(tempfile.mkdtemp(dir=self.folder))
        asked = {
            "options": {**self._server, **changed},
            "environment": self._environment(out),
            "without_processor": not own_time,
            "requests": [
                {"arrival_s": request.arrival_s, "output_len": request.output_len, "tokens": tokens_of(place, request)}
                for place, request in enumerate(traffic.requests)
            ],
        }
        before_s = children_s()
        path = os.pathsep.join([str(Path.cwd()), str(self.clone / "tools/sglang-simulator/src")])
        done = subprocess.run(
            [self.python, "-m", "benchmarks.hosts_sglang_engine"],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            stderr=(out / "log").open("w"),
            check=True,
            text=True,
            env={**os.environ, **self._environment(out), "PYTHONPATH": path},
        )
        cpu_s = children_s() - before_s
        rows = [json.loads(line) for line in (out / "request.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [json.loads(line) for line in (out / "iteration.jsonl").read_text(encoding="utf-8").splitlines()]
        latencies = [row["gen_token_latencies"] for row in rows]
        tpot_s = [float(np.mean(each[1:])) for each in latencies if len(each) > 1]
        wall_s = json.loads(done.stdout.splitlines()[-1])["wall_s"]
        added_ms = 1e3 * np.array([step["cpu_overhead"] for step in steps])
        added = f"{added_ms.mean():.2f} ms of the processor added to each, {added_ms.max():.0f} to one"
        prompts = sum(row["input_length"] for row in rows)
        cached = sum(row["final_device_hit_len"] for row in rows) / prompts
        said = f"{name}: {len(steps):,} steps, {added}, {cached:.1%} cached"
        return Served(name, [each[0] for each in latencies], tpot_s, wall_s, cpu_s), said

    @property
    def _server(self) -> Mapping[str, Any]:
        """SGLang's own options; what it would take from the machine it runs on is said."""
        limits = self.options.limits
        return {
            "model_path": str(aliases()[MODEL]),
            "load_format": "dummy",
            "device": "cpu",
            "sampling_backend": "pytorch",
            "skip_tokenizer_init": True,
            "log_level": "error",
            "max_total_tokens": self.options.num_blocks * self.options.block_size,
            "max_running_requests": limits.max_num_seqs,
            "chunked_prefill_size": limits.max_num_tokens,
        }

    def _environment(self, out: Path) -> Mapping[str, str]:
        configuration = {
            "platform": {"accelerator": {"name": DEVICE}},
            "predictor": {"name": "dooly", "db": str(self.db), "model": MODEL},
            "scheduler": {"tp_size": 1},
        }
        (out / "simulator.json").write_text(json.dumps(configuration), encoding="utf-8")
        return {
            "CUDA_VISIBLE_DEVICES": "",
            "SGLANG_USE_CPU_ENGINE": "1",
            "SGLANG_SIMULATOR_BOOTSTRAP": "1",
            "SGLANG_SIMULATOR_OUTPUT_MODE": "OFFLINE",
            "SGLANG_SIMULATOR_CONFIG_PATH": str(out / "simulator.json"),
            "SGLANG_SIMULATOR_OUTPUT_DIR": str(out),
        }


def from_zero(traffic: Traffic) -> Traffic:
    """The same requests, the first at once: the simulator sets its clock to 0 when it takes the first one in."""
    first_s = traffic.requests[0].arrival_s
    requests = [replace(request, arrival_s=request.arrival_s - first_s) for request in traffic.requests]
    return replace(traffic, requests=requests)


def tokens_of(place: int, request: TrafficRequest) -> list[int]:
    """Of a prompt: equal where segments are equal, of its own where there are none."""
    segments = request.segments or ((-1 - place, request.prompt_len),)
    return [1 + identity % 100_003 for identity, length in segments for _ in range(length)]


def ours(
    name: str, traffic: Traffic, times: StepTimes, options: SchedulerOptions, scheduler: Any = NativeScheduler
) -> tuple[Served, str]:
    """Our own simulation, in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    server = Server.adding(0.0, async_scheduling=options.async_scheduling)
    found = joined(Deployment(times, options, server, scheduler=scheduler).simulate(traffic))
    tpot_s = found.tpot_s[~np.isnan(found.tpot_s)].tolist()
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    cached = float(found.cached_tokens.sum()) / sum(request.prompt_len for request in traffic.requests)
    said = f"{name}: {len(found.steps):,} steps, {cached:.1%} cached"
    return Served(name, found.ttft_s.tolist(), tpot_s, wall_s, cpu_s), said


def compared(
    host: Host, times: StepTimes, traffic: Traffic, *, prefix_caching: bool
) -> tuple[list[Served], Sequence[str]]:
    """Everything that there is of a load."""
    plain = replace(host.options, prefix_caching=prefix_caching, async_scheduling=False)
    ahead = replace(plain, async_scheduling=True)
    runs = [
        host.serve("SGLang Simulator with our step times", traffic, own_time=True),
        host.serve("- its processor's time left out", traffic),
        host.serve("- and prompts beside decodes", traffic, enable_mixed_chunk=True),
    ]
    if prefix_caching:
        size = plain.block_size
        runs.append(host.serve(f"- and pages of {size} tokens", traffic, enable_mixed_chunk=True, page_size=size))
    else:
        runs.append(ours("pytest-dooly, prompts first", traffic, times, plain, PromptsFirst))
    runs.append(ours("pytest-dooly, no step scheduled ahead", traffic, times, plain))
    runs.append(ours("pytest-dooly", traffic, times, ahead))
    return [served for served, _ in runs], [said for _, said in runs]


def main() -> None:
    """One table a load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", required=True, type=Path, metavar="DIR", help="of sgl-project/sglang")
    parser.add_argument("--python", required=True, metavar="PATH", help="that has SGLang and our requirements")
    parser.add_argument("--trace", required=True, type=Path, metavar="FILE", help="requests")
    parser.add_argument("--db", type=Path, default=Path(".dooly/latency.db"), help="with tables of an H100")
    parser.add_argument("--write", metavar="DIR", help="where hosts_sglang.md is written")
    asked = parser.parse_args()
    with LatencyDB.open(asked.db) as db:
        model, models = known(db, MODEL, None, device=DEVICE)
    times = StepTimes(model, models, overlapped=True)
    options = Engine().options(model, DEVICE)
    trace = read_trace(asked.trace, TraceOptions(max_model_len=options.limits.max_model_len)).traffic
    number = len(trace.requests)
    apart = replace(trace, requests=[replace(request, segments=(), output=None) for request in trace.requests])
    lengths = PromptAndOutput(Lengths.around(256, 0.5), Lengths.around(128, 0.5))
    arrivals, prefix = Arrivals.parse(f"{trace.offered_rate:.3g}"), SharedPrefix(GROUPS, -(-number // GROUPS), 1000)
    alike = SyntheticTraffic(arrivals, lengths, prefix).draw(num_requests=number)
    loads = (
        (f"lengths and times of {asked.trace.name}", from_zero(apart), False),
        (f"drawn, {GROUPS} groups whose first {prefix.tokens:,} tokens are equal", from_zero(alike), True),
    )
    lines = []
    with tempfile.TemporaryDirectory() as name:
        host = Host(asked.clone.resolve(), asked.python, asked.db.resolve(), Path(name), options)
        for title, traffic, prefix_caching in loads:
            found, said = compared(host, times, traffic, prefix_caching=prefix_caching)
            lines += [
                f"{MODEL} on one {DEVICE}, {title}: {number:,} requests at {traffic.offered_rate:.3g} a second, "
                f"milliseconds; {options.num_blocks:,} KV blocks",
                "",
                HEAD,
                *(each.row for each in found),
                "",
                told(found),
                "",
                *(f"- {line.removeprefix('- ')}" for line in said),
                "",
            ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if asked.write is not None:
        write(Path(asked.write) / "hosts_sglang.md", "SGLang Simulator with our step times", __doc__, text)


if __name__ == "__main__":
    main()
