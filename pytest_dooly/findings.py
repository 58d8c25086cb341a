"""What a report shows of a model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dooly.batch import SweepPoint
from pytest_dooly.environment import Environment
from pytest_dooly.isolation import InSitu
from pytest_dooly.measurement import Failure, Measurement
from pytest_dooly.prediction import StepPrediction, WorkloadPrediction
from pytest_dooly.regress import Regressor
from pytest_dooly.signature import ModelOperation, ServedModel
from pytest_dooly.validation import Validation

__all__ = ["ModelReport", "OperationReport"]


@dataclass(frozen=True)
class OperationReport:
    """One operation of a model.

    Attributes:
        operation: as the model uses it.
        points: what was measured.
        failures: what could not be.
        regressor: fitted to the points; None where they are too few.
        reused: cases of this run that the latency DB had.
        new: cases of this run that it had not, those that turned out not to be needed included.
        predicted_from: published latencies that stand in for measurements; empty where none do.
    """

    operation: ModelOperation
    points: tuple[tuple[SweepPoint, Measurement], ...]
    failures: tuple[tuple[SweepPoint, Failure], ...]
    regressor: Regressor | None
    reused: int
    new: int
    predicted_from: str = ""


@dataclass(frozen=True)
class ModelReport:
    """Everything that a report shows of a model.

    Attributes:
        model: what is served.
        environment: what the latencies are true for.
        operations: in the order of execution.
        steps: predicted steps, for the breakdown.
        workloads: predicted TTFT and TPOT.
        validation: of the predictions against the engine; None where it was not run.
        spent_s: seconds that this run spent on timing.
        saved_s: seconds that reused cases had taken.
        in_situ: operations alone beside the same within a real step; None where they were not compared.
    """

    model: ServedModel
    environment: Environment
    operations: tuple[OperationReport, ...]
    steps: tuple[StepPrediction, ...]
    workloads: tuple[WorkloadPrediction, ...]
    validation: Validation | None
    spent_s: float
    saved_s: float
    in_situ: InSitu | None = None
