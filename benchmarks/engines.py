"""Predictions from published latencies of operations, beside what others have measured of vLLM itself on those GPUs.

Run as `python -m benchmarks.engines [--db FILE] [--write DIR]`. The runs stand in `benchmarks/engine_runs.csv` with
their sources, as published:

- vLLM 0.19.0 on an H100, of booth-algo/agentic-serve: medians over a closed loop of requests that end when the model
  says so; lengths are means. Predicted are five requests one after the other in each seat, all of mean length. TTFT
  includes the server and the client, and lacks what the prefix cache has kept: it is shown, and not judged.
- vLLM's nightly benchmark on an H200 and an A100: the whole latency of eight requests with random weights. The version
  is not said; the tables that the predictions rest on are of vLLM 0.24.0, and of 0.14.0 for the A100.

Where prompts are long and requests many, most of TPOT is the prompts of others: those runs are listed apart. The
engine's share of a step without asynchronous scheduling (`STEP_S`) is fitted to the whole latencies and to those of
Qwen3-32B in `make arena`; nothing else to these runs.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.public import write
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.engine import load_engine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_served
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.regress.regressor import LatencyModel
from pytest_dooly.report.text import format_latency
from pytest_dooly.serving import serve

RUNS = Path(__file__).with_name("engine_runs.csv")
NUM_TOKENS, NUM_SEQS, LONGEST = 8192, 256, 16384
"""Limits of a step as vLLM has them on such GPUs, and of a request."""

ROUNDS = 5
"""Requests one after the other in each seat of a closed loop."""

LONG_PROMPT = 2048
"""Tokens from which a prompt takes many times a decode."""


@dataclass(frozen=True)
class Run:
    """One published run of an engine.

    Attributes:
        engine_version: of vLLM; empty where the source does not say.
        model: alias.
        device: name of the GPU.
        ranks: tensor-parallel size.
        workload: its requests, with mean lengths.
        ttft_s: in seconds, or None.
        tpot_s: in seconds, or None.
        duration_s: of all requests together, or None.
    """

    engine_version: str
    model: str
    device: str
    ranks: int
    workload: Workload
    ttft_s: float | None
    tpot_s: float | None
    duration_s: float | None

    @classmethod
    def of(cls, row: Mapping[str, str]) -> Run:
        """A row of the file."""
        ttft_s, tpot_s, duration_s = (float(row[name]) / 1e3 if row[name] else None for name in _MEASURED)
        concurrency = int(row["concurrency"])
        num_reqs = ROUNDS * concurrency if tpot_s is not None else None
        workload = Workload(int(row["prompt_len"]), int(row["output_len"]), concurrency, num_reqs)
        return cls(
            row["engine_version"], row["model"], row["device"], int(row["tp"]), workload, ttft_s, tpot_s, duration_s
        )

    @property
    def group(self) -> str:
        """What is compared of it."""
        if self.tpot_s is None:
            return "the whole latency of a batch, vLLM of unknown version"
        if self.workload.prompt_len < LONG_PROMPT or self.workload.concurrency == 1:
            return "TPOT, vLLM 0.19.0"
        return "TPOT, vLLM 0.19.0, where prompts of 8,000 tokens and more arrive among decodes"

    def error(self, prediction: WorkloadPrediction) -> float:
        """Relative, of what is compared."""
        if self.tpot_s is not None:
            return (prediction.tpot_s or 0.0) / self.tpot_s - 1
        assert self.duration_s is not None
        return prediction.duration_s / self.duration_s - 1


_MEASURED = ("ttft_ms", "tpot_ms", "latency_ms")


def main() -> None:
    """Imports the tables that are needed, predicts, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB to import into; a temporary one else")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    options = parser.parse_args()
    with RUNS.open() as file:
        runs = [Run.of(row) for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as folder, LatencyDB.open(options.db or Path(folder) / "latency.db") as db:
        import_tables(db, sorted({run.device for run in runs}))
        text = "\n".join(report(runs, predictions(runs, db)))
    sys.stdout.write(f"{text}\n")
    if options.write is not None:
        write(options.write / "engines.md", "Predictions beside published runs of vLLM", __doc__, text)


def predictions(runs: Sequence[Run], db: LatencyDB) -> list[WorkloadPrediction]:
    """Of each run, from what is published of its GPU and no more."""
    engine = load_engine("vllm")

    @cache
    def grounds(device: str) -> Grounds:
        return Grounds(db, device_named(device), progress=progress)

    @cache
    def known(name: str, ranks: int, device: str) -> tuple[ServedModel, Mapping[str, LatencyModel]]:
        options = ServingOptions(
            tensor_parallel_size=ranks, max_num_tokens=NUM_TOKENS, max_num_seqs=NUM_SEQS, max_model_len=LONGEST
        )
        configuration = resolve(name, options)
        model = serve(engine, configuration, db, engine.environment(configuration), progress=progress)
        return model, {key: each.model for key, each in grounds(device).of(model).items()}

    def predicted(run: Run) -> WorkloadPrediction:
        # Whole latencies are those of vLLM's pages of 2024, before asynchronous scheduling.
        times = StepTimes(*known(run.model, run.ranks, run.device), overlapped=run.tpot_s is not None)
        return predict_served(times, run.workload, device_named(run.device))

    return [predicted(run) for run in runs]


_HEADER = (
    f"{'model':13} {'device':9} {'tp':>2} {'prompt':>6} {'output':>6} {'at once':>7} "
    f"| {'TTFT':>8} {'predicted':>9} | {'measured':>8} {'predicted':>9} {'error':>7}"
)


def report(runs: Sequence[Run], predicted: Sequence[WorkloadPrediction]) -> Iterator[str]:
    """A table of each group, and its errors."""
    for group in dict.fromkeys(run.group for run in runs):
        rows = [(run, found) for run, found in zip(runs, predicted, strict=True) if run.group == group]
        yield group
        yield _HEADER
        for run, found in rows:
            load = run.workload
            ttft = ("", "") if run.ttft_s is None else (format_latency(run.ttft_s), format_latency(found.ttft_s))
            pair = (run.tpot_s, found.tpot_s) if run.tpot_s is not None else (run.duration_s, found.duration_s)
            measured, expected = (format_latency(value or 0.0) for value in pair)
            yield (
                f"{run.model:13} {run.device:9} {run.ranks:2} {load.prompt_len:6} {load.output_len:6} "
                f"{load.concurrency:7} | {ttft[0]:>8} {ttft[1]:>9} "
                f"| {measured:>8} {expected:>9} {run.error(found):+7.1%}"
            )
        errors = np.array([run.error(found) for run, found in rows])
        yield (
            f"{len(rows)} runs: MAPE {np.abs(errors).mean():.1%}, median {np.median(np.abs(errors)):.1%}, "
            f"largest {np.abs(errors).max():.1%}, mean with its sign {errors.mean():+.1%}"
        )
        yield ""


if __name__ == "__main__":
    main()
