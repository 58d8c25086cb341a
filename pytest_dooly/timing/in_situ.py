"""Operations alone beside the same operations within a forward pass, in one session and taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.in_situ import InSitu, InSituRow
from pytest_dooly.core.measurement import relative_spread
from pytest_dooly.core.operation import LAUNCH
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.turn import point_within
from pytest_dooly.engine.base import Session
from pytest_dooly.timing.alone import time_alone
from pytest_dooly.timing.clock import Clocks

__all__ = ["measure_in_situ"]

_TURNS = 6
"""How often both ways take turns, so that a slow moment of the machine falls on both."""

_PASSES, _ROUNDS = 2, 8
"""Forward passes, and rounds of each operation alone, in every turn."""


def measure_in_situ(
    session: Session,
    model: ServedModel,
    batches: Sequence[Batch],
    clocks: Clocks,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> InSitu:
    """Median latency of every operation both ways.

    Operations outside of leaf layers and the engine's own share of a step are left out: no layer shows when they begin.
    Within a pass, a GPU that waits for launches is seen to take longer; alone it is held until they are done.

    Args:
        session: of the whole model.
        model: what is served.
        batches: what forward passes work on.
        clocks: that operations are timed with.
        progress: called with a line before each batch.
    """
    rows: list[InSituRow] = []
    for batch in batches:
        progress(f"operations alone and within a pass over {batch}")
        rows += _rows(session, model, batch, clocks)
    return InSitu(tuple(rows))


def _rows(session: Session, model: ServedModel, batch: Batch, clocks: Clocks) -> Iterator[InSituRow]:
    known = session.time_layers(batch, clocks.of_layers)
    timed = [operation for operation in model.operations if operation.signature.name != LAUNCH]
    operations = [operation for operation in timed if any(known.get(path) for path in operation.layers)]
    alone_s: dict[ModelOperation, list[float]] = {operation: [] for operation in operations}
    within_s: dict[ModelOperation, list[float]] = {operation: [] for operation in operations}
    for _ in range(_TURNS):
        for operation in operations:
            alone_s[operation].append(_alone(session, operation, point_within(operation.signature, batch), clocks))
        for _ in range(_PASSES):
            passed = session.time_layers(batch, clocks.of_layers)
            for operation in operations:
                samples = [sample for path in operation.layers for sample in passed.get(path, ())]
                within_s[operation].append(statistics.median(samples))
    for operation in operations:
        yield InSituRow(
            label=operation.signature.label,
            kind=operation.signature.kind.value,
            batch=str(batch),
            multiplicity=operation.multiplicity,
            isolated_s=statistics.median(alone_s[operation]),
            in_situ_s=statistics.median(within_s[operation]),
            noise=relative_spread(within_s[operation]),
        )


def _alone(session: Session, operation: ModelOperation, point: SweepPoint, clocks: Clocks) -> float:
    """The operation's median over some rounds, in seconds."""
    samples_s = time_alone(session, operation, point, clocks, lambda samples_s: len(samples_s) >= _ROUNDS)
    return statistics.median(samples_s)
