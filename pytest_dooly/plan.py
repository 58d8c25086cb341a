"""Cases asked for, less those in the latency DB, and about what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_dooly.batch import SweepPoint
from pytest_dooly.environment import Environment
from pytest_dooly.latency_db import LatencyDB
from pytest_dooly.measurement import Failure, Measurement
from pytest_dooly.operation import OperationKind
from pytest_dooly.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.sweep import sweep

__all__ = ["Case", "Plan", "make_plan"]

# What a case takes: set-up and quick rounds, or else about so many runs of it and of what precedes it.
_CASE_S, _RUNS = 0.8, 12
# Operations a second that are assumed before any is measured, of a CPU and of a GPU.
_CPU_FLOPS_PER_S, _GPU_FLOPS_PER_S = 1e11, 2e14


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
    """

    model: ServedModel
    operation: ModelOperation
    point: SweepPoint
    outcome: Measurement | Failure | None
    refresh: bool
    spent_s: float

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
        return tuple(case for case in self.cases if not case.reused)

    @property
    def reused(self) -> tuple[Case, ...]:
        """Cases whose measurement is in the DB."""
        return tuple(case for case in self.cases if case.reused)

    @property
    def estimate_s(self) -> float:
        """About what timing the new cases takes, in seconds."""
        return sum(case.spent_s for case in self.new)

    @property
    def saved_s(self) -> float:
        """What timing the reused cases took when they were timed, in seconds."""
        return sum(case.spent_s for case in self.reused)


def make_plan(models: Sequence[ServedModel], environment: Environment, db: LatencyDB, *, refresh: bool = False) -> Plan:
    """The cases that the models need, with what the latency DB holds of them.

    Args:
        models: what to profile.
        environment: what the latencies must be true for.
        db: where measurements are.
        refresh: time every case again.
    """
    outcomes = db.outcomes(environment)
    spent_s = db.spent_s(environment)
    assumed = _GPU_FLOPS_PER_S if "NVIDIA" in environment.device else _CPU_FLOPS_PER_S
    flops_per_s = _flops_per_s(models, outcomes) or assumed
    cases: dict[tuple[str, SweepPoint], Case] = {}
    for model in models:
        for operation in model.operations:
            key = operation.signature.key
            for point in sweep(operation.signature, model.limits):
                known = outcomes.get(key, {}).get(point)
                guess_s = _CASE_S + _RUNS * _flops(operation.signature, point) / flops_per_s
                cost_s = spent_s.get(key, {}).get(point, guess_s)
                cases.setdefault((key, point), Case(model, operation, point, known, refresh, cost_s))
    return Plan(environment, tuple(models), tuple(sorted(cases.values(), key=_order(models))))


def _flops(signature: Signature, point: SweepPoint) -> float:
    """Floating-point operations of one run: two for each weight and row, four for each attended pair and channel."""
    rows = point.num_tokens or point.num_reqs or (point.batch.num_tokens if point.batch else 0)
    weights = sum(
        math.prod(dim for dim in shape if isinstance(dim, int))
        for role, _, shape in signature.tensors
        if role == "weight" and len(shape) > 1 and signature.kind is not OperationKind.EMBEDDING
    )
    attributes = dict(signature.attributes)
    channels = float(attributes.get("num_heads", 0)) * float(attributes.get("head_size", 0))
    requests = point.batch.requests if point.batch else ()
    pairs = sum(request.query_len * (request.context_len + request.query_len / 2) for request in requests)
    return 2 * weights * rows + 4 * channels * pairs


def _flops_per_s(
    models: Sequence[ServedModel], outcomes: Mapping[str, Mapping[SweepPoint, Measurement | Failure]]
) -> float:
    """The most that any measured operation of the models has reached; 0 where none is measured."""
    return max(
        (
            _flops(operation.signature, point) / outcome.median_s
            for model in models
            for operation in model.operations
            for point, outcome in outcomes.get(operation.signature.key, {}).items()
            if isinstance(outcome, Measurement)
        ),
        default=0.0,
    )


def _order(models: Sequence[ServedModel]):  # type: ignore[no-untyped-def]
    """One model after the other; equal points together, since they share the forward pass that inputs come from."""
    positions = {model.key: i for i, model in enumerate(models)}

    def key(case: Case) -> tuple[object, ...]:
        overhead = case.operation.signature.kind is OperationKind.OVERHEAD
        point = case.point
        tokens = point.num_tokens or point.num_reqs or (point.batch.num_tokens if point.batch else 0)
        swept = ("num_tokens", "routing", "num_reqs", "batch").index(case.operation.signature.swept)
        return positions[case.model.key], overhead, swept, tokens, str(point)

    return key
