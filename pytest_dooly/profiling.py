"""A profiling run: models -> plan -> timed cases -> latency DB -> regressors. Called by the plugin and the CLI."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_dooly.basis import PartsModel, grounds_of, latency_models
from pytest_dooly.batch import Batch, Limits, SweepPoint
from pytest_dooly.environment import Environment
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.findings import ModelReport, OperationReport
from pytest_dooly.isolation import InSitu
from pytest_dooly.latency_db import LatencyDB
from pytest_dooly.measurement import Failure, Measurement, relative_spread
from pytest_dooly.operation import Coverage
from pytest_dooly.plan import Case, Plan, make_plan
from pytest_dooly.prediction import Workload, WorkloadPrediction, predict_step, predict_workload
from pytest_dooly.refine import TARGET, Refinement, grid_key
from pytest_dooly.regress import LatencyModel, Regressor, fit
from pytest_dooly.report import write_report
from pytest_dooly.signature import ServedModel, Signature, model_operations, served_key
from pytest_dooly.sweep import kv_tokens, refinements
from pytest_dooly.validation import Validation

if TYPE_CHECKING:
    from pytest_dooly.configuration import ModelConfiguration
    from pytest_dooly.engine.base import Engine, Session
    from pytest_dooly.measure import Reference

__all__ = [
    "Profiling",
    "Rounds",
    "Summary",
    "coverage_of",
    "fit_regressors",
    "model_report",
    "serve",
    "standard_batches",
    "standard_workloads",
    "unseen_errors",
]


class Rounds(Protocol):
    """Runs a function for several rounds and returns the seconds of each; pytest-benchmark's fixture, adapted."""

    def __call__(
        self,
        run: Callable[[], object],
        before: Callable[[], None],
        enough: Callable[[Sequence[float]], bool],
        most: int,
        /,
    ) -> Sequence[float]:
        """Seconds of every round, until they are enough or the most; empty where timing is disabled."""


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


def serve(
    engine: Engine,
    configuration: ModelConfiguration,
    db: LatencyDB,
    environment: Environment,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> ServedModel:
    """The configuration's operations: from the latency DB where this version traced it before, else from a trace.

    Args:
        engine: adapter of the serving engine.
        configuration: what is served.
        db: where traces are and go to.
        environment: what is installed.
        progress: called with a line before anything that takes seconds.

    Raises:
        ConfigurationError: the engine refuses the configuration.
        TraceError: an operation or the architecture cannot be traced.
    """
    key = served_key(configuration, environment)
    known = db.load_model(key, environment)
    if known is not None:
        return known
    progress(f"tracing {configuration.name}")
    from pytest_dooly.trace import trace

    traced, limits = trace(engine, configuration)
    model = ServedModel(key, configuration.name, traced.architecture, limits, model_operations(traced))
    db.save_model(model, environment)
    return model


def coverage_of(
    engine: Engine,
    configuration: ModelConfiguration,
    model: ServedModel,
    db: LatencyDB,
    environment: Environment,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Coverage:
    """How much of a real forward pass the model's operations are: known from before, or counted now.

    Raises:
        EngineError: the engine cannot run a small model of the architecture here.
    """
    known = db.load_finding("coverage", model.key, environment)
    if known is not None:
        return Coverage.from_json(known)
    progress(f"running {model.architecture} in small, to count what the trace covers")
    from pytest_dooly.trace import cover

    coverage = cover(engine, configuration)
    db.save_finding("coverage", model.key, environment, coverage.to_json())
    return coverage


class Profiling:
    """Times what the latency DB lacks; every case is committed as it ends.

    Attributes:
        plan: the cases.
        db: where measurements are and go to.
    """

    def __init__(
        self,
        engine: Engine,
        configurations: Sequence[ModelConfiguration],
        db: LatencyDB,
        *,
        refresh: bool = False,
        target: float = TARGET,
        precision: float | None = None,
        held_out: int = 0,
        share: float = TARGET,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Traces the models and plans the cases.

        Args:
            engine: adapter of the serving engine.
            configurations: what to profile.
            db: where measurements are and go to.
            refresh: time every case again.
            target: held-out relative error at which a sweep needs no more points.
            precision: half the relative width of the median's confidence interval at which a case ends; None for 2 %.
            held_out: how many points of each operation to time that no regressor may see.
            share: expected error up to which latencies that others have published stand in for timing an operation; 0
                to time all.
            progress: called with a line before anything that takes seconds.
        """
        from pytest_dooly.clock import Clocks

        self.db = db
        self._engine = engine
        self._progress = progress
        self._session: tuple[str, Session] | None = None
        self._spent_s = 0.0
        self._timed = self._failed = self._unneeded = 0
        environment = engine.environment(configurations[0])
        self._clocks = Clocks(environment)
        models = [serve(engine, configuration, db, environment, progress=progress) for configuration in configurations]
        self._configurations = dict(zip((model.key for model in models), configurations, strict=True))
        grounds = grounds_of(db, environment, progress=progress) if share else None
        predicted = [grounds.predictable(model, target=share) for model in models] if grounds is not None else []
        self.plan = make_plan(
            models,
            environment,
            db,
            refresh=refresh,
            target=target,
            held_out=held_out,
            predicted={key: error for each in predicted for key, error in each.items()},
        )
        self._target, self._precision = target, precision
        self._refinements: dict[str, Refinement] = {}
        self._undecided = {(case.operation.signature.key, case.point) for case in self.plan.possible}
        self._reference: Reference | None = None

    def timer(self, case: Case) -> Callable[[], Any]:
        """Reads the clock of the case's operation; the difference of two readings is in seconds."""
        return self._clocks.of(case.operation.signature).now

    def unneeded(self, case: Case) -> str | None:
        """Why a case need not be timed, asked right before it would be; None where it is."""
        if case.use != "refinement" or case.reused:
            return None
        refinement = self._refinement(case.operation.signature)
        refinement.noise = relative_spread(self._reference.levels_s) if self._reference is not None else 0.0
        needed = refinement.needs(case.point)
        self._undecided.discard((case.operation.signature.key, case.point))
        if needed:
            return None
        self._unneeded += 1
        noise = f", machine's noise {refinement.noise:.1%}"
        return f"not needed: held-out error {refinement.error or 0:.1%} (target {self._target:.0%}{noise})"

    def time(self, case: Case, rounds: Rounds) -> Failure | None:
        """Times a case and commits its outcome, unless the rounds were disabled.

        Returns:
            why the case could not be timed; a failing operation is stored as such, only an interrupt passes through.

        Raises:
            EngineError: the engine does not start, so that no case of the model can be timed.
            DatabaseError: the outcome cannot be kept.
        """
        start = time.perf_counter()
        session = self._session_for(case.model)
        outcome: Measurement | Failure
        try:
            samples_s, noise = self._samples(session, case, rounds)
            if not samples_s:
                return None
            outcome = Measurement.of(samples_s, noise=noise)
        except Exception as error:  # noqa: BLE001 - whatever an operation raises is its outcome
            outcome = Failure(_reason(error))
        spent_s = time.perf_counter() - start
        signature, held_out = case.operation.signature, case.use == "held out"
        self.db.record(signature, self.plan.environment, case.point, outcome, spent_s=spent_s, held_out=held_out)
        self._spent_s += spent_s
        if isinstance(outcome, Failure):
            self._failed += 1
            return outcome
        self._timed += 1
        if not held_out:
            self._refinement(signature).add(case.point, outcome)
        return None

    def summarise(self, reports: Path) -> Summary:
        """Fits the regressors, predicts the standard workloads and writes one report a model under `reports`."""
        environment = self.plan.environment
        self._settle()
        regressors, lacking = fit_regressors(self.plan.models, self.db, environment)
        workloads, paths = {}, []
        for model in self.plan.models:
            models = latency_models(model, self.db, environment, progress=self._progress)
            report = model_report(
                model, self.db, environment, regressors, models=models, plan=self.plan, spent_s=self._spent_s
            )
            workloads[model.name] = report.workloads
            paths.append(write_report(report, reports / f"{Path(model.name).name}-{environment.slug}"))
        return Summary(
            plan=self.plan,
            timed=self._timed,
            failed=self._failed,
            spent_s=self._spent_s,
            unneeded=len(self.plan.unneeded) + self._unneeded,
            regressors=regressors,
            lacking=lacking,
            held_out=unseen_errors(regressors, self.db, environment),
            workloads=workloads,
            reports=paths,
        )

    def close(self) -> None:
        """Ends the engine's session."""
        if self._session is not None:
            _, session = self._session
            self._session = None
            session.close()

    def _samples(self, session: Session, case: Case, rounds: Rounds) -> tuple[Sequence[float], float | None]:
        """Seconds of every round, and the machine's noise beside them."""
        from pytest_dooly.measure import MOST_ROUNDS, PRECISION, Reference, Settled, warm_up

        signature = case.operation.signature
        if self._reference is None:
            self._reference = Reference(self._clocks.of_layers, self._clocks.device_name)
        with session.isolate(case.operation, case.point, self._clocks.of(signature)) as isolated:
            call = self._clocks.ready(signature, isolated)
            self._reference.await_calm()
            warm_up(call)
            beside_s = self._reference.samples_s()
            samples_s = rounds(call.run, call.before, Settled(self._precision or PRECISION), MOST_ROUNDS)
            beside_s += self._reference.samples_s()
        return samples_s, self._reference.note(beside_s)

    def _refinement(self, signature: Signature) -> Refinement:
        if signature.key not in self._refinements:
            self._refinements[signature.key] = Refinement(
                signature, self._measured_before.get(signature.key, {}), target=self._target
            )
        return self._refinements[signature.key]

    @cached_property
    def _measured_before(self) -> Mapping[str, Mapping[SweepPoint, Measurement]]:
        """What the latency DB had, read once: a refinement is told of every later measurement."""
        return self.db.measurements(self.plan.environment)

    def _settle(self) -> None:
        """Keeps which sweeps have been decided on to the last point, so that another run need not ask again."""
        if self.plan.new and not self._timed:
            return
        undecided = {key for key, _ in self._undecided}
        for model in self.plan.models:
            for signature in {operation.signature for operation in model.operations}:
                if signature.key in self._refinements and signature.key not in undecided:
                    self.db.settle(
                        signature.key,
                        self.plan.environment,
                        target=self._target,
                        error=self._refinements[signature.key].error,
                        grid=grid_key(refinements(signature, model.limits)),
                    )

    def _session_for(self, model: ServedModel) -> Session:
        if self._session is None or self._session[0] != model.key:
            self.close()
            self._progress(f"starting {self._engine.name} {self._engine.version} with layers of {model.name}")
            asked = (*self.plan.new, *self.plan.possible)
            operations = list(dict.fromkeys(case.operation for case in asked if case.model.key == model.key))
            session = self._engine.open(
                self._configurations[model.key], isolating=operations, kv_tokens=kv_tokens(model.limits)
            )
            self._session = model.key, session
        return self._session[1]


def fit_regressors(
    models: Sequence[ServedModel], db: LatencyDB, environment: Environment
) -> tuple[Mapping[str, Regressor], Sequence[str]]:
    """One regressor an operation, stored in the latency DB.

    Returns:
        regressors by signature key, and one line for each operation that has too few measurements.
    """
    measured = db.measurements(environment)
    regressors: dict[str, Regressor] = {}
    lacking: list[str] = []
    for signature in {operation.signature for model in models for operation in model.operations}:
        try:
            regressor = fit(signature, measured.get(signature.key, {}))
        except MissingMeasurements as error:
            lacking.append(str(error))
            continue
        regressors[signature.key] = regressor
        db.save_regressor(signature.key, environment, regressor.to_json(), error=regressor.error)
    return regressors, sorted(lacking)


def unseen_errors(
    regressors: Mapping[str, Regressor], db: LatencyDB, environment: Environment
) -> Mapping[str, tuple[int, float]]:
    """How far regressors are off where points were held out of every fit.

    Returns:
        number of points and mean absolute relative error, by signature key.
    """
    errors = {}
    for key, measured in db.measurements(environment, held_out=True).items():
        if key in regressors and measured:
            predicted_s = regressors[key].predict_s(list(measured))
            off = [abs(a / b.mean_s - 1) for a, b in zip(predicted_s, measured.values(), strict=True)]
            errors[key] = len(off), float(statistics.fmean(off))
    return errors


def model_report(
    model: ServedModel,
    db: LatencyDB,
    environment: Environment,
    regressors: Mapping[str, Regressor],
    *,
    models: Mapping[str, LatencyModel] | None = None,
    plan: Plan | None = None,
    spent_s: float = 0.0,
) -> ModelReport:
    """Everything that a report shows of a model, as far as the latency DB has it.

    Args:
        model: what is served.
        db: where measurements are.
        environment: what they are true for.
        regressors: by signature key.
        models: what predicts the operations, by signature key; the regressors where it is None.
        plan: of the run that is reported; None where nothing was timed.
        spent_s: seconds that the run spent on timing.
    """
    outcomes = db.outcomes(environment)
    known = regressors if models is None else models
    cases = [] if plan is None else [case for case in plan.cases if case.operation in model.operations]
    operations = []
    for operation in model.operations:
        of = outcomes.get(operation.signature.key, {})
        mine = [case for case in cases if case.operation.signature == operation.signature]
        operations.append(
            OperationReport(
                operation=operation,
                points=tuple((point, each) for point, each in of.items() if isinstance(each, Measurement)),
                failures=tuple((point, each) for point, each in of.items() if isinstance(each, Failure)),
                regressor=regressors.get(operation.signature.key),
                reused=sum(case.reused for case in mine),
                new=sum(not case.reused and case.use not in ("unneeded", "predicted") for case in mine),
                predicted_from=_predicted_from(known.get(operation.signature.key)),
            )
        )
    validation = db.load_finding("validation", model.key, environment)
    in_situ = db.load_finding("in_situ", model.key, environment)
    predictable = all(operation.signature.key in known for operation in model.operations)
    steps, workloads = standard_batches(model.limits), standard_workloads(model.limits)
    return ModelReport(
        model=model,
        environment=environment,
        operations=tuple(operations),
        steps=tuple(predict_step(model, known, batch) for batch in steps) if predictable else (),
        workloads=tuple(predict_workload(model, known, workload) for workload in workloads) if predictable else (),
        validation=None if validation is None else Validation.from_json(validation),
        spent_s=spent_s,
        saved_s=sum(case.spent_s for case in cases if case.reused),
        in_situ=None if in_situ is None else InSitu.from_json(in_situ),
    )


def _predicted_from(model: LatencyModel | None) -> str:
    """Which published latencies a model rests on, for people; empty for a regressor of our own."""
    return model.grounds if isinstance(model, PartsModel) else ""


def standard_workloads(limits: Limits) -> tuple[Workload, ...]:
    """One request and eight at once, of 512 prompt and 64 output tokens as far as the limits allow."""
    output_len = max(2, min(64, limits.max_model_len // 4))
    prompt_len = min(512, limits.max_model_len - output_len)
    return tuple(Workload(prompt_len, output_len, num) for num in sorted({1, min(8, limits.max_num_seqs)}))


def standard_batches(limits: Limits) -> tuple[Batch, ...]:
    """A prefill, a decode and a mixed step."""
    prompt_len = min(512, limits.max_num_tokens // 2, limits.max_model_len // 2)
    num = min(8, limits.max_num_seqs - 1)
    decodes = [(1, prompt_len)] * max(1, num)
    return Batch.uniform(1, prompt_len), Batch.of(decodes), Batch.of([*decodes, (prompt_len // 2, 0)])


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
