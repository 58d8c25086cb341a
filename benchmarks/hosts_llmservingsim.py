"""LLMServingSim on our bundle, beside our own simulation of the same requests.

Run as `python -m benchmarks.hosts_llmservingsim --clone DIR [--db FILE] [--write DIR]`. DIR is a clone of
casys-kaist/LLMServingSim at 5daddb2. Llama-3-8B on an H100 serves the 300 requests of ShareGPT at 10 a second that lie
there, without and with prefix caching: in LLMServingSim's own loop with what stands in for ASTRA-Sim
(`benchmarks/hosts_llmservingsim_loop.py`), and in our own scheduler, once with a step's time as
`serving/core/trace_generator.py` finds it in our bundle (its reader, its architecture, its interpolation, its sum over
layers), so that its scheduler can be told from its form, and once with our step times.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from benchmarks.hosts import HEAD, Served, children_s, told
from benchmarks.hosts_dynamo import ours
from benchmarks.public import write
from pytest_dooly.core.configuration import ServingOptions, aliases
from pytest_dooly.core.device import device_named
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.prediction.step_times import Shape, StepTimes
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.simulation.simulate import Engine

MODEL, DEVICE, ARCHITECTURE = "llama3", "h100_sxm", "llama"
WORKLOAD = "workloads/sharegpt-llama-3.1-8b-300-sps10.jsonl"


class ByLLMServingSim:
    """Seconds of a step as LLMServingSim's trace generator has them: every layer of its architecture, looked up."""

    def __init__(self, folder: Path, layers: int) -> None:
        """Has the bundle read.

        Args:
            folder: with `serving` and `profiler` as in a clone, and our bundle.
            layers: of the model.
        """
        sys.path.insert(0, str(folder))
        self._theirs: Any = importlib.import_module("serving.core.trace_generator")
        with chdir(folder / "serving"):  # it looks for ../profiler
            self._tables = self._theirs._load_perf_db(DEVICE, MODEL, "bf16", {1}, ARCHITECTURE)
        parts = {part: self._theirs._sequence(self._tables, part) for part in ("prologue", "pre_attn", "post_attn")}
        rest = {part: self._theirs._sequence(self._tables, part) for part in ("mlp_dense", "head")}
        once = [*parts["prologue"], *rest["head"]]
        self._layers = [*((name, 1) for name in once)]
        self._layers += [(name, layers) for name in (*parts["pre_attn"], *parts["post_attn"], *rest["mlp_dense"])]

    def step_s(self, step: Shape) -> float:
        """Nanoseconds of each layer, added up."""
        return 1e-9 * sum(times * self._layer_ns(name, step) for name, times in self._layers)

    def _layer_ns(self, name: str, step: Shape) -> int:
        category, reqs = self._theirs._layer_category(self._tables, name), step.num_decodes + len(step.chunks)
        if category == "dense":
            return int(self._theirs._lookup_dense(self._tables, name, 1, step.num_tokens))
        if category == "per_sequence":
            return int(self._theirs._lookup_per_sequence(self._tables, name, 1, reqs))
        chunk, before = (sum(lengths) for lengths in zip(*step.chunks, strict=True)) if step.chunks else (0, 0)
        mean = step.decode_tokens // step.num_decodes if step.num_decodes else 0
        return int(self._theirs._lookup_attention(self._tables, 1, chunk, before, step.num_decodes, mean))


def in_llmservingsim(folder: Path, trace: Path, options: SchedulerOptions) -> Served:
    """Its own loop from its start to its last file, in a folder with its code and our bundle."""
    instance = {"model_name": MODEL, "hardware": DEVICE, "num_npus": 1, "tp_size": 1, "pd_type": None}
    memory = {"mem_size": device_named(DEVICE).memory_bytes / 2**30, "mem_bw": 3350, "mem_latency": 0}
    host = {"mem_size": 512, "mem_bw": 256, "mem_latency": 0}
    node = {"num_instances": 1, "cpu_mem": host, "instances": [{**instance, "npu_mem": memory}]}
    cluster = {"num_nodes": 1, "link_bw": 16, "link_latency": 20000, "nodes": [node]}
    files = {
        "configs/cluster/one.json": json.dumps(cluster),
        f"configs/model/{MODEL}.json": (aliases()[MODEL] / "config.json").read_text(encoding="utf-8"),
        "astra-sim/inputs/system/system.json": "{}",
        "trace.jsonl": trace.read_text(encoding="utf-8"),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.hosts_llmservingsim_loop"]
    command += ["--cluster-config", "configs/cluster/one.json"]
    command += ["--dataset", "trace.jsonl", "--output", "out.csv"]
    command += [f"--{'' if options.prefix_caching else 'no-'}enable-prefix-caching"]
    limits = options.limits
    command += ["--max-num-seqs", str(limits.max_num_seqs), "--max-num-batched-tokens", str(limits.max_num_tokens)]
    environment, before_s, start = {**os.environ, "PYTHONPATH": str(Path.cwd())}, children_s(), time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    wall_s, cpu_s = time.perf_counter() - start, children_s() - before_s
    (found,) = folder.rglob("out.csv")
    rows = list(csv.DictReader(found.read_text(encoding="utf-8").splitlines()))
    ttft_s, tpot_s = ([1e-9 * float(row[name]) for row in rows] for name in ("TTFT", "TPOT"))
    return Served("LLMServingSim with our bundle", ttft_s, tpot_s, wall_s, cpu_s)


def steps_apart(theirs: ByLLMServingSim, exact: StepTimes) -> str:
    """A few steps one by one."""
    lines = ["| step | LLMServingSim's reader | our step times |", "| --- | ---: | ---: |"]
    for decodes, context, chunks in (
        (1, 512, []),
        (32, 1000, []),
        (200, 1500, []),
        (0, 0, [(512, 0)]),
        (0, 0, [(4096, 0)]),
        (32, 1000, [(512, 0)]),
    ):
        step = _Step(decodes, decodes * context, chunks, decodes + sum(length for length, _ in chunks))
        what = f"{decodes} decodes after {context:,} tokens" if decodes else ""
        prompt = " and ".join(f"a prompt of {length:,}" for length, _ in chunks)
        name = " and ".join(filter(None, (what, prompt)))
        lines.append(f"| {name} | {1e3 * theirs.step_s(step):.2f} ms | {1e3 * exact.step_s(step):.2f} ms |")
    return "\n".join(lines)


class _Step:
    def __init__(self, num_decodes: int, decode_tokens: int, chunks: list[tuple[int, int]], num_tokens: int) -> None:
        self.num_decodes, self.decode_tokens, self.chunks, self.num_tokens = (
            num_decodes,
            decode_tokens,
            chunks,
            num_tokens,
        )


def main() -> None:
    """Two tables of a load, and one of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", required=True, type=Path, metavar="DIR", help="of LLMServingSim")
    parser.add_argument("--db", type=Path, default=Path(".dooly/latency.db"), help="with tables of an H100")
    parser.add_argument("--write", metavar="DIR", help="where hosts_llmservingsim.md is written")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("serving", "profiler/models"):
            shutil.copytree(asked.clone / part, folder / part)
        perf = folder / "profiler" / "perf"
        command = [sys.executable, "-m", "pytest_dooly.cli", "export", "--for", "llmservingsim", MODEL]
        command += ["--device", DEVICE, "--db", str(asked.db), "--out", str(perf)]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ)
        with LatencyDB.open(asked.db) as db:
            model, models = known(db, MODEL, ServingOptions(), device=DEVICE)
        exact, theirs = StepTimes(model, models, overlapped=True), ByLLMServingSim(folder, 32)
        trace, lines = asked.clone / WORKLOAD, []
        for caching in (False, True):
            options = Engine(prefix_caching=caching, async_scheduling=False).options(model, DEVICE)
            runs = [
                ours("our scheduler, LLMServingSim's reader", theirs, options, trace, 1),
                ours("our scheduler, our step times", exact, options, trace, 1),
            ]
            found = [in_llmservingsim(folder, trace, options), *(served for served, _, _ in runs)]
            lines += [
                f"{MODEL} on one {DEVICE}: {len(found[0].ttft_s)} requests, {runs[0][2]:.1%} cached, milliseconds",
                "",
                HEAD,
                *(each.row for each in found),
                "",
                told(found),
                "",
            ]
        lines += [steps_apart(theirs, exact), ""]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if asked.write is not None:
        write(Path(asked.write) / "hosts_llmservingsim.md", "LLMServingSim on our bundle", __doc__, text)


if __name__ == "__main__":
    main()
