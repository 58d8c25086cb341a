"""Points of attention that a refined sweep times, and the held-out error they reach, beside a fixed grid of 1,657.

The grid is the one that the public DoolyProf times for 1,024 tokens and 32 requests, after Vidur, less its 29
duplicates: every number of decodes at contexts in steps of 32, and a prompt's chunk of many lengths at many contexts.
Both fits are asked about the same batches that neither has seen: of the grid's own kinds, and ragged and mixed ones,
which the grid has none of.

    python -m benchmarks.sweeps [--write reports/economy] [--db FILE]

The latency DB, if one is named, gets the refined sweep and the unseen batches, for `make bench DB=FILE`; what it has is
not timed again. Points of the fixed grid have the fewest rounds of a case each, or they would take half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, model_operations
from pytest_dooly.engine import load_engine
from pytest_dooly.engine.base import Session
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.refine import Refinement
from pytest_dooly.sweep.strategies import held_out_points
from pytest_dooly.timing.clock import HostClock
from pytest_dooly.timing.measure import PRECISION, Settled, time_rounds, warm_up
from pytest_dooly.tracing.trace import trace

LIMITS = Limits(max_num_tokens=1024, max_num_seqs=32, max_model_len=1024)

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 12,
    # Attention of llama-300m; what surrounds it is small, so that a pass reaches it soon.
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}

UNSEEN = 60
"""Batches of either kind that neither fit has seen."""


def fixed_grid() -> list[Batch]:
    """Decodes of every number, chunks of every length, in the steps that DoolyProf takes."""
    chunks = sorted({*range(4, 129, 8), *range(128, 1025, 32)})
    decodes = [Batch.uniform(num, 1, context - 1) for num in range(1, 33) for context in range(32, 1024, 32)]
    prompts = [Batch.uniform(1, chunk, i * chunk) for chunk in chunks for i in range(1024 // chunk)]
    whole = [Batch.uniform(1, query) for query in range(32, 1024, 32)]
    return list(dict.fromkeys(decodes + prompts + whole))


def uniform_batches(taken: set[Batch], seed: int = 0) -> list[Batch]:
    """Batches of the grid's kinds that lie between its points."""
    draw, found = random.Random(seed), list[Batch]()
    while len(found) < UNSEEN:
        if len(found) % 2:
            batch = Batch.uniform(draw.randint(1, 32), 1, draw.randint(1, 1022))
        else:
            query = round(2 ** draw.uniform(2, 10))
            batch = Batch.uniform(1, query, draw.randint(0, 1024 - query))
        if batch not in taken:
            found.append(batch)
    return found


def timed(
    session: Session, operation: ModelOperation, points: Sequence[SweepPoint], precision: float = PRECISION
) -> dict[SweepPoint, Measurement]:
    """Latencies at the points, in an order that spreads a slow minute over all of them."""
    outcomes = {}
    for done, point in enumerate(random.Random(0).sample(list(points), len(points))):
        outcomes[point] = time_one(session, operation, point, precision)
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done + 1} of {len(points)}")
    return outcomes


def time_one(
    session: Session, operation: ModelOperation, point: SweepPoint, precision: float = PRECISION
) -> Measurement:
    """The latency at one point, timed as a case is."""
    clock = HostClock()
    with session.isolate(operation, point, clock) as call:
        warm_up(call)
        return Measurement.of(time_rounds(call, clock.now, Settled(precision)))


def errors(regressor: Regressor, outcomes: dict[SweepPoint, Measurement]) -> dict[str, float]:
    """Median, mean and 95th percentile of the absolute relative error."""
    measured = np.array([outcome.mean_s for outcome in outcomes.values()])
    off = np.abs(regressor.predict_s(list(outcomes)) / measured - 1)
    return {"median": float(np.median(off)), "mean": float(off.mean()), "p95": float(np.quantile(off, 0.95))}


def main() -> None:
    """Times, fits, compares, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", type=Path)
    parser.add_argument("--db", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    write: Path | None = arguments.write
    options = ServingOptions(max_model_len=1024, max_num_tokens=1024, max_num_seqs=32)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        configuration = resolve(folder, options)
        engine = load_engine("vllm")
        environment = engine.environment(configuration)
        traced, _ = trace(engine, configuration)
        operation = next(o for o in model_operations(traced) if o.signature.kind is OperationKind.ATTENTION)
        session = engine.open(configuration, isolating=[operation], kv_tokens=40_000)
        try:
            result = compare(session, operation, Store(arguments.db, operation, environment))
        finally:
            session.close()
    result = {"operation": operation.signature.label, "environment": str(environment), **result}
    text = table(result)
    sys.stdout.write(f"{text}\n")
    if write is not None:
        write.mkdir(parents=True, exist_ok=True)
        (write / "attention.json").write_text(json.dumps(result, indent=2) + "\n")
        (write / "README.md").write_text(text + "\n")


class Store:
    """The latency DB that was named, or none: what was timed before, and where more goes to."""

    def __init__(self, path: Path | None, operation: ModelOperation, environment: Environment) -> None:
        self._path = path
        self._signature = operation.signature
        self._environment = environment

    def known(self, *, held_out: bool) -> dict[SweepPoint, Measurement]:
        """What the DB has."""
        if self._path is None:
            return {}
        with LatencyDB.open(self._path) as db:
            return db.measurements(self._environment, held_out=held_out).get(self._signature.key, {})

    def seconds(self) -> float:
        """What the points of the refined sweep have taken."""
        if self._path is None:
            return 0.0
        with LatencyDB.open(self._path) as db:
            return sum(db.spent_s(self._environment).get(self._signature.key, {}).values())

    def keep(self, outcomes: Mapping[SweepPoint, Measurement], *, held_out: bool, spent_s: float) -> None:
        """Records what was timed, each point an equal part of the seconds."""
        if self._path is None:
            return
        with LatencyDB.open(self._path) as db:
            for point, outcome in outcomes.items():
                share_s = spent_s / len(outcomes)
                db.record(self._signature, self._environment, point, outcome, spent_s=share_s, held_out=held_out)


def compare(session: Session, operation: ModelOperation, store: Store) -> dict[str, Any]:
    """Both ways, and what each has cost."""
    signature = operation.signature
    grid = fixed_grid()
    unseen = {
        "decodes and chunks": [SweepPoint(batch=batch) for batch in uniform_batches(set(grid))],
        "ragged and mixed": list(held_out_points(signature, LIMITS, UNSEEN)),
    }
    asked, start = store.known(held_out=True), time.perf_counter()
    lacking = [point for points in unseen.values() for point in points if point not in asked]
    new = timed(session, operation, lacking)
    store.keep(new, held_out=True, spent_s=time.perf_counter() - start)
    asked |= new

    refined, start = store.known(held_out=False), time.perf_counter()
    spent_s = store.seconds()
    if not refined:
        refined = timed(session, operation, sweep(signature, LIMITS))
        refinement = Refinement(signature, refined)
        for point in refinements(signature, LIMITS):
            if refinement.needs(point):
                refined[point] = time_one(session, operation, point)
                refinement.add(point, refined[point])
        spent_s = time.perf_counter() - start
        store.keep(refined, held_out=False, spent_s=spent_s)

    start = time.perf_counter()
    fixed = timed(session, operation, [SweepPoint(batch=batch) for batch in grid], precision=math.inf)
    ways = {"refined sweep": (refined, spent_s), "fixed grid": (fixed, time.perf_counter() - start)}
    return {
        "ways": {
            name: {
                "points": len(outcomes),
                "seconds": seconds,
                "errors": {
                    kind: errors(fit(signature, outcomes), {point: asked[point] for point in points})
                    for kind, points in unseen.items()
                },
            }
            for name, (outcomes, seconds) in ways.items()
        },
        "full grid of the refined sweep": len(sweep(signature, LIMITS)) + len(refinements(signature, LIMITS)),
    }


def table(result: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = [
        f"# Points that attention needs: {result['operation']}",
        "",
        f"On {result['environment']}; {UNSEEN} unseen batches of either kind; "
        "points of the fixed grid with the fewest rounds.",
        "",
        "| way | points | seconds | error on | median | mean | p95 |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, way in result["ways"].items():
        for kind, error in way["errors"].items():
            figures = " | ".join(f"{100 * error[each]:.1f} %" for each in ("median", "mean", "p95"))
            lines.append(f"| {name} | {way['points']:,} | {way['seconds']:.0f} | {kind} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
