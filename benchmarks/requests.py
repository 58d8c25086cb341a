"""One run, request by request: simulated from published latencies of operators, beside what vLLM measured.

Run as `python -m benchmarks.requests [--clone DIR] [--db FILE] [--write DIR]`. `benchmarks/request_runs.py` says where
the runs come from and what their times are. Each is simulated with its own arrivals, lengths and common beginnings of
prompts, with the limits of its engine, and on the RTX 4090, whose KV cache is full for most of the run, with the number
of KV blocks that the engine logged; on the RTX Pro 6000, whose cache is never full, with room for all.

Step times come from the operator tables of the same GPU and model that lie beside the runs (`dooly import
llmservingsim`), of which those of the RTX 4090 are in `benchmarks/llmservingsim/`; a clone has the others. They have no
collectives, and mixtures on one rank alone: those are aiconfigurator's of the same GPU, on another machine. Nothing is
fitted to a run. Where no table has rows, the estimate of the data sheet stands: the first norm of a model, norms of
queries and keys. Scheduling is asynchronous, as it is by default in that version, so that the engine's own share of a
step hides behind it.

What the differences come from, as far as the runs show:

- RTX 4090: nothing is left of it but noise. A wait for blocks is the sum of thousands of steps, so that its error is
  theirs. Prefix caching counts although few prompts share a beginning: a preempted request finds its own blocks again
  (with none, the 0.7 % are 4.4 %). The first request takes 0.46 s longer than predicted: an engine's first steps are
  slow.
- RTX Pro 6000, Llama-3.1-8B: steps of decodes are as long as predicted (27.0 ms of 128 decodes, by `timeseries.csv`
  of the source); steps with prompts take some 8 ms longer, short ones as well as long ones. Those are no single
  replayed graph, and what the host launches between its pieces is in no table of kernels. Whether that is it, is not
  known.
- RTX Pro 6000, Qwen3-32B on two: if it is the 129 all-reduces, each misses 0.7 ms in steps of 2,048 tokens (21 MB) and
  0.09 ms in those of 128 decodes (1.3 MB; 58.3 ms measured, 46.5 predicted), so that they move 16 and 10 GB/s, where
  those of aiconfigurator's machine move 36: the link between the cards is another.
- RTX Pro 6000, Qwen3-30B-A3B on two engines that share the experts (data-parallel attention), and wait for each other
  in every layer. The same link would make its gathers and sums 2 ms longer in a step of 128 decodes, of which 4 of 49
  are lacking. As one engine of one rank, TPOT would be 15 % too long and TTFT, of which that engine's queue decides,
  sixteen times as long (by aiconfigurator's tables alone).
- Decodes beside a chunk of a prompt take up to three times what they take alone (`attention.csv`). Without that, TPOT
  of Llama-3.1-8B on the RTX Pro 6000 was 7.6 % too short, and latency 10 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.arena.models import written
from benchmarks.public import write
from benchmarks.request_runs import BLOCK_SIZE, Measured, read_runs
from benchmarks.study.redundancy import progress
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.published_latency import PublishedTable
from pytest_dooly.engine import load_engine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.aiconfigurator import read_tables
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.published.llmservingsim import Bundle
from pytest_dooly.report.figure import INK, headline, new_figure, save_png, style
from pytest_dooly.scheduling.clock import Simulated, run
from pytest_dooly.scheduling.lockstep import scheduler_of
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.serving import serve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Requests of published runs of vLLM, each beside its prediction"

KEPT = Path(__file__).with_name("llmservingsim")
"""Bundles of the repository, as in a clone's `profiler/perf`."""

NUM_TOKENS = 2048
"""Most tokens of a step, of all these engines."""

BACKLOG_S = 12.0
"""Of arrivals faster than prompts are worked off, at the beginning of these runs."""

LONGEST = 5445
"""Most tokens of a request of all these runs."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Engine:
    """How a run's engine was started, by its `meta.json`.

    Attributes:
        device: that served it.
        bundle: its operator tables, below `profiler/perf`.
        model: alias; None for Qwen3-32B.
        ranks: tensor-parallel size.
        num_seqs: most requests of a step.
        max_model_len: most tokens of a request.
        kv_blocks: as logged; None where it was not, and never full.
        engines: data-parallel size; as many ranks share the experts.
    """

    device: str
    bundle: str
    model: str | None
    ranks: int
    num_seqs: int
    max_model_len: int
    kv_blocks: int | None
    engines: int = 1


ENGINES = {
    "RTX4090/Llama-3.1-8B": Engine(
        "rtx_4090", "RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1", "llama3", 1, 256, 32768, 2588
    ),
    "RTXPRO6000/Llama-3.1-8B": Engine(
        "rtx_pro_6000_server", "RTXPRO6000/meta-llama/Llama-3.1-8B/bf16/tp1", "llama3", 1, 128, 131072, None
    ),
    "RTXPRO6000/Qwen3-30B-A3B-Instruct-2507": Engine(
        "rtx_pro_6000_server",
        "RTXPRO6000/Qwen/Qwen3-30B-A3B-Instruct-2507/bf16/tp1",
        "qwen3-30b-a3b",
        1,
        128,
        40960,
        None,
        engines=2,
    ),
    "RTXPRO6000/Qwen3-32B": Engine(
        "rtx_pro_6000_server", "RTXPRO6000/Qwen/Qwen3-32B/bf16/tp2", None, 2, 128, 40960, None
    ),
}


@dataclass(frozen=True)
class Compared:
    """A run beside its simulation.

    Attributes:
        name: `<gpu>/<model>`.
        measured: the run.
        simulated: the simulation.
        out_of_range: what was asked outside of the tables.
    """

    name: str
    measured: Measured
    simulated: Simulated
    out_of_range: Sequence[str]

    def figures(self) -> dict[str, tuple[Array, Array]]:
        """Measured and simulated by name, in seconds, shape (requests,)."""
        requests = self.measured.traffic.requests
        sent_s = np.array([request.arrival_s for request in requests])
        gaps = np.array([request.output_len - 1 for request in requests])
        of, found = self.measured, self.simulated
        return {
            "queue": (of.scheduled_s - sent_s, found.scheduled_s - found.sent_s),
            "TTFT": (of.first_s - sent_s, found.ttft_s),
            "prefill": (of.first_s - of.scheduled_s, found.first_s - found.scheduled_s),
            "TPOT": ((of.last_s - of.first_s) / gaps, found.tpot_s),
            "latency": (of.last_s - sent_s, found.latency_s),
        }


def main() -> None:
    """Imports the tables that are there, simulates, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", metavar="DIR", type=Path, help="of LLMServingSim, for the runs on RTX Pro 6000")
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB to import into; a temporary one else")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report and a picture as well")
    options = parser.parse_args()
    tables = KEPT if options.clone is None else options.clone / "profiler" / "perf"
    with tempfile.TemporaryDirectory() as folder, LatencyDB.open(options.db or Path(folder) / "latency.db") as db:
        found = list(compared(read_runs(), tables, db, Path(folder)))
    text = "\n".join(report(found))
    sys.stdout.write(f"{text}\n")
    if options.write is not None:
        write(options.write / "requests.md", TITLE, __doc__, text)
        picture(found, options.write / "requests.png")


def compared(runs: Mapping[str, Measured], tables: Path, db: LatencyDB, folder: Path) -> Iterator[Compared]:
    """Every run whose tables are there."""
    for name, measured in runs.items():
        engine = ENGINES[name]
        if (tables / engine.bundle).is_dir():
            times, options = deployed(engine, tables / engine.bundle, db, folder)
            progress(f"simulating {name}")
            simulated = run(measured.traffic, scheduler_of(options), times)
            yield Compared(name, measured, simulated, times.out_of_range())


def deployed(engine: Engine, directory: Path, db: LatencyDB, folder: Path) -> tuple[StepTimes, SchedulerOptions]:
    """Step times of the engine, from its tables alone, and how it schedules."""
    bundle, vllm, device = Bundle.open(directory), load_engine("vllm"), device_named(engine.device)
    serving = ServingOptions(
        dtype="bfloat16",
        tensor_parallel_size=engine.ranks,
        data_parallel_size=engine.engines,
        expert_parallel_size=engine.engines,
        max_num_tokens=NUM_TOKENS,
        max_num_seqs=engine.num_seqs,
        max_model_len=engine.max_model_len,
    )
    configuration = resolve(engine.model or written("Qwen/Qwen3-32B", folder), serving)
    model = serve(vllm, configuration, db, vllm.environment(configuration), progress=progress)
    for table in (*bundle.tables(model), *(tables_over_ranks() if serving.num_ranks > 1 else ())):
        db.publish(table)
    founded = Grounds(db, device, progress=progress).of(model)
    blocks = engine.kv_blocks or 1 + engine.num_seqs * -(-LONGEST // BLOCK_SIZE)
    limits = Limits(NUM_TOKENS, engine.num_seqs, engine.max_model_len)
    times = StepTimes(model, {key: each.model for key, each in founded.items()}, overlapped=True)
    return times, SchedulerOptions(limits, blocks, engines=engine.engines)


@cache
def tables_over_ranks() -> tuple[PublishedTable, ...]:
    """What aiconfigurator has of collectives among RTX Pro 6000, and of mixtures whose experts lie on several."""
    tables = read_tables("rtx_pro_6000_server")
    return tuple(table for table in tables if "/comm/" in table.source.file or "moe" in table.source.file)


def report(rows: Sequence[Compared]) -> Iterator[str]:
    """Errors of each run, what was out of range, and where in the run they are."""
    yield "Seconds; MAPE and bias are means over requests, of those that measured 10 ms at least"
    yield (
        f"{'run':38} {'':8} {'MAPE':>6} {'bias':>7} {'of mean':>7} {'corr.':>6} | "
        + " | ".join(f"{f'p{p} measured, predicted':^26}" for p in (50, 90, 99))
    )
    for row in rows:
        for name, (measured_s, simulated_s) in row.figures().items():
            yield f"{row.name:38} {name:8} {_figures(measured_s, simulated_s)}"
        yield f"{row.name:38} beginnings {_beginnings(row)}"
        end_s, found_s = row.measured.last_s.max(), row.simulated.last_s.max()
        ends = f"{end_s:.2f} s, predicted {found_s:.2f} s ({found_s / end_s - 1:+.1%})"
        yield f"{row.name:38} last token measured {ends}"
        yield f"{row.name:38} simulated {_course(row.simulated)}"
        yield from (f"  {line}" for line in row.out_of_range)


def _beginnings(row: Compared) -> str:
    """How far apart the ends of steps lie that begin requests, one right after the other: what a step of prompts takes.

    Steps between which another lies are left out, as far as that shows: gaps above one and a half of the median.
    """
    medians = []
    for first_s in (row.measured.first_s, row.simulated.first_s):
        ends_s = np.unique(first_s[first_s < BACKLOG_S])
        gaps_s = np.diff(ends_s)
        gaps_s = gaps_s[gaps_s < 1.5 * np.median(gaps_s)]
        medians.append(f"{np.median(gaps_s):.4f} s ({len(gaps_s)})")
    return f"measured every {medians[0]}, predicted every {medians[1]}; medians of the first {BACKLOG_S:g} s"


def _course(simulated: Simulated) -> str:
    """What the simulation has seen that a mean does not show."""
    steps = simulated.steps
    mixed_s = sum(step.latency_s for step in steps if step.num_tokens > step.num_decodes)
    total_s = sum(step.latency_s for step in steps)
    return (
        f"{len(steps):,} steps; {mixed_s:.1f} s of {total_s:.1f} s in those with prompts; "
        f"{simulated.preemptions.sum():,} preemptions; {simulated.cached_tokens.sum():,} tokens found in the cache"
    )


def _figures(measured_s: Array, simulated_s: Array) -> str:
    known = measured_s >= 0.01
    errors = simulated_s[known] / measured_s[known] - 1
    mean = simulated_s.mean() / measured_s.mean() - 1
    correlation = np.corrcoef(measured_s, simulated_s)[0, 1]
    cells = (f"{np.percentile(measured_s, p):12.4f} {np.percentile(simulated_s, p):12.4f} " for p in (50, 90, 99))
    return f"{np.abs(errors).mean():6.1%} {errors.mean():+7.1%} {mean:+7.1%} {correlation:6.3f} | {' | '.join(cells)}"


def picture(rows: Sequence[Compared], path: Path) -> None:
    """Predicted against measured, a point a request."""
    with style():
        figure = new_figure(12, 3.4 * len(rows) + 0.6)
        axes = figure.subplots(len(rows), 3, squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            for name, ax in zip(("TTFT", "TPOT", "latency"), line, strict=True):
                _panel(ax, f"{row.name}: {name}, s", *row.figures()[name])
        headline(figure, TITLE)
        save_png(figure, path)


def _panel(ax: Axes, title: str, measured_s: Array, simulated_s: Array) -> None:
    low, high = min(measured_s.min(), simulated_s.min()), max(measured_s.max(), simulated_s.max())
    ax.plot((low, high), (low, high), color=INK, linewidth=0.8)
    ax.scatter(measured_s, simulated_s, s=6, color="#0072b2", linewidths=0)
    ax.set_title(title)
    ax.set_xlabel("measured")
    ax.set_ylabel("predicted")


if __name__ == "__main__":
    main()
