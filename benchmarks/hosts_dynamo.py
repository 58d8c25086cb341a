"""DynoSim's replay of Mooncake's conversation trace on our step times, beside our own simulation of the same requests.

Run as `python -m benchmarks.hosts_dynamo --trace FILE --python PATH [--db FILE] [--write DIR]`. FILE is
`FAST25-release/traces/conversation_trace.jsonl` of kvcache-ai/Mooncake, PATH an interpreter that has ai-dynamo. The
requests are the first that take up to `LONGEST` tokens, at the trace's own times, in turn to `REPLICAS` replicas of
Qwen3-8B on an H100; both get the same limits of a step, KV blocks of 16 tokens as many, and prefix caching by the
trace's hashes.

What DynoSim reads is less than what we know of a step (`pytest_dooly/hosts/dynamo.py`): new prompt tokens cost the same
whatever stands before them, and a step with a prompt and decodes costs what each takes alone. So that the form can be
told from the scheduler, our own simulation runs once more with a step's time taken from the same file in DynoSim's
way, and once without a step scheduled ahead, which DynoSim does not do.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hosts import HEAD, Served, children_s, told
from benchmarks.public import write
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.hosts.backend import Backend
from pytest_dooly.hosts.dynamo import step_tables
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.prediction.step_times import Shape, StepTimes
from pytest_dooly.scheduling.clock import Server, StepLatency
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import Engine, joined
from pytest_dooly.simulation.traces import TraceOptions, read_trace

MODEL, DEVICE, LONGEST, REPLICAS = "qwen3-8b", "h100_sxm", 32768, 8

REPLAY = """
import json, sys, time
from dynamo.replay import run_trace_replay
asked = json.load(sys.stdin)
begin_s = time.perf_counter()
report = run_trace_replay([asked["trace"]], extra_engine_args=asked["engine"], num_workers=asked["replicas"],
                          trace_block_size=512, capture_per_request=True).to_dict()
report["wall_s"] = time.perf_counter() - begin_s
json.dump(report, sys.stdout)
"""
"""In a process that has ai-dynamo."""


class AsDynoSim:
    """Seconds of a step in the form of DynoSim, from its file: prompts by their tokens, plus decodes by KV tokens."""

    def __init__(self, path: Path) -> None:
        """Reads the arrays."""
        with np.load(path) as arrays:
            self._lengths, self._prefill_ms = arrays["prefill_isl"].tolist(), arrays["prefill_ttft_ms"].tolist()
            self._tokens = arrays["decode_active_kv_tokens"].tolist()
            self._contexts = arrays["decode_context_length"].tolist()
            self._decode_ms = arrays["decode_itl"].tolist()

    def step_s(self, step: Shape) -> float:
        """Interpolated between the points, and at the edge beyond them."""
        prompts = sum(query_len for query_len, _ in step.chunks)
        total_ms = 0.0
        if prompts:
            total_ms = _between(*_place(self._lengths, prompts), self._prefill_ms)
        if step.num_decodes:
            i, x = _place(self._tokens, step.decode_tokens)
            place = _place(self._contexts, step.decode_tokens / step.num_decodes)
            below, above = (_between(*place, row) for row in self._decode_ms[i : i + 2])
            total_ms += below + x * (above - below)
        return total_ms / 1e3


def _place(axis: Sequence[float], value: float) -> tuple[int, float]:
    """The interval of an axis, and how far in it."""
    i = min(max(bisect.bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return i, min(max((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)


def _between(i: int, x: float, values: Sequence[float]) -> float:
    return values[i] + x * (values[i + 1] - values[i])


def requests_of(source: Path, path: Path, number: int) -> Path:
    """The first that fit."""
    with source.open(encoding="utf-8") as lines:
        fitting = [line for line in lines if _tokens(json.loads(line)) <= LONGEST]
    path.write_text("".join(fitting[:number]), encoding="utf-8")
    return path


def _tokens(row: dict[str, Any]) -> int:
    return int(row["input_length"]) + int(row["output_length"])


def in_dynosim(python: str, trace: Path, tables: Path, options: SchedulerOptions) -> tuple[Served, dict[str, Any]]:
    """Its replay, and its own summary."""
    limits = options.limits
    engine = {
        "backend": "vllm",
        "num_gpu_blocks": options.num_blocks,
        "block_size": options.block_size,
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_tokens,
        "timing_model": {"type": "external", "provider": "dynamo_profile", "config": {"path": str(tables)}},
    }
    asked = {"trace": str(trace), "engine": {"engine": engine}, "replicas": REPLICAS}
    environment = {**os.environ, "DYN_LOG": "error"}
    before_s = children_s()
    done = subprocess.run(
        [python, "-c", REPLAY],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=environment,
    )
    cpu_s = children_s() - before_s
    report = json.loads(done.stdout)
    rows = report["per_request"]
    ttft_s = [row["ttft_ms"] / 1e3 for row in rows]
    tpot_s = [
        (row["last_token_ms"] - row["first_token_ms"]) / 1e3 / (row["output_length"] - 1)
        for row in rows
        if row["output_length"] > 1
    ]
    return Served("DynoSim with our step times", ttft_s, tpot_s, report["wall_s"], cpu_s), report["summary"]


def ours(
    name: str, times: StepLatency, options: SchedulerOptions, trace: Path, replicas: int = REPLICAS
) -> tuple[Served, float, float]:
    """Our own simulation; output tokens a second, and the share of prompt tokens found in the prefix cache."""
    start, cpu = time.perf_counter(), time.process_time()
    server = Server.adding(0.0, async_scheduling=options.async_scheduling)
    traffic = read_trace(trace, TraceOptions(max_model_len=options.limits.max_model_len)).traffic
    found = joined(Deployment(times, options, server, replicas).simulate(traffic))
    tpot_s = found.tpot_s[~np.isnan(found.tpot_s)].tolist()
    served = Served(name, found.ttft_s.tolist(), tpot_s, time.perf_counter() - start, time.process_time() - cpu)
    outputs, prompts = (
        sum(getattr(request, length) for request in traffic.requests) for length in ("output_len", "prompt_len")
    )
    return served, outputs / float(found.last_s.max()), float(found.cached_tokens.sum()) / prompts


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", required=True, type=Path, metavar="FILE", help="Mooncake's")
    parser.add_argument("--python", required=True, metavar="PATH", help="that has ai-dynamo")
    parser.add_argument("--db", type=Path, default=Path(".dooly/latency.db"), help="with tables of an H100")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--write", metavar="DIR", help="where hosts_dynamo.md is written")
    asked = parser.parse_args()
    served_with = ["--max-model-len", str(LONGEST), "--db", str(asked.db)]
    with tempfile.TemporaryDirectory() as name:
        tables, trace = (
            Path(name) / "step_times.npz",
            requests_of(asked.trace, Path(name) / "trace.jsonl", asked.requests),
        )
        command = [sys.executable, "-m", "pytest_dooly.cli", "export", "--for", "dynamo", MODEL, "--device", DEVICE]
        subprocess.run([*command, *served_with, "--out", str(tables)], check=True, stdout=sys.stderr)
        with LatencyDB.open(asked.db) as db:
            model, models = known(db, MODEL, ServingOptions(max_model_len=LONGEST), device=DEVICE)
        exact = StepTimes(model, models, overlapped=True)
        plain = Engine(async_scheduling=False).options(model, DEVICE)
        theirs, summary = in_dynosim(asked.python, trace, tables, plain)
        form = ours("pytest-dooly, DynoSim's form, no step scheduled ahead", AsDynoSim(tables), plain, trace)
        ahead = Engine().options(model, DEVICE)
        own = [
            form,
            ours("pytest-dooly, no step scheduled ahead", exact, plain, trace),
            ours("pytest-dooly", exact, ahead, trace),
        ]
        mixed = step_tables(Backend(exact)).mixed
    found = [theirs, *(each for each, _, _ in own)]
    rates = [summary["output_throughput_tok_s"], *(rate for _, rate, _ in own)]
    cached = [summary["prefix_cache_reused_ratio"], *(share for _, _, share in own)]
    lines = [
        f"{MODEL} on {REPLICAS} replicas of one {DEVICE}: {len(theirs.ttft_s):,} requests, milliseconds; "
        f"{plain.num_blocks:,} KV blocks each",
        "",
        f"{HEAD.splitlines()[0]} output tokens/s | prefix found |",
        f"{HEAD.splitlines()[1]} ---: | ---: |",
        *(f"{each.row} {rate:.0f} | {share:.1%} |" for each, rate, share in zip(found, rates, cached, strict=True)),
        "",
        told(found),
        f"Steps with a prompt and decodes, in DynoSim's form: off by {mixed}.",
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if asked.write is not None:
        write(Path(asked.write) / "hosts_dynamo.md", "DynoSim with our step times", __doc__, text)


if __name__ == "__main__":
    main()
