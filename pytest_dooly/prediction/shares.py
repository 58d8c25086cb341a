"""How much of a step rests on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.routing import UNIFORM, RoutingDistribution
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.prediction.step import StepPrediction, predict_step, step_operations
from pytest_dooly.published.basis import BasisKind, Foundation

__all__ = ["Shares", "shares_at", "shares_of"]


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
    routing: RoutingDistribution = UNIFORM,
) -> Shares:
    """How much of the step of a batch rests on what.

    Args:
        model: what is served.
        founded: foundation of each operation, by signature key.
        batch: what the step works on.
        routing: how a mixture's router spreads tokens over experts.
    """
    models = {key: each.model for key, each in founded.items()}
    return shares_of(model, predict_step(model, models, batch, routing=routing), founded)


def shares_of(model: ServedModel, step: StepPrediction, founded: Mapping[str, Foundation]) -> Shares:
    """How much of a step rests on what.

    Args:
        model: what is served.
        step: as predicted with the foundations' latency models.
        founded: foundation of each operation, by signature key.
    """
    bases = [founded[operation.signature.key].basis for operation in step_operations(model)]
    total_s = step.latency_s or 1.0
    by_kind = dict.fromkeys(get_args(BasisKind), 0.0)
    known_s = off_s = 0.0
    for basis, operation in zip(bases, step.operations, strict=True):
        by_kind[basis.kind] += operation.latency_s / total_s
        if basis.error is not None:
            known_s += operation.latency_s
            off_s += operation.latency_s * basis.error
    return Shares(by_kind, off_s / known_s if known_s else None)
