"""What a report shows of a model, gathered from the latency DB as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.document import Document
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.in_situ import InSitu
from pytest_dooly.core.measurement import Failure, Measurement
from pytest_dooly.core.profiled import MachineNoise, Profiled
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.prediction.standard import standard_batches, standard_workloads
from pytest_dooly.prediction.step import StepPrediction, predict_step
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.validation import Validation
from pytest_dooly.prediction.workload import WorkloadPrediction, predict_workload
from pytest_dooly.published.parts import PartsModel
from pytest_dooly.regress.regressor import LatencyModel, Regressor
from pytest_dooly.regress.stored import Comparison
from pytest_dooly.sweep.plan import Plan

__all__ = ["ModelReport", "OperationReport", "Summary", "model_report"]

D = TypeVar("D", bound=Document)

_MAKES = {"profiled": "pytest --dooly-model", "validation": "dooly validate", "in_situ": "dooly validate"}
"""What finds out again."""


@dataclass(frozen=True)
class OperationReport:
    """One operation of a model.

    Attributes:
        operation: as the model uses it.
        points: what was measured.
        failures: what could not be.
        regressor: fitted to the points; None where they are too few.
        reused: cases of the latest run that the latency DB had.
        new: cases that it timed.
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
        spent_s: seconds that the latest run spent on timing.
        saved_s: seconds that the cases it reused had taken.
        in_situ: operations alone beside the same within a real step; None where they were not compared.
        machine: how noisy the machine was in the latest run; None where nothing was timed.
        unread: one line for each finding that is damaged, and what makes it again.
        comparison: as in Summary.
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
    machine: MachineNoise | None = None
    unread: tuple[str, ...] = ()
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Summary:
    """What a profiling run has come to.

    Attributes:
        plan: the cases as they were planned.
        timed: number of cases measured.
        failed: number of cases that failed.
        spent_s: seconds spent on timing.
        unneeded: points that the sweeps' held-out errors did not ask for.
        regressors: by signature key.
        lacking: one line for each operation with too few measurements to fit.
        held_out: points that no regressor has seen and their mean absolute relative error, by signature key.
        workloads: predictions of the standard workloads by model name.
        reports: path of every report written.
        machine: how noisy the machine was; None where nothing was timed.
        unwritten: one line for each report that could not be written.
        comparison: somebody else's estimator beside the regressors; None where none was named.
    """

    plan: Plan
    timed: int
    failed: int
    spent_s: float
    unneeded: int
    regressors: Mapping[str, Regressor]
    lacking: Sequence[str]
    held_out: Mapping[str, tuple[int, float]]
    workloads: Mapping[str, Sequence[WorkloadPrediction]]
    reports: Sequence[Path]
    machine: MachineNoise | None = None
    unwritten: Sequence[str] = ()
    comparison: Comparison | None = None


def model_report(
    model: ServedModel,
    db: LatencyDB,
    environment: Environment,
    regressors: Mapping[str, Regressor],
    *,
    models: Mapping[str, LatencyModel] | None = None,
    comparison: Comparison | None = None,
) -> ModelReport:
    """Everything that a report shows of a model, as far as the latency DB has it.

    Args:
        model: what is served.
        db: where measurements are.
        environment: what they are true for.
        regressors: by signature key.
        models: what predicts the operations, by signature key; the regressors where it is None.
        comparison: somebody else's estimator beside the regressors.
    """
    known = regressors if models is None else models
    unread: list[str] = []

    def kept(kind: str, of: type[D]) -> D | None:
        try:
            document = db.load_finding(kind, model.key, environment)
            return None if document is None else of.from_json(document)
        except DocumentError as error:
            unread.append(f"{error}: {_MAKES[kind]} {model.name}")
            return None

    profiled = kept("profiled", Profiled) or Profiled({}, {}, 0.0, 0.0)
    predictable = all(operation.signature.key in known for operation in model.operations)
    times = StepTimes(model, known) if predictable else None
    return ModelReport(
        model=model,
        environment=environment,
        operations=tuple(_operations(model, db.outcomes(environment), regressors, known, profiled)),
        steps=tuple(predict_step(model, known, batch) for batch in standard_batches(model.limits)) if times else (),
        workloads=tuple(predict_workload(times, each) for each in standard_workloads(model.limits)) if times else (),
        validation=kept("validation", Validation),
        spent_s=profiled.spent_s,
        saved_s=profiled.saved_s,
        in_situ=kept("in_situ", InSitu),
        machine=profiled.machine,
        unread=tuple(unread),
        comparison=comparison,
    )


def _operations(
    model: ServedModel,
    outcomes: Mapping[str, Mapping[SweepPoint, Measurement | Failure]],
    regressors: Mapping[str, Regressor],
    known: Mapping[str, LatencyModel],
    profiled: Profiled,
) -> Iterator[OperationReport]:
    for operation in model.operations:
        key = operation.signature.key
        of = outcomes.get(key, {})
        yield OperationReport(
            operation=operation,
            points=tuple((point, each) for point, each in of.items() if isinstance(each, Measurement)),
            failures=tuple((point, each) for point, each in of.items() if isinstance(each, Failure)),
            regressor=regressors.get(key),
            reused=profiled.reused.get(key, 0),
            new=profiled.timed.get(key, 0),
            predicted_from=_predicted_from(known.get(key)),
        )


def _predicted_from(model: LatencyModel | None) -> str:
    """Which published latencies a model rests on, for people; empty for a regressor of our own."""
    return model.grounds if isinstance(model, PartsModel) else ""
