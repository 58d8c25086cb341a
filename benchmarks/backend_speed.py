"""`make bench`: steps a second of `pytest_dooly.backend`, what it takes to have one, and how far it is off.

Steps are all different: 1 to 200 decodes, and in three of four one to three chunks of prompts. One by one they are
asked as a simulator with an event for each step does, in batches all at once; then all once more, which are remembered.
Errors are those of steps from tables, beside `predict_step` on the very step; both count the engine's own share of a
step as asynchronous scheduling hides it. Times are of one core, without what other processes take of it.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.simulation_speed import DEVICE, MODEL, OPTIONS, trace_into
from pytest_dooly.core.batch import Batch
from pytest_dooly.core.device import device_named
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.hosts.backend import Backend, backend
from pytest_dooly.hosts.deviation import Deviation
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.step import is_hosts, predict_step, step_operations
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.regress.regressor import LatencyModel

STEPS, COMPARED = 20_000, 400
Step = list[tuple[int, int]]


def draw(number: int, seed: int) -> list[Step]:
    """Different steps."""
    random_ = random.Random(seed)

    def chunk() -> tuple[int, int]:
        return random_.randint(2, 1500), random_.choice([0, random_.randint(1, 4000)])

    return [
        [(1, random_.randint(1, 8000)) for _ in range(random_.randint(1, 200))]
        + [chunk() for _ in range(random_.randint(0, 3))]
        for _ in range(number)
    ]


def exact_s(model: ServedModel, models: Mapping[str, LatencyModel], step: Step) -> float:
    """What the predictor says of the step, the slower of the engine's process and of all else."""
    told = predict_step(model, models, Batch.of(step)).operations
    pairs = list(zip(told, step_operations(model), strict=True))
    hidden_s = sum(each.latency_s for each, operation in pairs if is_hosts(operation))
    return max(hidden_s, sum(each.latency_s for each, operation in pairs if not is_hosts(operation)))


def timed(name: str, work: Callable[[], object], steps: int = 0) -> None:
    """One line: seconds, or steps a second."""
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    figure = f"{steps / seconds:12,.0f} steps/s" if steps else f"{1e3 * seconds:12,.1f} ms"
    sys.stdout.write(f"{name:52} {figure}\n")
    sys.stdout.flush()


def made(path: Path) -> Backend:
    """The back end of the model that `make bench` simulates."""
    return backend(MODEL, device=DEVICE, db=path, options=OPTIONS)


def report(path: Path) -> None:
    """Every figure, for the model that `make bench` simulates."""
    held: list[Backend] = []
    sys.stdout.write(f"{MODEL} on {DEVICE}\n")
    for when in ("first", "again"):
        timed(f"a back end from a latency DB, {when}", lambda: held.append(made(path)))
    sent = pickle.dumps(held[0])
    timed(
        f"the same in a worker that is sent {len(sent) / 1e6:.1f} MB",
        lambda: held.append(pickle.loads(sent)),  # noqa: S301 - our own
    )
    steps = draw(2 * STEPS, seed=0)
    timed("steps one by one", lambda: [held[0].step_s(step) for step in steps[:STEPS]], STEPS)
    timed("steps in one batch", lambda: held[0].steps_s(steps[STEPS:]), STEPS)
    timed("the same steps again", lambda: held[0].steps_s(steps[STEPS:]), STEPS)
    with LatencyDB.open(path, create=False) as db:
        models = {key: each.model for key, each in Grounds(db, device_named(DEVICE)).of(held[0].model).items()}
    for name, compared in (
        ("all", draw(COMPARED, seed=1)),
        ("decodes alone", [[each for each in step if each[0] == 1] for step in draw(COMPARED, seed=2)]),
    ):
        pairs = [(held[0].step_s(step), exact_s(held[0].model, models, step)) for step in compared]
        sys.stdout.write(f"off from predict_step, {name}: {Deviation.of(pairs)} of {len(pairs)} steps\n")


def main() -> None:
    """Prints it, on a latency DB that is made for it or that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", help=f"that has {MODEL} and latencies of {DEVICE}")
    named = parser.parse_args().db
    if named is not None:
        report(Path(named))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.db"
        with LatencyDB.open(path) as db:
            trace_into(db)
        report(path)


if __name__ == "__main__":
    main()
