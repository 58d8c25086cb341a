"""Operations alone beside the same operations within a forward pass, in one session and taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from pytest_dooly.batch import Batch, Routing, SweepPoint
from pytest_dooly.clock import HostClock
from pytest_dooly.engine.base import Clock, Session
from pytest_dooly.isolation import InSitu, InSituRow
from pytest_dooly.measure import warm_up
from pytest_dooly.measurement import relative_spread
from pytest_dooly.operation import OperationKind
from pytest_dooly.routing import RoutingDistribution
from pytest_dooly.signature import ModelOperation, ServedModel, Signature

__all__ = ["measure_in_situ"]

_TURNS = 6
"""How often both ways take turns, so that a slow moment of the machine falls on both."""

_PASSES, _ROUNDS = 2, 12
"""Forward passes before and after the rounds of an operation alone, in every turn."""


def measure_in_situ(
    session: Session,
    model: ServedModel,
    batches: Sequence[Batch],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> InSitu:
    """Median latency of every operation both ways.

    Operations outside of leaf layers and the engine's own share of a step are left out: no layer shows when they begin.

    Args:
        session: of the whole model.
        model: what is served.
        batches: what forward passes work on.
        progress: called with a line before each batch.
    """
    rows: list[InSituRow] = []
    for batch in batches:
        progress(f"operations alone and within a pass over {batch}")
        rows += _rows(session, model, batch, HostClock())
    return InSitu(tuple(rows))


def _rows(session: Session, model: ServedModel, batch: Batch, clock: Clock) -> Iterator[InSituRow]:
    known = session.time_layers(batch, clock)
    for operation in model.operations:
        places = [path for path in operation.layers if known.get(path)]
        if not places:
            continue
        alone_s: list[float] = []
        within_s: list[float] = []
        for _ in range(_TURNS):
            within_s += _within(session, batch, clock, places)
            alone_s.append(_alone(session, operation, _point(operation.signature, batch), clock))
            within_s += _within(session, batch, clock, places)
        signature = operation.signature
        yield InSituRow(
            label=signature.label,
            kind=signature.kind.value,
            batch=str(batch),
            multiplicity=operation.multiplicity,
            isolated_s=statistics.median(alone_s),
            in_situ_s=statistics.median(within_s),
            noise=relative_spread(within_s),
        )


def _within(session: Session, batch: Batch, clock: Clock, places: Sequence[str]) -> list[float]:
    """The operation's median of each of some passes, in seconds."""
    passes = [session.time_layers(batch, clock) for _ in range(_PASSES)]
    return [statistics.median(sample for place in places for sample in each[place]) for each in passes]


def _alone(session: Session, operation: ModelOperation, point: SweepPoint, clock: Clock) -> float:
    """The operation's median over some rounds, in seconds."""
    samples = []
    with session.isolate(operation, point, clock) as call:
        warm_up(call)
        for _ in range(_ROUNDS):
            if call.before is not None:
                call.before()
            start = clock.now()
            call.run()
            samples.append(clock.now() - start)
    return statistics.median(samples)


def _point(signature: Signature, batch: Batch) -> SweepPoint:
    if signature.swept == "batch":
        return SweepPoint(batch=batch)
    if signature.swept == "num_reqs":
        return SweepPoint(num_reqs=batch.num_reqs)
    if signature.kind is not OperationKind.MOE:
        return SweepPoint(num_tokens=batch.num_tokens)
    attributes = dict(signature.attributes)
    top_k = int(attributes["top_k"])
    expected = RoutingDistribution().expected(batch.num_tokens, int(attributes["num_local_experts"]), top_k)
    even = -(-batch.num_tokens * top_k // expected.activated)
    routing = Routing(expected.activated, max(even, expected.busiest))
    return SweepPoint(num_tokens=batch.num_tokens, routing=routing)
