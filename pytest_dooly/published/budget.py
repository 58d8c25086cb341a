"""What profiling models on a device would still take, before the device is rented."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.device import Device
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature, portable
from pytest_dooly.published.basis import Basis, Foundation
from pytest_dooly.sweep.grid import refinements, sweep
from pytest_dooly.sweep.plan import case_cost_s
from pytest_dooly.sweep.refine import TARGET

__all__ = ["SET_UP_S", "Budget", "Need", "Verdict", "budget_of"]

SET_UP_S = 60.0
"""Assumed for each model: the engine's start with the layers that are to be timed, without the model's weights."""

Verdict = Literal["in the DB", "predicted", "shared", "to time"]
"""Whether an operation was measured by us or others, is predicted within the target from other sizes, is timed for an
earlier model of the list, or must be timed."""


@dataclass(frozen=True)
class Need:
    """One operation of a model, and what it takes.

    Attributes:
        operation: as the model uses it.
        basis: what a prediction of it rests on without more measurements.
        verdict: what is to be done.
        cases: of the coarse sweep, that would have to be timed.
        most_cases: with every refinement that its held-out error may ask for.
        device_s: of the coarse sweep, in seconds of one device, all ranks of a collective together.
        most_device_s: with every refinement.
    """

    operation: ModelOperation
    basis: Basis
    verdict: Verdict
    cases: int
    most_cases: int
    device_s: float
    most_device_s: float


@dataclass(frozen=True)
class Budget:
    """What profiling one model would take.

    Attributes:
        model: what is to be profiled.
        device: to be rented.
        needs: of its operations, in the order of execution.
    """

    model: ServedModel
    device: Device
    needs: tuple[Need, ...]

    @property
    def set_up_s(self) -> float:
        """Seconds of the engine's start; none where nothing is to be timed."""
        return SET_UP_S if any(need.most_cases for need in self.needs) else 0.0

    @property
    def device_s(self) -> float:
        """Seconds of one device: set-up and coarse sweeps."""
        return self.set_up_s + sum(need.device_s for need in self.needs)

    @property
    def most_device_s(self) -> float:
        """Seconds of one device with every refinement."""
        return self.set_up_s + sum(need.most_device_s for need in self.needs)

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "model": self.model.name,
            "device": self.device.name,
            "set_up_s": self.set_up_s,
            "device_s": self.device_s,
            "most_device_s": self.most_device_s,
            "operations": [
                {
                    "label": need.operation.signature.label,
                    "multiplicity": need.operation.multiplicity,
                    "verdict": need.verdict,
                    "basis": dataclasses.asdict(need.basis),
                    "cases": need.cases,
                    "most_cases": need.most_cases,
                    "device_s": need.device_s,
                    "most_device_s": need.most_device_s,
                }
                for need in self.needs
            ],
        }

    def count(self, verdict: Verdict) -> int:
        """Number of operations with a verdict."""
        return sum(need.verdict == verdict for need in self.needs)


def budget_of(
    models: Sequence[ServedModel],
    foundations: Sequence[Mapping[str, Foundation]],
    device: Device,
    *,
    target: float = TARGET,
) -> tuple[Budget, ...]:
    """What profiling the models one after the other would take; what two share is timed for the first.

    Args:
        models: to be profiled, in this order.
        foundations: of each model's operations on the device, by signature key.
        device: to be rented.
        target: expected relative error below which a prediction from other sizes will do, 0.05 for 5 %.
    """
    timed: dict[Signature, set[SweepPoint]] = {}
    budgets = []
    for model, founded in zip(models, foundations, strict=True):
        needs = []
        for operation in model.operations:
            basis = founded[operation.signature.key].basis
            if basis.within(target):
                verdict: Verdict = "predicted" if basis.kind == "across sizes" else "in the DB"
                needs.append(Need(operation, basis, verdict, 0, 0, 0.0, 0.0))
            else:
                before = timed.setdefault(portable(operation.signature), set())
                needs.append(_timed(operation, basis, model.limits, before))
        budgets.append(Budget(model, device, tuple(needs)))
    return tuple(budgets)


def _timed(operation: ModelOperation, basis: Basis, limits: Limits, before: set[SweepPoint]) -> Need:
    """What timing an operation takes, less the points that are timed for models before, to which its own are added."""
    signature = operation.signature
    ranks = int(dict(signature.attributes).get("ranks", 1)) if signature.kind is OperationKind.COLLECTIVE else 1
    coarse = [point for point in sweep(signature, limits) if point not in before]
    finer = [point for point in refinements(signature, limits) if point not in before]
    before.update(coarse, finer)
    device_s = ranks * sum(case_cost_s(signature, point, gpu=True) for point in coarse)
    most_device_s = device_s + ranks * sum(case_cost_s(signature, point, gpu=True) for point in finer)
    cases, most_cases = len(coarse), len(coarse) + len(finer)
    return Need(operation, basis, "to time" if most_cases else "shared", cases, most_cases, device_s, most_device_s)
