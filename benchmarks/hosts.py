"""Vidur with our step times beside Vidur with its own forests, and beside our own simulation of the same requests.

Run as `python -m benchmarks.hosts --vidur CLONE [--python PATH] [--db FILE] [--write DIR]`. CLONE is microsoft/vidur at
7d47513, PATH an interpreter that has its requirements and ours. The snapshot lacks every `attention.csv`; git history
keeps one of an A100, for 64 query and 8 KV heads on two ranks, which is CodeLlama-34B's:

    git show ee3dec7 > data/profiling/compute/a100/codellama/CodeLlama-34b-Instruct-hf/attention.csv

so that the forests are compared on that model and device alone. They get one setting and two folds (`FOREST`), as the
default grid takes 40 minutes. Requests are the first of Azure's conversations that take up to 4,096 tokens, their times
stretched to the rate that is named; all three get the same KV blocks, and steps of the same size. Vidur schedules as
Sarathi does, which is the nearest it has to vLLM's own; its forests count neither the embedding, nor the logits, nor
what the engine does on the processor. In our own simulation, as in vLLM, a step is scheduled while the one before runs,
so that a request which comes meanwhile waits for one more; once it is done without. Wall and CPU seconds are of the
whole process for Vidur, its imports and set-up included, and without imports for our own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.public import write
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.configuration import ServingOptions, aliases, resolve
from pytest_dooly.core.device import device_named, served_on
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.forecast import known
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.footprint import cache_room
from pytest_dooly.scheduling.clock import Server
from pytest_dooly.simulation.deployment import Deployment
from pytest_dooly.simulation.simulate import Engine, joined
from pytest_dooly.simulation.traces import read_trace

LONGEST = 4096
FOREST = {"num_estimators": 250, "max_depth": 32, "min_samples_split": 2, "k_fold_cv_splits": 2}
CODELLAMA: Mapping[str, Any] = {
    **json.loads((aliases()["llama3"] / "config.json").read_text(encoding="utf-8")),
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 16384,
}
"""Of 34 billion parameters, as published."""


@dataclass(frozen=True)
class Case:
    """One model on one GPU.

    Attributes:
        title: for people.
        model: alias, or directory with config.json.
        theirs: Vidur's name of the model and of the GPU, where it has both and data of them.
        device: ours.
        ranks: tensor-parallel size.
        rate: requests a second.
    """

    title: str
    model: str
    theirs: tuple[str, str] | None
    device: str
    ranks: int
    rate: float

    @property
    def options(self) -> ServingOptions:
        """What it is served with."""
        return ServingOptions(tensor_parallel_size=self.ranks, max_model_len=LONGEST)


@dataclass(frozen=True)
class Served:
    """Of all requests, in seconds; what it took to know them."""

    name: str
    ttft_s: Sequence[float]
    tpot_s: Sequence[float]
    wall_s: float
    cpu_s: float

    @property
    def row(self) -> str:
        """Of a table."""
        ttft, tpot = 1e3 * np.array(self.ttft_s), 1e3 * np.array(self.tpot_s)
        figures = (f"{ttft.mean():.1f}", f"{np.median(ttft):.1f}", f"{np.percentile(ttft, 99):.1f}")
        seconds = (f"{tpot.mean():.2f}", f"{np.percentile(tpot, 99):.2f}", f"{self.wall_s:.1f}", f"{self.cpu_s:.1f}")
        return f"| {self.name} | {' | '.join((*figures, *seconds))} |"


HEAD = "| | TTFT mean | p50 | p99 | TPOT mean | p99 | wall s | CPU s |\n| --- |" + " ---: |" * 7


def trace_of(source: Path, path: Path, number: int, rate: float) -> Path:
    """So many requests that fit, at that rate."""
    with source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lengths = [(float(r["arrived_at"]), int(r["num_prefill_tokens"]), int(r["num_decode_tokens"])) for r in rows]
    kept = [row for row in lengths if row[1] + row[2] <= LONGEST][:number]
    stretch = (number / rate) / (kept[-1][0] - kept[0][0])
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["arrived_at", "num_prefill_tokens", "num_decode_tokens"])
        lines.writerows((f"{(at - kept[0][0]) * stretch:.6f}", prompt, output) for at, prompt, output in kept)
    return path


def in_vidur(name: str, module: str, flags: Mapping[str, object], *, clone: Path, python: str, folder: Path) -> Served:
    """One run of Vidur in a process of its own, from its start to the last file that it writes."""
    out = Path(tempfile.mkdtemp(dir=folder))
    usual = {"metrics_config_output_dir": out, "metrics_config_cache_dir": out / "cache"}
    command = [python, "-m", module, "--no-metrics_config_store_plots"]
    command += [text for flag, value in {**usual, **flags}.items() for text in (f"--{flag}", str(value))]
    path = os.pathsep.join([str(Path.cwd()), str(clone)])
    before, start = children_s(), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "disabled"}
    subprocess.run(command, check=True, cwd=clone, env=environment, stdout=subprocess.DEVNULL)
    wall_s, cpu_s = time.perf_counter() - start, children_s() - before
    (metrics,) = out.glob("*/request_metrics.csv")
    rows = list(csv.DictReader(metrics.read_text(encoding="utf-8").splitlines()))
    first = [float(row["prefill_e2e_time"]) for row in rows]
    outputs = [float(row["request_num_decode_tokens"]) for row in rows]
    rest = [float(row["request_e2e_time"]) - ttft_s for row, ttft_s in zip(rows, first, strict=True)]
    tpot_s = [after / (output - 1) for after, output in zip(rest, outputs, strict=True) if output > 1]
    return Served(name, first, tpot_s, wall_s, cpu_s)


def ours(name: str, case: Case, trace: Path, db: Path, blocks: int, *, ahead: bool) -> Served:
    """Our own simulation, in this process: what it imports is loaded already."""
    start, cpu = time.perf_counter(), time.process_time()
    with LatencyDB.open(db) as opened:
        model, models = known(opened, case.model, case.options, device=case.device)
    engine = Engine(kv_blocks=blocks, prefix_caching=False, async_scheduling=ahead)
    server = Server.adding(0.0, async_scheduling=ahead)
    deployment = Deployment(StepTimes(model, models, overlapped=True), engine.options(model, case.device), server)
    found = joined(deployment.simulate(read_trace(trace).traffic))
    tpot_s = found.tpot_s[~np.isnan(found.tpot_s)]
    return Served(name, found.ttft_s.tolist(), tpot_s.tolist(), time.perf_counter() - start, time.process_time() - cpu)


def compared(case: Case, number: int, *, clone: Path, python: str, db: Path, folder: Path) -> list[Served]:
    """Everything that there is of a case."""
    trace = trace_of(clone / "data/processed_traces/splitwise_conv.csv", folder / f"{case.rate}.csv", number, case.rate)
    with LatencyDB.open(db) as opened:
        from pytest_dooly.engine import load_engine
        from pytest_dooly.serving import serve

        engine, configuration = load_engine("vllm"), resolve(case.model, case.options)
        traced = serve(engine, configuration, opened, engine.environment(configuration), progress=progress)
    device = device_named(case.device)
    model = served_on(traced, device, case.options)
    blocks = cache_room(model, device).num_blocks
    shared: dict[str, object] = {
        "replica_config_tensor_parallel_size": case.ranks,
        "request_generator_config_type": "trace_replay",
        "trace_request_generator_config_trace_file": trace,
        "trace_request_generator_config_max_tokens": LONGEST,
        "replica_scheduler_config_type": "sarathi",
        "sarathi_scheduler_config_chunk_size": model.limits.max_num_tokens,
        "sarathi_scheduler_config_batch_size_cap": model.limits.max_num_seqs,
        "sarathi_scheduler_config_num_blocks": blocks,
    }
    prefix = "dooly_execution_time_predictor_config_"
    with_ours = shared | {
        "execution_time_predictor_config_type": "dooly",
        "replica_config_model_name": case.model,
        "replica_config_device": case.device,
        f"{prefix}db": db,
        f"{prefix}options": f"max-model-len={LONGEST}",
    }
    where: dict[str, Any] = {"clone": clone, "python": python, "folder": folder}
    found = [in_vidur("Vidur with our step times", "pytest_dooly.hosts.vidur", with_ours, **where)]
    if case.theirs is not None:
        prefix = "random_forrest_execution_time_predictor_config_"
        sizes = {"prediction_max_batch_size": model.limits.max_num_seqs, "prediction_max_tokens_per_request": LONGEST}
        with_theirs = shared | {
            "replica_config_model_name": case.theirs[0],
            "replica_config_device": case.theirs[1],
            **{f"{prefix}{flag}": value for flag, value in (FOREST | sizes).items()},
        }
        found.insert(0, in_vidur("Vidur with its forests", "vidur.main", with_theirs, **where))
    own = [("pytest-dooly, no step scheduled ahead", False), ("pytest-dooly", True)]
    return [*found, *(ours(name, case, trace, db, blocks, ahead=ahead) for name, ahead in own)]


def told(found: Sequence[Served]) -> str:
    """How far means lie from those of our own simulation."""
    own = found[-1]
    parts = []
    for each in found[:-1]:
        ttft, tpot = (
            np.mean(theirs) / np.mean(mine) - 1
            for theirs, mine in ((each.ttft_s, own.ttft_s), (each.tpot_s, own.tpot_s))
        )
        parts.append(f"{each.name}: mean TTFT {ttft:+.1%}, mean TPOT {tpot:+.1%}")
    return f"Beside our own simulation: {'; '.join(parts)}."


def children_s() -> float:
    """Seconds of processors that the processes which this one has begun, and which have ended, have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """One table a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", required=True, metavar="CLONE")
    parser.add_argument("--python", default=sys.executable, help="that has Vidur's requirements (this one)")
    parser.add_argument("--db", help="latency DB with tables of the GPUs (one that is made)")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--write", metavar="DIR", help="where hosts.md is written")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, db = Path(name), Path(asked.db or Path(name) / "latency.db").resolve()
        codellama = db.parent / "CodeLlama-34b-Instruct-hf"  # the latency DB knows it by this directory
        codellama.mkdir(parents=True, exist_ok=True)
        (codellama / "config.json").write_text(json.dumps(CODELLAMA), encoding="utf-8")
        cases = [
            Case(
                "CodeLlama-34B on two A100, Vidur's own data",
                str(codellama),
                ("codellama/CodeLlama-34b-Instruct-hf", "a100"),
                "a100_sxm",
                2,
                1.0,
            ),
            Case("Qwen3-30B-A3B on an H100, which Vidur has not", "qwen3-30b-a3b", None, "h100_sxm", 1, 8.0),
        ]
        if asked.db is None:
            with LatencyDB.open(db) as opened:
                import_tables(opened, ["a100_sxm", "h100_sxm"])
        lines = []
        where: dict[str, Any] = {"clone": Path(asked.vidur).resolve(), "python": asked.python}
        for case in cases:
            found = compared(case, asked.requests, db=db, folder=folder, **where)
            title = f"{case.title}: {asked.requests} requests at {case.rate:g} a second, milliseconds"
            lines += [title, "", HEAD, *(each.row for each in found), "", told(found), ""]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if asked.write is not None:
        write(Path(asked.write) / "hosts.md", "Vidur with our step times", __doc__, text)


if __name__ == "__main__":
    main()
