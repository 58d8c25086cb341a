"""A latency DB of a small model on the fake engine, whose latencies follow a formula: nothing is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.configuration import ServingOptions, resolve
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.engine.fake import FakeEngine
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.profiling import Profiling
from tests.models import LLAMA, write

OPTIONS = ServingOptions(max_num_tokens=64, max_num_seqs=4, max_model_len=128)

FLAGS = ("--dooly-engine=fake", "--dooly-max-num-tokens=64", "--dooly-max-num-seqs=4", "--dooly-max-model-len=128")

Formula = Callable[[Signature, SweepPoint], float]


def tokens_of(point: SweepPoint) -> int:
    return point.num_tokens or point.num_reqs or (point.batch.num_tokens if point.batch else 0)


def linear_in_tokens(signature: Signature, point: SweepPoint) -> float:
    """20 µs, and 1 µs a token, of every operation."""
    return 20e-6 + 1e-6 * tokens_of(point)


def stored(folder: Path, *, formula: Formula = linear_in_tokens, name: str = "model") -> Path:
    """The folder, with a model `model` and all of its latencies in `.dooly/latency.db`."""
    write(folder / name, LLAMA, hidden_size=64, intermediate_size=96, vocab_size=128)
    with contextlib.chdir(folder), LatencyDB.open(folder / ".dooly/latency.db") as db:
        run = Profiling(FakeEngine(), [resolve(name, OPTIONS)], db)
        for case in (*run.plan.new, *run.plan.possible):
            seconds = formula(case.operation.signature, case.point)
            db.record(
                case.operation.signature, run.plan.environment, case.point, Measurement.of([seconds] * 5), spent_s=1.0
            )
        run.close()
    return folder
