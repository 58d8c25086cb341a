"""A profiling run: models -> plan -> timed cases -> latency DB -> regressors. Called by the plugin and the CLI."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Failure, Measurement, relative_spread
from pytest_dooly.core.profiled import MachineNoise, Profiled, Share
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.errors import reason_of
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.grounds import grounds_of, latency_models
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.stored import Comparison, compare_with, fit_regressors, unseen_errors
from pytest_dooly.report.findings import Summary, model_report
from pytest_dooly.report.page import ReportError, write_report
from pytest_dooly.serving import serve
from pytest_dooly.simulation.predicted_model import PredictedModel
from pytest_dooly.sweep.grid import kv_tokens, refinements
from pytest_dooly.sweep.plan import Case, make_plan
from pytest_dooly.sweep.refine import TARGET, Refinement, grid_key

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ModelConfiguration
    from pytest_dooly.engine.base import Engine, Session
    from pytest_dooly.timing.measure import Reference

__all__ = ["Profiling", "Rounds"]


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


class Profiling:
    """Times what the latency DB lacks; every case is committed as it ends.

    Attributes:
        plan: the cases.
        db: where measurements are and go to.
        engine: adapter of the serving engine.
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
        estimator: ForeignEstimator | None = None,
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
            estimator: somebody else's, whose held-out errors the summary shows beside those of our regressors.
            progress: called with a line before anything that takes seconds.
        """
        from pytest_dooly.timing.clock import Clocks

        self.db = db
        self.engine = engine
        self._estimator = estimator
        self._progress = progress
        self._session: tuple[str, Session] | None = None
        self._spent_s = 0.0
        self._timed: list[tuple[str, Measurement]] = []
        self._spent_on: defaultdict[str, float] = defaultdict(float)
        self._failed = self._unneeded = 0
        self._shares: Sequence[Share] = ()
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
        self._beyond = False
        self._isolated: list[ModelOperation] = []

    def beyond(self, model: ServedModel, operation: ModelOperation, point: SweepPoint) -> Case:
        """A case that no sweep asks for, to be timed and kept as any other.

        Args:
            model: of the plan.
            operation: of the model.
            point: within the model's limits.
        """
        outcome = self._measured_before.get(operation.signature.key, {}).get(point)
        case = Case(model, operation, point, outcome, refresh=False, spent_s=0.0)
        self._beyond = self._beyond or not case.reused
        return case

    def timer(self, case: Case) -> Callable[[], Any]:
        """Reads the clock of the case's operation; the difference of two readings is in seconds."""
        return self._clocks.of(case.operation.signature).now

    def start(self, case: Case) -> None:
        """Starts the engine that times the case and others beside the plan, so that no budget of timing pays for that.

        Raises:
            EngineError: it does not start.
        """
        self._beyond = True
        self._session_for(case)

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

    def time(self, case: Case, rounds: Rounds) -> Measurement | Failure | None:
        """Times a case and commits its outcome, unless the rounds were disabled.

        Returns:
            the outcome; a failing operation is stored as such, only an interrupt passes through.

        Raises:
            EngineError: the engine does not start, so that no case of the model can be timed.
            DatabaseError: the outcome cannot be kept.
        """
        start = time.perf_counter()
        session = self._session_for(case)
        outcome: Measurement | Failure
        try:
            samples_s, noise = self._samples(session, case, rounds)
            if not samples_s:
                return None
            outcome = Measurement.of(samples_s, noise=noise)
        except Exception as error:  # noqa: BLE001 - whatever an operation raises is its outcome
            outcome = Failure(reason_of(error))
        spent_s = time.perf_counter() - start
        signature, held_out = case.operation.signature, case.use == "held out"
        self.db.record(signature, self.plan.environment, case.point, outcome, spent_s=spent_s, held_out=held_out)
        self._count(signature, outcome, spent_s)
        if isinstance(outcome, Measurement) and not held_out:
            self._refinement(signature).add(case.point, outcome)
        return outcome

    def share(self) -> Share:
        """What this process has done of a run that several share, its cases apart: these are in the latency DB."""
        if self._reference is None:
            return Share(self._unneeded, (), 0.0)
        return Share(self._unneeded, tuple(self._reference.levels_s), self._reference.waited_s)

    def take_over(self, shares: Sequence[Share]) -> None:
        """Counts as this run's what other processes of it have done.

        Args:
            shares: of those that ended as they should; the cases of the others count too.
        """
        recorded = {True: self.db.outcomes(self.plan.environment, held_out=True)}
        recorded[False] = self.db.outcomes(self.plan.environment)
        spent_s = {held_out: self.db.spent_s(self.plan.environment, held_out=held_out) for held_out in recorded}
        for case in self.plan.cases:
            held_out, key = case.use == "held out", case.operation.signature.key
            outcome = recorded[held_out].get(key, {}).get(case.point)
            if outcome is not None:
                took_s = spent_s[held_out][key][case.point]
                if (outcome, took_s) != (case.outcome, case.spent_s):
                    self._count(case.operation.signature, outcome, took_s)
        self._shares = shares
        self._unneeded += sum(share.unneeded for share in shares)

    def settle(self) -> None:
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

    def configuration(self, model: ServedModel) -> ModelConfiguration:
        """What one of the models was traced from."""
        return self._configurations[model.key]

    def fit(self) -> None:
        """Fits the regressors to what has been timed so far."""
        fit_regressors(self.plan.models, self.db, self.plan.environment)

    def summarise(self, reports: Path) -> Summary:
        """Fits the regressors, predicts the standard workloads and writes one report a model under `reports`."""
        environment = self.plan.environment
        self.settle()
        regressors, lacking = fit_regressors(self.plan.models, self.db, environment)
        for model in self.plan.models:
            self.db.save_finding("profiled", model.key, environment, self._profiled(model).to_json())
        comparison = self._compared(regressors)
        workloads, paths, unwritten = {}, list[Path](), list[str]()
        for model in self.plan.models:
            models = latency_models(model, self.db, environment, progress=self._progress)
            report = model_report(model, self.db, environment, regressors, models=models, comparison=comparison)
            workloads[model.name] = report.workloads
            try:
                paths.append(write_report(report, reports / f"{Path(model.name).name}-{environment.slug}"))
            except ReportError as error:
                unwritten.append(str(error))
        return Summary(
            plan=self.plan,
            timed=len(self._timed),
            failed=self._failed,
            spent_s=self._spent_s,
            unneeded=len(self.plan.unneeded) + self._unneeded,
            regressors=regressors,
            lacking=lacking,
            held_out=unseen_errors(regressors, self.db, environment),
            workloads=workloads,
            reports=paths,
            machine=self._machine(),
            unwritten=unwritten,
            comparison=comparison,
        )

    def predicted(self, model: ServedModel) -> PredictedModel:
        """Predictions from what the latency DB holds now; regressors are fitted again.

        Args:
            model: of the plan.

        Raises:
            MissingMeasurements: the latency DB lacks operations of the model; names all of them.
        """
        fit_regressors([model], self.db, self.plan.environment)
        return PredictedModel(model, latency_models(model, self.db, self.plan.environment, progress=self._progress))

    def whole(self, model: ServedModel) -> Session:
        """A session of the whole model, in place of one that holds layers; it lasts until a case is timed.

        Args:
            model: of the plan.

        Raises:
            EngineError: the engine does not start.
        """
        if self._session is None or self._session[0] != f"all of {model.key}":
            self.close()
            self._progress(f"starting {self.engine.name} {self.engine.version} with {model.name}")
            session = self.engine.open(self._configurations[model.key], kv_tokens=kv_tokens(model.limits))
            self._session = f"all of {model.key}", session
        return self._session[1]

    def close(self) -> None:
        """Ends the engine's session."""
        if self._session is not None:
            _, session = self._session
            self._session = None
            session.close()

    def _samples(self, session: Session, case: Case, rounds: Rounds) -> tuple[Sequence[float], float | None]:
        """Seconds of every round, and the machine's noise beside them."""
        from pytest_dooly.timing.measure import MOST_ROUNDS, PRECISION, Reference, Settled, warm_up

        signature = case.operation.signature
        if self._reference is None:
            self._reference = Reference(self._clocks.of_layers, self._clocks.device_name)
        with session.isolate(case.operation, case.point, self._clocks.of(signature)) as isolated:
            call = self._clocks.ready(signature, isolated)
            self._reference.await_calm(self._spent_s)
            warm_up(call)
            beside_s = self._reference.samples_s()
            samples_s = rounds(call.run, call.before, Settled(self._precision or PRECISION), MOST_ROUNDS)
            beside_s += self._reference.samples_s()
        return samples_s, self._reference.note(beside_s)

    def _count(self, signature: Signature, outcome: Measurement | Failure, spent_s: float) -> None:
        self._spent_s += spent_s
        self._spent_on[signature.key] += spent_s
        if isinstance(outcome, Failure):
            self._failed += 1
        else:
            self._timed.append((signature.key, outcome))

    def _compared(self, regressors: Mapping[str, Regressor]) -> Comparison | None:
        """What somebody else's estimator makes of the same measurements; ours are stored by then."""
        if self._estimator is None:
            return None
        self._progress(f"fitting {self._estimator.name} to {len(regressors)} operations")
        return compare_with(self._estimator, regressors, self.db, self.plan.environment)

    def _profiled(self, model: ServedModel) -> Profiled:
        """What this run has done for one of its models."""
        of_model = {operation.signature.key for operation in model.operations}
        reused = [case for case in self.plan.reused if case.operation.signature.key in of_model]
        timed = Counter(key for key, _ in self._timed if key in of_model)
        return Profiled(
            timed=timed,
            reused=Counter(case.operation.signature.key for case in reused),
            spent_s=sum(self._spent_on[key] for key in of_model),
            saved_s=sum(case.spent_s for case in reused),
            machine=self._machine() if timed else None,
        )

    def _machine(self) -> MachineNoise | None:
        shares = self._shares or (self.share(),)
        levels = [level for share in shares for level in share.levels]
        outcomes = [outcome for _, outcome in self._timed]
        return MachineNoise.of(levels, outcomes, waited_s=sum(share.waited_s for share in shares))

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

    def _session_for(self, case: Case) -> Session:
        """With layers of all cases of the model that the plan has, and beside the plan of all operations."""
        key = case.model.key
        if self._session is None or self._session[0] != key or case.operation not in self._isolated:
            self.close()
            self._progress(f"starting {self.engine.name} {self.engine.version} with layers of {case.model.name}")
            asked = [each.operation for each in (*self.plan.new, *self.plan.possible, case) if each.model.key == key]
            others = case.model.operations if self._beyond else ()  # which of them follow is not known yet
            self._isolated = list(dict.fromkeys((*asked, *others)))
            session = self.engine.open(
                self._configurations[key], isolating=self._isolated, kv_tokens=kv_tokens(case.model.limits)
            )
            self._session = key, session
        return self._session[1]
