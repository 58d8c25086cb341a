"""How much of profiling several models is done twice: GPU-hours by strategy, at which held-out error.

    python -m benchmarks.study.redundancy [--write reports/redundancy] [--db FILE]

Every large shipped model is traced, at one, two and four tensor-parallel ranks; latencies of the public tables of H200
and A100, or what is predicted from them, stand in for a run's, so that no GPU is needed. The latency DB keeps tables,
traces and regressors across sizes: another run is quicker and comes to the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.costs import Assumptions, Cases, cases_of, to_json, within_limits
from benchmarks.study.errors import CurvePoint, Errors, held_out, learning_curve, rows_of
from benchmarks.study.plots import save_hours, save_savings, save_sharing, sharing_of
from benchmarks.study.report import Study, figures, report
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions, aliases, resolve
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ServedModel, portable
from pytest_dooly.engine import load_engine
from pytest_dooly.errors import TraceError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.aiconfigurator import read_tables
from pytest_dooly.published.family import Family
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.serving import serve

DEVICES = ("h200_sxm", "a100_sxm")
LIMITS = Limits(max_num_tokens=8192, max_num_seqs=256, max_model_len=32768)
SMALL = frozenset({"llama-tiny", "llama-300m", "qwen2-300m", "moe-300m"})
"""Shipped for tests and demonstrations on a CPU."""

RANKS = (1, 2, 4)
WIDE = {"llama3-70b": 4}
"""Models that are served on several GPUs, in the main table; the others on one."""

GEMM = Family("gemm", "bf16")
PREFILL, DECODE = Family("prefill", "auto"), Family("decode", "auto")
PROCESSES = 2


@dataclass(frozen=True)
class Configured:
    """A model as it is served.

    Attributes:
        name: alias.
        ranks: tensor-parallel size.
        model: its operations.
    """

    name: str
    ranks: int
    model: ServedModel


def main() -> None:
    """Imports, traces, computes, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", type=Path)
    parser.add_argument("--db", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = arguments.db or Path(folder) / "study.db"
        with LatencyDB.open(path) as db:
            import_tables(db, DEVICES)
            configured, refused = trace_models(db)
        # Those that take longest go first, so that both processes end at about the same time.
        jobs: list[Callable[..., Any]] = [job for device in DEVICES for job in (costs, errors, curves)]
        of = [device for device in DEVICES for _ in range(3)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            futures = [pool.submit(job, path, device, configured) for job, device in zip(jobs, of, strict=True)]
            results = [future.result() for future in futures]
    study = Study(
        names=tuple(each.name for each in configured),
        ranks=tuple(each.ranks for each in configured),
        chosen=tuple(i for i, each in enumerate(configured) if each.ranks == WIDE.get(each.name, 1)),
        refused=refused,
        limits=LIMITS,
        cases=dict(zip(DEVICES, results[::3], strict=True)),
        errors=tuple(error for each in results[1::3] for error in each),
        curve=tuple(point for each in results[2::3] for point in each),
    )
    text = report(study)
    sys.stdout.write(f"{text}\n")
    if arguments.write is not None:
        write(study, configured, arguments.write, text)
    progress(f"{time.perf_counter() - start:.0f} s in all")


def import_tables(db: LatencyDB, devices: Iterable[str]) -> None:
    """Brings the public tables of the devices into the latency DB, where they are not there yet."""
    for device in devices:
        progress(f"importing the tables of {device}")
        for table in read_tables(device):
            db.publish(table)


def trace_models(db: LatencyDB) -> tuple[tuple[Configured, ...], tuple[str, ...]]:
    """Every large shipped model at every number of ranks, in the alphabet's order, and one line on each refused."""
    engine = load_engine("vllm")
    found, refused = [], []
    for name in sorted(set(aliases()) - SMALL):
        longest = int(resolve(name).document.get("max_position_embeddings", LIMITS.max_model_len))
        for ranks in RANKS:
            options = ServingOptions(
                tensor_parallel_size=ranks,
                max_num_tokens=LIMITS.max_num_tokens,
                max_num_seqs=LIMITS.max_num_seqs,
                max_model_len=min(longest, LIMITS.max_model_len),
            )
            configuration = resolve(name, options)
            try:
                model = serve(engine, configuration, db, engine.environment(configuration), progress=progress)
            except TraceError:
                refused.append(f"{name} at {ranks} ranks")
                continue
            found.append(Configured(name, ranks, within_limits(model, LIMITS)))
    return tuple(found), tuple(refused)


def costs(path: Path, device: str, configured: Sequence[Configured]) -> Cases:
    """The cases of every model on a device."""
    with LatencyDB.open(path) as db:
        grounds = Grounds(db, device_named(device), progress=progress)
        return cases_of([each.model for each in configured], grounds, progress=progress)


def errors(path: Path, device: str, configured: Sequence[Configured]) -> tuple[Errors, ...]:
    """Held-out errors on the published rows of the models' linears and attention."""
    asked = [operation.signature for each in configured for operation in each.model.operations]
    with LatencyDB.open(path) as db:
        rows = [rows_of(db, device_named(device), family) for family in (GEMM, PREFILL, DECODE)]
    groups = ([each for each in rows[:1] if each], [each for each in rows[1:] if each])
    return tuple(error for phases in groups if phases for error in held_out(phases, asked, LIMITS, progress=progress))


def curves(path: Path, device: str, _: Sequence[Configured]) -> tuple[CurvePoint, ...]:
    """What few sizes tell of the others, of matrix products and of decodes."""
    with LatencyDB.open(path) as db:
        rows = [rows_of(db, device_named(device), family) for family in (GEMM, DECODE)]
    return tuple(point for each in rows if each for point in learning_curve(each, progress=progress))


def write(study: Study, configured: Sequence[Configured], folder: Path, text: str) -> None:
    """Report, data and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
    (folder / "study.json").write_text(json.dumps(figures(study), indent=1) + "\n", encoding="utf-8")
    with (folder / "operations.csv").open("w", encoding="utf-8", newline="") as file:
        rows = list(operation_rows(study))
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    chosen = [configured[i] for i in study.chosen]
    operations = [list(dict.fromkeys(portable(o.signature) for o in each.model.operations)) for each in chosen]
    save_sharing(sharing_of([study.label(i) for i in study.chosen], operations), folder / "sharing.png")
    devices = {device_named(name).product: cases for name, cases in study.cases.items()}
    save_hours(devices, study.chosen, Assumptions(), folder / "hours.png")
    save_savings(devices, study.chosen, Assumptions(), folder / "savings.png")


def operation_rows(study: Study) -> Iterator[Mapping[str, Any]]:
    """One row for each operation of each model of the main table on each device."""
    for device, cases in study.cases.items():
        for asked in cases.asked:
            if asked.model in study.chosen:
                yield {"device": device, **to_json(asked, [study.label(i) for i in range(len(study.names))])}


def progress(line: str) -> None:
    """What is being done."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
