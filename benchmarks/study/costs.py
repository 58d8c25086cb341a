"""GPU-hours to profile models on a device by strategy: every model separately, shared, adaptive, across sizes.

No GPU is used: latencies are of the device's published tables where these hold an operation, of regressors across sizes
or estimates of the data sheet where they do not, and stand in for what a run would measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ServedModel, Signature, portable
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.published.budget import SET_UP_S
from pytest_dooly.published.grounds import Grounds
from pytest_dooly.regress.fit import fit
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.refine import TARGET, Refinement

__all__ = [
    "STRATEGIES",
    "Asked",
    "Assumptions",
    "Cases",
    "adaptive_points",
    "cases_of",
    "is_predicted",
    "measured",
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STRATEGIES = ("separately", "exact sharing", "adaptive sweep", "public sizes", "across sizes")
"""Each with what the one before it does."""

ALL_FINER = "adaptive, estimates on all points"
"""A bound: the adaptive sweep, if operations whose latency is an estimate needed every refinement."""

AS_PLANNED = "as dooly plan has it"
"""Across sizes, and nothing that others have measured at its own sizes is timed, whatever error is expected."""

DECIDED_AT_ONCE = 0.02
"""Share of the finer points that is decided on before any of them is timed: few are decided one by one, as in a run;
attention's hundreds in steps of some, a fraction of the simulation's time (steps of 4 and 8 took within 4 % as many
points as one by one on eleven of them)."""

LEAST_S = 1e-6
"""Latency of what the data sheet has at none: an overhead that a replayed graph hides."""


@dataclass(frozen=True)
class Assumptions:
    """What profiling takes besides the latencies.

    Attributes:
        engine_s: start of the engine with the layers to be timed, once a model.
        case_s: set-up of a case: the pass that leads to the operation, its inputs, the clock.
        warm_up: runs before the rounds.
        rounds: runs that are timed.
    """

    engine_s: float = SET_UP_S
    case_s: float = 0.8
    warm_up: int = 3
    rounds: int = 30


@dataclass(frozen=True)
class Asked:
    """One operation as a model asks for it.

    Attributes:
        model: index of the model.
        signature: portable, so that it is equal wherever it was traced.
        basis: of the latencies that stand in for a run's.
        cases: numbers of the finest grid's.
        adaptive_cases: how many of them the adaptive sweep takes.
        finest_error: held-out error of a fit to the finest grid; None for too few points.
        error: held-out error at which the adaptive sweep ends; None for too few points.
    """

    model: int
    signature: Signature
    basis: Basis
    cases: tuple[int, ...]
    adaptive_cases: int
    finest_error: float | None
    error: float | None


@dataclass(frozen=True)
class Cases:
    """Every case of the models on one device, an equal signature and point once.

    Attributes:
        models: names, in order.
        asked: every operation of every model.
        kinds: of each case's operation.
        latencies_s: of one run, shape (cases,), in seconds.
        gpus: that a case keeps busy, shape (cases,).
        timed: which cases a model times by each strategy, shape (models, cases).
    """

    models: tuple[str, ...]
    asked: tuple[Asked, ...]
    kinds: tuple[OperationKind, ...]
    latencies_s: Array
    gpus: Array
    timed: Mapping[str, Mask]

    def costs_s(self, assumptions: Assumptions) -> Array:
        """GPU-seconds of each case, shape (cases,)."""
        runs = assumptions.warm_up + assumptions.rounds
        return self.gpus * (assumptions.case_s + runs * self.latencies_s)

    def hours(self, strategy: str, assumptions: Assumptions, order: Sequence[int] | None = None) -> Array:
        """GPU-hours as models are added one after the other, shape (models,).

        Args:
            strategy: one of the strategies.
            assumptions: what profiling takes besides the latencies.
            order: indices of the models to be profiled; all in their order where it is None.
        """
        chosen = list(range(len(self.models)) if order is None else order)
        costs_s, timed = self.costs_s(assumptions), self.timed[strategy][chosen]
        if strategy == "separately":
            cases_s = np.cumsum(timed @ costs_s)
        else:
            cases_s = np.logical_or.accumulate(timed, axis=0) @ costs_s
        engine_s = assumptions.engine_s * np.cumsum(timed.any(axis=1))
        return np.asarray((cases_s + engine_s) / 3600)

    def hours_of(self, kind: OperationKind, strategy: str, assumptions: Assumptions, chosen: Sequence[int]) -> float:
        """GPU-hours of the cases of one kind of operation, without the engine's starts."""
        of_kind = self.costs_s(assumptions) * np.array([each is kind for each in self.kinds])
        timed = self.timed[strategy][list(chosen)]
        return float((timed.sum(axis=0) if strategy == "separately" else timed.any(axis=0)) @ of_kind / 3600)

    def num_timed(self, strategy: str, chosen: Sequence[int]) -> int:
        """Cases that are timed for the models by a strategy."""
        timed = self.timed[strategy][list(chosen)]
        return int(timed.sum() if strategy == "separately" else timed.any(axis=0).sum())


def cases_of(
    models: Sequence[ServedModel], grounds: Grounds, *, progress: Callable[[str], None] = lambda _: None
) -> Cases:
    """The cases of models on a device.

    Args:
        models: to be profiled.
        grounds: of the device.
        progress: called with a line for each model.
    """
    numbers: dict[tuple[Signature, SweepPoint], int] = {}
    kinds: list[OperationKind] = []
    latencies: list[float] = []
    gpus: list[int] = []
    asked: list[Asked] = []
    chosen: dict[str, list[list[int]]] = {name: [[] for _ in models] for name in (*STRATEGIES, AS_PLANNED, ALL_FINER)}
    simulated: dict[tuple[Signature, Limits], _Simulated] = {}
    for place, model in enumerate(models):
        progress(f"{grounds.device.name}: sweeps of {model.name}, model {place + 1} of {len(models)}")
        # Signatures that only the tracing device told apart are one operation here.
        for signature in {portable(each.signature): each.signature for each in model.operations}.values():
            same = portable(signature)
            if (same, model.limits) not in simulated:
                simulated[same, model.limits] = _simulate(signature, model.limits, grounds)
            of = simulated[same, model.limits]
            for point, latency_s in of.latencies_s.items():
                if (same, point) not in numbers:
                    numbers[same, point] = len(latencies)
                    kinds.append(signature.kind)
                    latencies.append(latency_s)
                    gpus.append(_ranks(signature))
            for name, points in of.timed():
                chosen[name][place] += [numbers[same, point] for point in points]
            every = tuple(numbers[same, point] for point in of.latencies_s)
            asked.append(Asked(place, same, of.foundation.basis, every, len(of.adaptive), of.finest_error, of.error))
    masks = {name: np.zeros((len(models), len(latencies)), dtype=bool) for name in chosen}
    for name, rows in chosen.items():
        for place, indices in enumerate(rows):
            masks[name][place, indices] = True
    return Cases(
        models=tuple(model.name for model in models),
        asked=tuple(asked),
        kinds=tuple(kinds),
        latencies_s=np.array(latencies),
        gpus=np.array(gpus, dtype=np.float64),
        timed=masks,
    )


def adaptive_points(
    signature: Signature,
    latencies_s: Mapping[SweepPoint, float],
    coarse: Sequence[SweepPoint],
    finer: Sequence[SweepPoint],
) -> tuple[list[SweepPoint], float | None]:
    """The points that an adaptive sweep times if the latencies are those, and the held-out error it ends with.

    Args:
        signature: of the operation.
        latencies_s: of every point, in seconds.
        coarse: points that are always timed.
        finer: points that are timed where the held-out error asks for them, in order.
    """
    refinement = Refinement(signature, {point: measured(latencies_s[point]) for point in coarse})
    points = list(coarse)
    step = max(1, round(DECIDED_AT_ONCE * len(finer)))
    for start in range(0, len(finer), step):
        needed = [point for point in finer[start : start + step] if refinement.needs(point)]
        for point in needed:
            refinement.add(point, measured(latencies_s[point]))
        points += needed
    return points, refinement.error


def measured(latency_s: float) -> Measurement:
    """A latency without noise, as if a run had measured it."""
    return Measurement(rounds=30, min_s=latency_s, median_s=latency_s, mean_s=latency_s, iqr_s=0.0)


def is_predicted(basis: Basis, *kinds: str) -> bool:
    """Whether latencies of one of the kinds are expected to be within the target, so that nothing need be timed."""
    return basis.kind in kinds and basis.within(TARGET) and basis.error is not None and basis.error <= TARGET


@dataclass(frozen=True)
class _Simulated:
    """One operation within the limits of one or more models."""

    foundation: Foundation
    latencies_s: Mapping[SweepPoint, float]
    adaptive: tuple[SweepPoint, ...]
    finest_error: float | None
    error: float | None

    def timed(self) -> Iterator[tuple[str, Sequence[SweepPoint]]]:
        """What each strategy times."""
        basis, every = self.foundation.basis, list(self.latencies_s)
        yield "separately", every
        yield "exact sharing", every
        yield "adaptive sweep", self.adaptive
        yield "public sizes", () if is_predicted(basis, "published") else self.adaptive
        yield "across sizes", () if is_predicted(basis, "published", "across sizes") else self.adaptive
        yield AS_PLANNED, () if basis.within(TARGET) else self.adaptive
        yield ALL_FINER, every if basis.kind == "estimate" else self.adaptive


def _simulate(signature: Signature, limits: Limits, grounds: Grounds) -> _Simulated:
    foundation = grounds.foundation(signature, limits)
    coarse, finer = sweep(signature, limits), refinements(signature, limits)
    points = (*coarse, *finer)
    latencies = np.maximum(foundation.model.predict_s(points), LEAST_S)
    latencies_s = dict(zip(points, map(float, latencies), strict=True))
    adaptive, error = adaptive_points(signature, latencies_s, coarse, finer)
    finest = fit(signature, {point: measured(latency_s) for point, latency_s in latencies_s.items()})
    return _Simulated(foundation, latencies_s, tuple(adaptive), finest.error, error)


def _ranks(signature: Signature) -> int:
    """GPUs that a case keeps busy: those of every rank of a collective."""
    return int(dict(signature.attributes).get("ranks", 1)) if signature.kind is OperationKind.COLLECTIVE else 1


def within_limits(model: ServedModel, limits: Limits) -> ServedModel:
    """The model with the limits of a GPU's engine in place of those that its trace had."""
    return dataclasses.replace(
        model,
        limits=Limits(
            max_num_tokens=limits.max_num_tokens,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=min(model.limits.max_model_len, limits.max_model_len),
        ),
    )


def to_json(asked: Asked, models: Sequence[str]) -> dict[str, Any]:
    """One operation of one model, for people and programs."""
    return {
        "model": models[asked.model],
        "operation": asked.signature.label,
        "kind": asked.signature.kind.value,
        "basis": asked.basis.kind,
        "expected_error": asked.basis.error,
        "points_of_finest_grid": len(asked.cases),
        "points_of_adaptive_sweep": asked.adaptive_cases,
        "held_out_error_of_finest_grid": asked.finest_error,
        "held_out_error_of_adaptive_sweep": asked.error,
    }
