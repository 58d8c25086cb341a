"""Traffic simulated from published latencies of operations, beside what others measured of vLLM under that traffic.

Run as `python -m benchmarks.traffic [--db FILE] [--arrivals KIND] [--write DIR]`. Figures stand in
`benchmarks/traffic_runs.csv` as their source prints them, percentiles too: github inference-sim/training at ed5c1d2,
`default_args/`, vLLM 0.15.1 on H100 SXM, fp16, chunked prefill, prefix caching. Each engine takes 128 requests and
2,048 tokens a step and 4,096 tokens a request; its KV blocks are those of its log.

Traffic is what its client, inference-perf, makes of its options. Load of type `constant` has exponential gaps that are
stretched to the stage's time (`ConstantLoadTimer`); the times of sending in the source say so too. Prompts are asked in
one shuffled order, over and over, each as long as the client counted them on average. A stage begins when all requests
of the one before have ended. Gaps are drawn anew, with seed 0: where seats run out, p99 of TTFT hangs on them.

Step times come from public tables of the GPU alone, and each token of a prompt takes the tokeniser `TOKENISE_S`. One
constant is fitted: what server and client add to a request besides,
the sum of `Server.request_s` and `Server.token_s`. It shifts TTFT and end-to-end latency alike, so how it is divided
between the two cannot be seen and need not be known. It is the median, over stages without failed requests, of the
measured mean TTFT less the simulated one. Errors are given (a) without it, (b) with that of all stages, (c) with that
of the other models' stages.

Not modelled: offload of KV blocks to 8 GiB of CPU memory, the client's own work, an engine's first seconds after its
start, requests that the client gives up after 300 s. Overloaded runs are shown and not judged: latencies there are of
the requests that ended in time. Engines were vLLM 0.15.1, the simulated scheduler is that of 0.32.0, tables are of
0.24.0.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.public import write
from benchmarks.study.redundancy import import_tables, progress
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.traffic import Traffic
from pytest_dooly.engine import load_engine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.interval import Figure, is_mixture, log_width
from pytest_dooly.prediction.shares import shares_at
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.published.basis import Foundation
from pytest_dooly.published.estimate import TOKENISE_S
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.scheduling.clock import Server, Simulated, run
from pytest_dooly.scheduling.native import NativeScheduler
from pytest_dooly.scheduling.scheduler import SchedulerOptions
from pytest_dooly.serving import serve
from pytest_dooly.simulation.arrivals import Arrivals
from pytest_dooly.simulation.lengths import Lengths, PromptAndOutput
from pytest_dooly.simulation.simulate import Simulation, steps_of
from pytest_dooly.simulation.summary import overloaded
from pytest_dooly.simulation.synthetic import SharedPrefix, SyntheticTraffic
from pytest_dooly.simulation.within import within

RUNS = Path(__file__).with_name("traffic_runs.csv")
DEVICE = "h100_sxm"
NUM_TOKENS, NUM_SEQS, LONGEST = 2048, 128, 4096
"""Limits of a step, and of a request, of all these engines."""

PAUSE_S = 10
"""Between stages: long enough for all requests of the one before to end, and for the second that the client waits."""

FIGURES = ("e2e_mean", "ttft_mean", "e2e_p99", "ttft_p99")
"""What is compared, by the file's names."""

KEYS = ("mean_e2el_ms", "mean_ttft_ms", "p99_e2el_ms", "p99_ttft_ms")
"""The same by the keys of a simulation's summary."""

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
CONFIGS: Mapping[str, Mapping[str, object]] = {
    "llama-2-7b": dict(zip(_SIZES, (4096, 11008, 32, 32, 32), strict=True)),
    "llama-2-70b": dict(zip(_SIZES, (8192, 28672, 80, 64, 8), strict=True)),
    "codellama-34b": {
        **dict(zip(_SIZES, (8192, 22016, 48, 64, 8), strict=True)),
        "max_position_embeddings": 16384,
        "rope_theta": 1e6,
    },
}
"""What the published config.json of models that are not shipped says beyond `_LLAMA`."""

MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stage:
    """One rate of a run.

    Attributes:
        rate: requests per second.
        duration_s: in which they are sent.
        num_failed: requests that the client gave up.
        measured_s: as published, shape (figures,).
    """

    rate: float
    duration_s: float
    num_failed: int
    measured_s: Array

    @classmethod
    def of(cls, row: Mapping[str, str]) -> Stage:
        """A row of the file."""
        measured_s = np.array([float(row[f"{name}_ms"]) / 1e3 for name in FIGURES])
        return cls(float(row["rate_per_s"]), float(row["duration_s"]), int(row["num_failed"]), measured_s)


@dataclass(frozen=True)
class Run:
    """One deployment, and the traffic that was sent to it.

    Attributes:
        model: alias, or a name in `CONFIGS`.
        kind: what the source calls the traffic.
        ranks: tensor-parallel size.
        kv_blocks: as logged.
        prefix: system prompts and the questions behind them.
        lengths: of questions and outputs.
        stages: one after the other.
    """

    model: str
    kind: str
    ranks: int
    kv_blocks: int
    prefix: SharedPrefix
    lengths: PromptAndOutput
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]]) -> Run:
        """The rows of one run."""
        first = rows[0]
        groups, prompts, system, output = (int(first[name]) for name in _COUNTS)
        question = round(float(first["prompt_len_mean"])) - system
        return cls(
            MODELS[first["model"]],
            first["run"].rpartition("-")[2],
            int(first["tp"]),
            int(first["kv_blocks"]),
            SharedPrefix(groups, prompts, system),
            PromptAndOutput(Lengths.fixed(question), Lengths.fixed(output)),
            tuple(map(Stage.of, rows)),
        )

    def traffic(self, kind: str = "poisson") -> Traffic:
        """Its requests; those of a stage bear twice its number, since pauses count."""
        rates = f",0@{PAUSE_S},".join(f"{stage.rate:g}@{stage.duration_s:g}" for stage in self.stages)
        return SyntheticTraffic(Arrivals.parse(rates, kind), self.lengths, self.prefix).draw()


_COUNTS = ("num_groups", "prompts_per_group", "system_prompt_len", "output_len")


@dataclass(frozen=True)
class Predicted:
    """A stage beside its simulation.

    Attributes:
        run: that it is a part of.
        stage: as measured.
        simulated_s: figures without a server, shape (figures,).
        low_s: what they lie above nine times out of ten, likewise.
        high_s: what they lie below.
        served: requests per second where the simulation says that the run is overloaded; None where not.
    """

    run: Run
    stage: Stage
    simulated_s: Array
    low_s: Array
    high_s: Array
    served: float | None

    def errors(self, server_s: float) -> Array:
        """Relative, of each figure, where the server adds so much to a request."""
        return (self.simulated_s + server_s) / self.stage.measured_s - 1

    def within(self, server_s: float) -> npt.NDArray[np.bool_]:
        """Whether each figure was measured within its interval."""
        return (self.low_s + server_s <= self.stage.measured_s) & (self.stage.measured_s <= self.high_s + server_s)


def main() -> None:
    """Imports the tables that are needed, simulates, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", metavar="FILE", type=Path, help="latency DB to import into; a temporary one else")
    parser.add_argument("--arrivals", metavar="KIND", default="poisson", help="gaps: poisson, or constant to compare")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LatencyDB.open(options.db or Path(folder) / "latency.db") as db:
        import_tables(db, [DEVICE])
        found = list(predictions(read_runs(), db, Path(folder), options.arrivals))
    text = "\n".join(report(found))
    sys.stdout.write(f"{text}\n")
    if options.write is not None:
        write(options.write / "traffic.md", "Simulated traffic beside published runs of vLLM", __doc__, text)


def read_runs() -> list[Run]:
    """All that were published."""
    with RUNS.open() as file:
        return [Run.of(list(rows)) for _, rows in itertools.groupby(csv.DictReader(file), lambda row: row["run"])]


def predictions(runs: Iterable[Run], db: LatencyDB, folder: Path, kind: str) -> Iterator[Predicted]:
    """Every stage, from what is published of the GPU and no more."""
    engine, grounds = load_engine("vllm"), Grounds(db, device_named(DEVICE), progress=progress)
    options = ServingOptions(dtype="float16", max_num_tokens=NUM_TOKENS, max_num_seqs=NUM_SEQS, max_model_len=LONGEST)

    @cache
    def known(name: str, ranks: int) -> tuple[ServedModel, Mapping[str, Foundation]]:
        configuration = resolve(named(name, folder), replace(options, tensor_parallel_size=ranks))
        model = serve(engine, configuration, db, engine.environment(configuration), progress=progress)
        return model, grounds.of(model)

    for each in runs:
        model, founded = known(each.model, each.ranks)
        step_times = StepTimes(model, {key: found.model for key, found in founded.items()}, overlapped=True)
        progress(f"simulating {each.model} {each.kind}")
        traffic = each.traffic(kind)

        @cache
        def again(
            factor: float, traffic: Traffic = traffic, step_times: StepTimes = step_times, run_: Run = each
        ) -> Simulated:
            scheduler = NativeScheduler(SchedulerOptions(step_times.model.limits, run_.kv_blocks))
            return run(traffic.stretched(factor), scheduler, step_times, Server(tokenise_s=TOKENISE_S))

        simulated = again(1.0)
        widths: dict[Figure, float] = {
            figure: log_width(figure, shares_at(model, founded, batch, overlapped=True), mixture=is_mixture(model))
            for figure, batch in steps_of(simulated, model.limits).items()
        }
        simulation, served = Simulation(simulated, again=again), overloaded(simulated)
        stages = np.unique([request.stage for request in traffic.requests])
        for stage, place, figures_s in zip(each.stages, stages, figures(simulated), strict=True):
            ends = within(simulation, widths, stage=int(place))
            low_s, high_s = (np.array([of[key] for key in KEYS]) / 1e3 for of in (ends.low_ms, ends.high_ms))
            yield Predicted(each, stage, figures_s, low_s, high_s, served)


def named(model: str, folder: Path) -> str:
    """What the engine knows the model by: its alias, or a directory in the folder that holds its config.json."""
    if model not in CONFIGS:
        return model
    directory = folder / model
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**_LLAMA, **CONFIGS[model]}))
    return str(directory)


def figures(simulated: Simulated) -> Iterator[Array]:
    """Figures of each stage in seconds, shape (figures,); pauses are passed over."""
    stages = np.array([request.stage for request in simulated.traffic.requests])
    for stage in np.unique(stages):
        e2e_s, ttft_s = simulated.latency_s[stages == stage], simulated.ttft_s[stages == stage]
        yield np.array([e2e_s.mean(), ttft_s.mean(), np.percentile(e2e_s, 99), np.percentile(ttft_s, 99)])


def fitted_s(rows: Iterable[Predicted], without: str = "") -> float:
    """What the server adds to a request, by the stages that kept up, of all models but one."""
    at = FIGURES.index("ttft_mean")
    missing = [
        row.stage.measured_s[at] - row.simulated_s[at]
        for row in rows
        if not row.stage.num_failed and row.run.model != without
    ]
    return float(np.median(missing))


_HEADER = " | ".join(f"{name.replace('_', ' '):^20}" for name in FIGURES)


def report(rows: Sequence[Predicted]) -> Iterator[str]:
    """The stages, the errors, the constant, and the runs that are overloaded."""
    judged = [row for row in rows if not row.stage.num_failed]
    both, models = fitted_s(rows), list(dict.fromkeys(row.run.model for row in rows))
    left_out = {model: fitted_s(rows, model) for model in models}
    yield "Seconds measured and predicted, and error; the constant is that of the other models (c)"
    yield f"{'model':13} {'traffic':10} {'rate':>4} | {_HEADER}"
    yield from (_row(row, left_out[row.run.model]) for row in judged)
    yield "\nMAPE, and mean with its sign; of stages without failed requests"
    yield f"{'model':13} {'constant':10} {'n':>4} | {_HEADER}"
    for model in (*models, "all"):
        of = [row for row in judged if model in ("all", row.run.model)]
        for label, constants in (
            ("(a) none", dict.fromkeys(models, 0.0)),
            ("(b) all", dict.fromkeys(models, both)),
            ("(c) others", left_out),
        ):
            errors = np.array([row.errors(constants[row.run.model]) for row in of])
            cells = " | ".join(f"{np.abs(each).mean():9.1%} {each.mean():+10.1%}" for each in errors.T)
            yield f"{model:13} {label:10} {len(of):4} | {cells}"
    inside = np.array([row.within(left_out[row.run.model]) for row in judged]).sum(axis=0)
    yield f"\nMeasured within the 90 % interval, of {len(judged)}; with (c)"
    yield f"{'':29} | {' | '.join(f'{number:^20}' for number in inside)}"
    yield f"\nThe constant, request_s + token_s: {both * 1e3:.1f} ms of all stages; without those of"
    yield from (f"  {model:13} {constant_s * 1e3:.1f} ms" for model, constant_s in left_out.items())
    yield from _overloads(rows)


def _overloads(rows: Iterable[Predicted]) -> Iterator[str]:
    """Runs that are overloaded by the source or by `overloaded`, and whether the two agree."""
    yield "\nOverloaded, by the source (requests failed) or by the simulation; without the constant"
    yield f"{'model':13} {'traffic':10} {'rate':>4} | {_HEADER}"
    for row in rows:
        failed, served = row.stage.num_failed, row.served
        if failed or served is not None:
            yield _row(row, 0.0)
            simulated = "not recognised" if served is None else f"recognised, {served:.2f} requests/s served"
            agreed = "" if bool(failed) == (served is not None) else ": NOT AS MEASURED"
            yield f"{'':13} {failed:,} of {row.stage.rate * row.stage.duration_s:,.0f} failed; {simulated}{agreed}"


def _row(row: Predicted, server_s: float) -> str:
    figures = zip(row.stage.measured_s, row.simulated_s + server_s, row.errors(server_s), strict=True)
    cells = (f"{_seconds(measured)} {_seconds(found)} {error:+6.1%}" for measured, found, error in figures)
    return f"{row.run.model:13} {row.run.kind:10} {row.stage.rate:4g} | {' | '.join(f'{cell:>20}' for cell in cells)}"


def _seconds(value: float) -> str:
    return f"{value:6.3f}" if value < 10 else f"{value:6.1f}"


if __name__ == "__main__":
    main()
