"""Timing where regressors are most wrong: hypothesis draws points, steered towards the errors that it has found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings, target

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import ModelOperation, ServedModel, Signature
from pytest_dooly.errors import DoolyError, MissingMeasurements
from pytest_dooly.profiling import Profiling
from pytest_dooly.regress.fit import fit, held_out_errors
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.sweep.strategies import sweep_points

__all__ = ["Exploration", "Explored", "Worst", "explorable"]

_CASE_S = 1.0
"""About what a point takes; sets how many are drawn before the search turns to where errors were largest."""

_FEWEST, _MOST = 20, 200
"""Points of one round of drawing, of which hypothesis draws the first half at random."""

_KNOWN = 50
"""Points in a row that are known already after which a round ends."""


class _Over(BaseException):
    """Ends a round; no Exception, which hypothesis would take for a failure of what it tests."""


@dataclass(frozen=True)
class Worst:
    """Where an operation's regressor is furthest off.

    Attributes:
        label: of the operation.
        point: as it is written.
        error: absolute relative error, 0.05 for 5 %.
    """

    label: str
    point: SweepPoint
    error: float


@dataclass
class Explored:
    """What was timed of one operation.

    Attributes:
        signature: of the operation.
        regressor: fitted to what was known before, which has seen none of the new points.
        known: what was known before.
        new: measurements by sweep point, kept in the latency DB.
        failures: reasons of points that could not be timed.
    """

    signature: Signature
    regressor: Regressor
    known: Mapping[SweepPoint, Measurement]
    new: dict[SweepPoint, Measurement] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def error(self, point: SweepPoint) -> float:
        """Absolute relative error of the first regressor at a measured point."""
        mean_s = (self.new.get(point) or self.known[point]).mean_s
        return abs(float(self.regressor.predict_s([point])[0]) / mean_s - 1)

    def before(self) -> Worst | None:
        """The worst of the new points, as predicted without any of them."""
        return self._worst({point: self.error(point) for point in self.new})

    def after(self) -> Worst | None:
        """The worst of the new points, each as a fit without it predicts it; those at the ends are in every fit."""
        errors = held_out_errors(self.signature, {**self.known, **self.new})
        return self._worst({point: errors[point] for point in self.new if point in errors})

    def _worst(self, errors: Mapping[SweepPoint, float]) -> Worst | None:
        if not errors:
            return None
        point = max(errors, key=errors.__getitem__)
        return Worst(self.signature.label, point, errors[point])


class Exploration:
    """Explores one operation after the other within a budget of time; every point is kept as soon as it is timed.

    Attributes:
        budget_s: seconds for all of them together, the engine's start not counted.
        spent_s: seconds so far; the last point may end later than the budget.
        explored: the operations so far.
    """

    def __init__(
        self, profiling: Profiling, budget_s: float, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Times nothing yet.

        Args:
            profiling: times and keeps cases.
            budget_s: as in the attribute.
            clock: in seconds, by which the budget is kept.
        """
        self.budget_s, self.spent_s = budget_s, 0.0
        self.explored: list[Explored] = []
        self._profiling, self._clock = profiling, clock

    def explore(self, model: ServedModel, operation: ModelOperation, *, share: float = 1.0) -> Explored:
        """Times points of an operation where its regressor is wrong, for a share of what is left of the budget.

        Args:
            model: of the profiling's plan.
            operation: of the model.
            share: up to 1.

        Raises:
            MissingMeasurements: nothing is known of the operation, so that no regressor can be wrong.
            EngineError: the engine does not start.
            DatabaseError: a measurement cannot be kept.
        """
        signature, environment = operation.signature, self._profiling.plan.environment
        known = self._profiling.db.measurements(environment).get(signature.key, {})
        if not known:
            raise MissingMeasurements(
                f"{signature.label} has no measurement that an error could be told from: "
                f"run pytest --dooly-model={model.name} with the same options first"
            )
        explored = Explored(signature, fit(signature, known), known)
        self.explored.append(explored)
        self._profiling.start(self._profiling.beyond(model, operation, next(iter(known))))
        begin_s = self._clock()
        until_s = begin_s + share * max(self.budget_s - self.spent_s, 0.0)
        try:
            timed = -1
            while self._clock() < until_s and timed < len(explored.new) + len(explored.failures):
                timed = len(explored.new) + len(explored.failures)
                self._round(model, operation, explored, until_s)
        finally:  # also where somebody interrupts
            self.spent_s += self._clock() - begin_s
        return explored

    def before(self) -> Worst | None:
        """The largest error of all operations, as predicted before any point was timed."""
        return max(filter(None, (each.before() for each in self.explored)), key=_error, default=None)

    def after(self) -> Worst | None:
        """The largest error of all operations after refitting; see `Explored.after`."""
        return max(filter(None, (each.after() for each in self.explored)), key=_error, default=None)

    def lines(self, *, verbosity: int = 0) -> list[str]:
        """For the terminal: the worst error before and after, and each operation's where that is not too much."""
        points = sum(len(each.new) for each in self.explored)
        failed = sum(len(each.failures) for each in self.explored)
        lines = [
            f"{points} points of {len(self.explored)} operations timed in {self.spent_s / 60:.1f} of "
            f"{self.budget_s / 60:g} min{f', {failed} failed' if failed else ''}",
            f"worst error before: {_told(self.before())}",
            f"after refitting, each point by a fit without it: {_told(self.after())}",
        ]
        for each in self.explored if verbosity >= 0 else ():
            before, after = each.before(), each.after()
            if before is not None:
                then = "" if after is None else f", then {after.error:.1%} at {after.point}"
                label = each.signature.label
                lines.append(f"  {label:44} {len(each.new):4} points: {before.error:.1%} at {before.point}{then}")
        return lines

    def _round(self, model: ServedModel, operation: ModelOperation, explored: Explored, until_s: float) -> None:
        """Draws once; hypothesis turns to the largest errors when it has drawn half of the points."""
        tried, in_a_row = set[SweepPoint](), 0
        raised: list[DoolyError] = []

        def look(point: SweepPoint) -> None:
            nonlocal in_a_row
            if point not in explored.new and point not in explored.known and point not in tried:
                if self._clock() >= until_s:
                    raise _Over
                tried.add(point)
                in_a_row = 0
                try:
                    self._time(model, operation, point, explored)
                except DoolyError as error:  # no other point would fare better
                    raised.append(error)
                    raise _Over from error
            elif (in_a_row := in_a_row + 1) >= _KNOWN:
                raise _Over
            if point in explored.new or point in explored.known:
                target(explored.error(point))

        examples = int(min(max((until_s - self._clock()) / _CASE_S, _FEWEST), _MOST))
        drawn = given(sweep_points(operation.signature, model.limits))(look)
        # Other points in every round and every run, but the same ones from the same latency DB.
        begin = seed(int(explored.signature.key, 16) + len(explored.known) + len(explored.new))
        asked = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.target],
            suppress_health_check=list(HealthCheck),
        )
        try:
            begin(asked(drawn))()
        except _Over:
            if raised:
                raise raised[0] from None

    def _time(self, model: ServedModel, operation: ModelOperation, point: SweepPoint, explored: Explored) -> None:
        from pytest_dooly.timing.measure import rounds_by

        case = self._profiling.beyond(model, operation, point)
        outcome = self._profiling.time(case, rounds_by(self._profiling.timer(case)))
        if isinstance(outcome, Measurement):
            explored.new[point] = outcome
        elif outcome is not None:
            explored.failures.append(f"{case.id}: {outcome.reason}")


def explorable(models: Sequence[ServedModel]) -> list[tuple[ServedModel, ModelOperation]]:
    """The operations of models that are explored, each once: all but the engine's own share, which is no kernel's."""
    found: dict[str, tuple[ServedModel, ModelOperation]] = {}
    for model in models:
        for operation in model.operations:
            if operation.signature.kind is not OperationKind.OVERHEAD:
                found.setdefault(operation.signature.key, (model, operation))
    return list(found.values())


def _error(worst: Worst) -> float:
    return worst.error


def _told(worst: Worst | None) -> str:
    return "none that is known" if worst is None else f"{worst.error:.1%}, {worst.label} at {worst.point}"
