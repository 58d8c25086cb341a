"""Cases asked for, less those in the latency DB, and about what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Literal

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.refine import TARGET, grid_key
from pytest_dooly.sweep.roofline import flops_of

__all__ = ["Case", "Plan", "case_cost_s", "make_plan"]

# What a case takes: set-up and quick rounds, or else about so many runs of it and of what precedes it.
_CASE_S, _RUNS = 0.8, 12
# Operations a second that are assumed before any is measured, of a CPU and of a GPU.
_CPU_FLOPS_PER_S, _GPU_FLOPS_PER_S = 1e11, 2e14


Use = Literal["sweep", "refinement", "unneeded", "predicted", "held out"]
"""What a case is for."""


@dataclass(frozen=True)
class Case:
    """One operation at one sweep point.

    Attributes:
        model: the first model that needs it.
        operation: as that model uses it.
        point: values of the request symbols.
        outcome: what the latency DB holds, or None.
        refresh: time it again, whatever the DB holds.
        spent_s: what timing it cost, or about what it will, in seconds.
        use: whether its sweep always takes it, takes it where the error asks for it, has been found not to need it, its
            operation is predicted from other latencies, or no regressor may see it.
        error: expected relative error of the prediction, for a case that is predicted; None where it is unknown.
    """

    model: ServedModel
    operation: ModelOperation
    point: SweepPoint
    outcome: Measurement | Failure | None
    refresh: bool
    spent_s: float
    use: Use = "sweep"
    error: float | None = None

    @property
    def reused(self) -> bool:
        """Whether its measurement is in the DB already."""
        return isinstance(self.outcome, Measurement) and not self.refresh

    @property
    def id(self) -> str:
        """Readable, stable name of the case."""
        return f"{self.operation.signature.label}-{self.point}"


@dataclass(frozen=True)
class Plan:
    """Every case of one or more models, each signature and sweep point once.

    Attributes:
        environment: what the latencies are true for.
        models: what was asked for.
        cases: in the order in which they are best timed.
    """

    environment: Environment
    models: tuple[ServedModel, ...]
    cases: tuple[Case, ...]

    @property
    def new(self) -> tuple[Case, ...]:
        """Cases to be timed."""
        return tuple(case for case in self.cases if not case.reused and case.use in ("sweep", "held out"))

    @property
    def possible(self) -> tuple[Case, ...]:
        """Cases to be timed where the held-out error asks for them, which shows only when the others are timed."""
        return tuple(case for case in self.cases if not case.reused and case.use == "refinement")

    @property
    def unneeded(self) -> tuple[Case, ...]:
        """Cases that a sweep turned out not to need."""
        return tuple(case for case in self.cases if not case.reused and case.use == "unneeded")

    @property
    def predicted(self) -> tuple[Case, ...]:
        """Cases of operations that latencies of others, or of other sizes, predict well enough."""
        return tuple(case for case in self.cases if not case.reused and case.use == "predicted")

    @property
    def reused(self) -> tuple[Case, ...]:
        """Cases whose measurement is in the DB."""
        return tuple(case for case in self.cases if case.reused)

    @property
    def estimate_s(self) -> float:
        """About what timing the new cases takes, in seconds; without those that may be needed."""
        return sum(case.spent_s for case in self.new)

    @property
    def saved_s(self) -> float:
        """What timing the reused cases took when they were timed, in seconds."""
        return sum(case.spent_s for case in self.reused)


def make_plan(
    models: Sequence[ServedModel],
    environment: Environment,
    db: LatencyDB,
    *,
    refresh: bool = False,
    target: float = TARGET,
    held_out: int = 0,
    predicted: Mapping[str, float | None] = MappingProxyType({}),
) -> Plan:
    """The cases that the models need, with what the latency DB holds of them.

    Args:
        models: what to profile.
        environment: what the latencies must be true for.
        db: where measurements are.
        refresh: time every case again.
        target: held-out relative error at which a sweep needs no more points.
        held_out: how many points of each operation to time that no regressor may see.
        predicted: expected error, by signature key, of operations that need not be timed unless they are refreshed.
    """
    recorded = {False: _Recorded.of(db, environment), True: _Recorded.of(db, environment, held_out=True)}
    settled = db.settled(environment)
    gpu = "NVIDIA" in environment.device
    flops_per_s = _flops_per_s(models, recorded[False].outcomes)
    cases: dict[tuple[str, SweepPoint], Case] = {}
    for model in models:
        for operation in model.operations:
            signature = operation.signature
            for point, use in _points(signature, model.limits, settled.get(signature.key), target, held_out):
                known = recorded[use == "held out"]
                outcome = known.outcomes.get(signature.key, {}).get(point)
                guess_s = case_cost_s(signature, point, gpu=gpu, flops_per_s=flops_per_s)
                cost_s = known.spent_s.get(signature.key, {}).get(point, guess_s)
                if refresh and isinstance(outcome, Measurement) and use != "held out":
                    use = "sweep"
                if signature.key in predicted and not refresh and use in ("sweep", "refinement"):
                    use = "predicted"
                error = predicted.get(signature.key) if use == "predicted" else None
                case = Case(model, operation, point, outcome, refresh, cost_s, use, error)
                # A point that one model may need can be one that another always takes.
                if use == "sweep" or (signature.key, point) not in cases:
                    first = cases.get((signature.key, point), case)
                    cases[signature.key, point] = replace(case, model=first.model, operation=first.operation)
    return Plan(environment, tuple(models), tuple(sorted(cases.values(), key=_order(models))))


def case_cost_s(signature: Signature, point: SweepPoint, *, gpu: bool, flops_per_s: float = 0.0) -> float:
    """About what timing a case takes, in seconds of wall time.

    Args:
        signature: of the operation.
        point: at which it is timed.
        gpu: whether on a GPU.
        flops_per_s: that operations reach there; 0 where none is measured, for what is assumed.
    """
    assumed = _GPU_FLOPS_PER_S if gpu else _CPU_FLOPS_PER_S
    return _CASE_S + _RUNS * flops_of(signature, point) / (flops_per_s or assumed)


@dataclass(frozen=True)
class _Recorded:
    outcomes: Mapping[str, Mapping[SweepPoint, Measurement | Failure]]
    spent_s: Mapping[str, Mapping[SweepPoint, float]]

    @classmethod
    def of(cls, db: LatencyDB, environment: Environment, *, held_out: bool = False) -> _Recorded:
        return cls(db.outcomes(environment, held_out=held_out), db.spent_s(environment, held_out=held_out))


def _points(
    signature: Signature, limits: Limits, settled: tuple[float, str] | None, target: float, held_out: int
) -> Iterator[tuple[SweepPoint, Use]]:
    """Every point that a signature may be timed at, and what for."""
    for point in sweep(signature, limits):
        yield point, "sweep"
    finer = refinements(signature, limits)
    done = settled is not None and settled[0] <= target and settled[1] == grid_key(finer)
    for point in finer:
        yield point, "unneeded" if done else "refinement"
    if held_out and signature.kind is not OperationKind.OVERHEAD:
        from pytest_dooly.sweep.strategies import held_out_points

        for point in held_out_points(signature, limits, held_out):
            yield point, "held out"


def _flops_per_s(
    models: Sequence[ServedModel], outcomes: Mapping[str, Mapping[SweepPoint, Measurement | Failure]]
) -> float:
    """The most that any measured operation of the models has reached; 0 where none is measured."""
    return max(
        (
            flops_of(operation.signature, point) / outcome.median_s
            for model in models
            for operation in model.operations
            for point, outcome in outcomes.get(operation.signature.key, {}).items()
            if isinstance(outcome, Measurement)
        ),
        default=0.0,
    )


def _order(models: Sequence[ServedModel]):  # type: ignore[no-untyped-def]
    """One model after the other; what a sweep always takes before what it may need, coarser grids first.

    Within a sweep points and operations are mixed, the same way in every run: a machine is slower for seconds at a
    time, and what is timed in one such spell would be all operations at one size, or one operation at all sizes.
    """
    positions = {model.key: i for i, model in enumerate(models)}

    def key(case: Case) -> tuple[object, ...]:
        overhead = case.operation.signature.kind is OperationKind.OVERHEAD
        if case.use in ("sweep", "held out"):
            return positions[case.model.key], 0, overhead, blake2b(case.id.encode(), digest_size=8).hexdigest()
        swept = ("num_tokens", "routing", "num_reqs", "batch").index(case.operation.signature.swept)
        return positions[case.model.key], 1, overhead, swept

    return key
