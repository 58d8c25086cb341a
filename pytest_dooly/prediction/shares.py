"""How much of a step rests on what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.routing import TRAINED, RoutingDistribution
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.core.work import Work
from pytest_dooly.prediction.step import StepPrediction, is_hosts, predict_step, step_operations, work_of
from pytest_dooly.published.basis import Basis, BasisKind, Foundation
from pytest_dooly.published.parts import basis_at

__all__ = ["Shares", "bases_at", "shares_at", "shares_of", "stand_in"]


@dataclass(frozen=True)
class Shares:
    """How much of a step rests on what.

    Attributes:
        by_kind: share of the step's latency, of every kind of basis.
        error: expected relative error of an operation, the mean weighted with latency over those where it is known.
    """

    by_kind: Mapping[BasisKind, float]
    error: float | None


def shares_at(
    model: ServedModel,
    founded: Mapping[str, Foundation],
    batch: Batch,
    *,
    routing: RoutingDistribution = TRAINED,
    overlapped: bool = False,
) -> Shares:
    """How much of the step of a batch rests on what.

    Args:
        model: what is served.
        founded: foundation of each operation, by signature key.
        batch: what the step works on.
        routing: how a mixture's router spreads tokens over experts.
        overlapped: whether the engine's process prepares a step while the device works, so that its share is not seen.
    """
    models = {key: each.model for key, each in founded.items()}
    step = predict_step(model, models, batch, routing=routing)
    bases = bases_at(model, founded, batch, routing=routing)
    seen = [not (overlapped and is_hosts(operation)) for operation in step_operations(model)]
    step = replace(step, operations=tuple(itertools.compress(step.operations, seen)))
    return shares_of(step, list(itertools.compress(bases, seen)))


def stand_in(device: Device, shares: Shares) -> str | None:
    """The GPU whose latencies stand in for a device's in a step; None where none do."""
    return device.like if shares.by_kind["another GPU"] else None


def bases_at(
    model: ServedModel,
    founded: Mapping[str, Foundation],
    batch: Batch,
    *,
    routing: RoutingDistribution = TRAINED,
) -> list[Basis]:
    """What each operation of the step of a batch rests on there, in the order of `step_operations`.

    Args:
        model: what is served.
        founded: foundation of each operation, by signature key.
        batch: what the step works on.
        routing: how a mixture's router spreads tokens over experts.
    """
    step = Work.of([SweepPoint(batch=batch)])
    signatures = [operation.signature for operation in step_operations(model)]
    return [basis_at(founded[each.key], work_of(each, step, routing)) for each in signatures]


def shares_of(step: StepPrediction, bases: Sequence[Basis]) -> Shares:
    """How much of a step rests on what.

    Args:
        step: as predicted with the foundations' latency models.
        bases: of each of its operations.
    """
    total_s = step.latency_s or 1.0
    by_kind = dict.fromkeys(get_args(BasisKind), 0.0)
    known_s = off_s = 0.0
    for basis, operation in zip(bases, step.operations, strict=True):
        by_kind[basis.kind] += operation.latency_s / total_s
        if basis.error is not None:
            known_s += operation.latency_s
            off_s += operation.latency_s * basis.error
    return Shares(by_kind, off_s / known_s if known_s else None)
