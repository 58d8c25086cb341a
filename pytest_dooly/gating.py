"""A run of the gate: what counts -> turns, here or beside another engine -> verdict -> latency DB."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_dooly.core.batch import Batch, SweepPoint
from pytest_dooly.core.environment import PERF_COUNTER, Environment
from pytest_dooly.core.gate_run import gate_series
from pytest_dooly.core.operation import LAUNCH
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.turn import Place, Turn
from pytest_dooly.core.workload import Workload
from pytest_dooly.drift.baseline import Baseline, alike, baseline_of, fitted_to, profiled_environment
from pytest_dooly.drift.change import (
    FEWEST_CALM,
    Timed,
    fewest_of_start,
    paired_changes,
    profiled_changes,
)
from pytest_dooly.drift.comparison import Comparison, compared, seen_by
from pytest_dooly.drift.exposure import Exposure, check_fits, exposures, kept_exposures
from pytest_dooly.drift.found import Found
from pytest_dooly.drift.sensitivity import Earlier
from pytest_dooly.drift.verdict import WORTH, Outcome, Verdict, case_id, judged, sums_of
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.latency_db.exported import read_measurements
from pytest_dooly.latency_db.file import copy_of
from pytest_dooly.prediction.standard import standard_workloads
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.stored import regressors_of
from pytest_dooly.report.gate_report import gate_document
from pytest_dooly.sweep.grid import kv_tokens

if TYPE_CHECKING:
    from pytest_dooly.core.configuration import ModelConfiguration
    from pytest_dooly.engine.base import Engine
    from pytest_dooly.engine_process import EngineProcess

__all__ = ["Gate", "GateOptions", "Starts", "is_opened_first"]

_MORE = 1.5
"""How many times as many turns as before are taken before it is asked again whether they are enough."""

_NEW_FIRST, _EACH_S = (True, False, False, True), 150.0
"""Of each start of two engines that take turns, and seconds of the budget for which that is done once more. A start
makes single operations up to 3 % faster or slower, now and then 9 %: more turns tell nothing of that, more starts do.
What drifts along the four cancels."""

_ALONE_S = 75.0
"""Likewise of one engine, for a start in the only order that there is: its layout is the same in every run."""

_UNKNOWN_ERROR = 0.05
"""Of a regressor that has too few points to hold one out."""

_CROWD = 0.1
"""Of all processors: what other processes may have more, or less, than at the baseline before figures are left open."""


@dataclass(frozen=True)
class GateOptions:
    """What is asked of a run.

    Attributes:
        workloads: that count; empty for the standard ones.
        limit: relative slowdown of TTFT and TPOT that is not to be exceeded, 0.03 for 3 %.
        budget_s: seconds that turns may take, all together.
        starts: of the engine, which they are spread over, and of the other in alternating order; None for what pays.
        baseline: latency DB or export to compare with; None for the latency DB of the run.
        against: interpreter whose engine takes turns with this one; None for earlier runs.
        accepted: why this run is the baseline from now on; None where it is not to be.
        commit: that it runs at; empty where none is known.
    """

    workloads: Sequence[Workload] = ()
    limit: float = 0.03
    budget_s: float = 300.0
    starts: int | None = None
    baseline: Path | None = None
    against: Path | None = None
    accepted: str | None = None
    commit: str = ""


@dataclass(frozen=True)
class Starts:
    """The turns of engines from one start to their end.

    Attributes:
        turns: of this engine.
        olds: of the one that it is compared with, each beside one of those; empty where that is of earlier runs.
        new_first: whether this engine was opened before the other.
    """

    turns: Sequence[Turn]
    olds: Sequence[Turn] = ()
    new_first: bool = True


class Gate:
    """One run for one model.

    Attributes:
        model: what is served.
        found: what it has come to; None before `run`.
    """

    def __init__(
        self,
        engine: Engine,
        configuration: ModelConfiguration,
        model: ServedModel,
        db: LatencyDB,
        options: GateOptions,
        *,
        python: Path = Path(sys.executable),
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Looks for a baseline.

        Args:
            engine: adapter of the serving engine.
            configuration: of the model.
            model: what is served.
            db: where runs are and go to.
            options: what is asked.
            python: interpreter that starts this engine.
            progress: called with a line before anything that takes seconds.

        Raises:
            ConfigurationError: the baseline that is named is of another device or another model, or a workload does not
                fit the model's limits, or is not the baseline's.
            DatabaseError: it cannot be read.
        """
        self.model = model
        self.found: Found | None = None
        self._engine, self._configuration, self._db, self._options = engine, configuration, db, options
        self._progress = progress
        self._python = python
        self._learnt: dict[frozenset[Place], Sequence[Earlier]] = {}
        self._environment = engine.environment(configuration)
        self._series = gate_series(configuration, self._environment)
        self.workloads = tuple(options.workloads or standard_workloads(model.limits))
        check_fits(model, self.workloads)
        self.baseline: Baseline | None
        if options.baseline is not None:
            self.baseline = self._named(options.baseline)
        else:
            self.baseline = baseline_of(db, self._series) or self._profiled(db)
        self._check_baseline()

    @property
    def needs_profile(self) -> bool:
        """Whether nothing says yet where predicted steps spend their time."""
        return not (self._regressors() or (self.baseline is not None and self.baseline.runs))

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Of the figures and operations that are judged."""
        labels = (operation.signature.label for operation in self.model.operations)
        return (*self._figure_ids, *dict.fromkeys(labels))

    @property
    def _figure_ids(self) -> tuple[str, ...]:
        tpots = (f"tpot-{workload}" for workload in self.workloads if workload.output_len > 1)
        return (*(f"ttft-{workload}" for workload in self.workloads), *tpots)

    def run(self) -> Found:
        """Times and judges; every turn is kept as it ends, the verdict when all have.

        Raises:
            BrokenOperation: an operation cannot be timed.
            ConfigurationError: the engines cannot take turns.
            EngineError: an engine does not start.
        """
        spent, minutes = self._spent(), self._options.budget_s / 60
        self._progress(f"timing {len(self.model.operations)} operations in turns, for up to {minutes:.3g} minutes")
        key = self._db.begin_gate_run(self._series, self.model.name, self._environment, self._options.commit)
        found = self._judge(spent, self.take(key, spent))
        self.found = found
        self._db.finish_gate_run(
            key,
            found.outcome,
            gate_document(found),
            is_baseline=found.outcome in (Outcome.BASELINE, Outcome.ACCEPTED),
            accepted=self._options.accepted,
        )
        return found

    def take(self, key: str, spent: Sequence[Exposure]) -> list[Starts]:
        """Takes the turns of a run, by start of the engine.

        Args:
            key: of the run, which turns are kept for.
            spent: what figures consist of.
        """
        return self._alone(key, spent) if self._options.against is None else self._beside(key, spent)

    def _check_baseline(self) -> None:
        """Takes a baseline of other workloads or operations for none where this run is to take its place.

        Raises:
            ConfigurationError: it lacks a workload, and is to stay.
        """
        if self.baseline is None or self._options.against is not None:
            return
        if self._options.accepted is not None:
            self.baseline = None if self._is_of_others else self.baseline
            return
        if not self.baseline.runs or self._kept() is not None:
            return
        workloads = (each.workload for each in kept_exposures(self.baseline.runs[0].document))
        asked, has = (", ".join(dict.fromkeys(map(str, each))) for each in (self.workloads, workloads))
        raise ConfigurationError(
            f"the baseline of {self.model.name} has other workloads than {asked}: it has {has}; name those with "
            '--dooly-workload, or run once with --dooly-accept "why" for a new baseline'
        )

    @property
    def _is_of_others(self) -> bool:
        """Whether the baseline is of other workloads, or of operations that are not this model's."""
        kept, runs = self._kept(), () if self.baseline is None else self.baseline.runs
        has = {each.signature.key for each in self.model.operations}
        timed = {each.signature.key for each in self.model.operations if each.signature.name != LAUNCH}
        counted = {place.signature for each in kept or () for place in each.seconds}
        return (bool(runs) and kept is None) or not counted <= has or not timed <= self._known

    def _regressors(self) -> Mapping[str, Regressor]:
        """Of the baseline's environment where it has any, else of this one."""
        if self.baseline is not None and self.baseline.regressors:
            return self.baseline.regressors
        return regressors_of(self._db, self._environment)

    def _spent(self) -> tuple[Exposure, ...]:
        """What the figures consist of: as the baseline has it, so that the same is timed, else as is predicted."""
        return self._kept() or exposures(self.model, self._regressors(), self.workloads)

    def _kept(self) -> tuple[Exposure, ...] | None:
        """What the figures consist of in the baseline; None where it lacks one of them."""
        if self.baseline is None or not self.baseline.runs:
            return None
        kept = {case_id(each): each for each in kept_exposures(self.baseline.runs[0].document)}
        cases = self._figure_ids
        return tuple(kept[case] for case in cases) if kept.keys() >= set(cases) else None

    def _named(self, path: Path) -> Baseline:
        """The baseline in a file: a latency DB's, or what an export has."""
        if path.suffix.lower() in (".parquet", ".csv"):
            measured = read_measurements(path)
            environment = next((each for each in reversed(list(measured)) if alike(each, self._environment)), None)
            if environment is None:
                raise ConfigurationError(self._no_baseline(path, sorted({each.device for each in measured})))
            return Baseline((), (), environment, fitted_to(self.model, measured[environment]))
        with copy_of(path) as copy, LatencyDB.open(copy, create=False) as db:
            found = baseline_of(db, self._series) or self._profiled(db)
            devices = sorted({each.device for each in db.environments()})
        if found is None:
            raise ConfigurationError(self._no_baseline(path, devices))
        return found

    def _no_baseline(self, path: Path, devices: Sequence[str]) -> str:
        here = self._environment.device
        if devices and here not in devices:
            return (
                f"the baseline {path} is of another device ({', '.join(devices)}), and what that takes says nothing of "
                f"{here}: name one that was recorded here, or drop --dooly-baseline and let this run be the first"
            )
        return (
            f"{path} has no baseline of {self.model.name} as it is served here, on {self._environment}: name another "
            "file, or drop --dooly-baseline and let this run be the first"
        )

    def _profiled(self, db: LatencyDB) -> Baseline | None:
        environment = profiled_environment(db, self.model, self._environment)
        if environment is None:
            return None
        return Baseline((), (), environment, regressors_of(db, environment))

    def _alone(self, key: str, spent: Sequence[Exposure]) -> list[Starts]:
        """Turns of one engine, for runs that came before."""
        taken, starts = list[Starts](), self._num_starts
        for number in range(1, starts + 1):
            self._progress(f"starting {self._engine.name} {self._engine.version}, {number} of {starts}")
            with self._own(spent, number) as new:
                new.open()
                turns = list[Turn]()
                start = Starts(turns)
                self._take_turns(spent, taken, start, [(new.turn, turns, key)])
                taken.append(start)
        return taken

    def _beside(self, key: str, spent: Sequence[Exposure]) -> list[Starts]:
        """Turns of two engines beside each other, each started anew several times, in a process of its own.

        The one that is opened first is the slower one, by 0.4 to 2.8 % in TPOT, whichever it is, on the machine that
        this was measured on (`make bench-gate`).
        """
        against = self._options.against
        assert against is not None
        other = None
        operations: Sequence[ModelOperation] = ()
        taken, starts = list[Starts](), self._num_starts
        for number in range(1, starts + 1):
            new_first = is_opened_first(number)
            self._progress(f"starting both engines, {number} of {starts}")
            with ExitStack() as engines:
                new = engines.enter_context(self._own(spent, number))
                old = engines.enter_context(self._process(against, spent, number, operations))
                if new_first:
                    new.open()
                environment, operations = old.open(), old.operations
                self._check_alike(environment)
                if other is None:
                    self.baseline = Baseline((), (), environment, self._regressors())
                    other = self._begin_other(environment)
                if not new_first:
                    new.open()
                turns, olds = list[Turn](), list[Turn]()
                start = Starts(turns, olds, new_first)
                self._take_turns(spent, taken, start, [(new.turn, turns, key), (old.turn, olds, other)])
                taken.append(start)
        if other is not None:
            self._db.finish_gate_run(other, "compared with", {}, is_baseline=False)
        return taken

    @property
    def _num_starts(self) -> int:
        """Of this engine: as many as are asked for, or as the baseline has, which they are compared with, or as pay."""
        if self._options.starts is not None:
            return self._options.starts
        if self._options.against is not None:
            return len(_NEW_FIRST) * max(1, round(self._options.budget_s / _EACH_S))
        replaces = self._is_first or self._options.accepted is not None
        timed = () if self.baseline is None or replaces else self.baseline.timed
        known = min((run.num_starts for run in timed), default=0)
        return known or max(1, round(self._options.budget_s / _ALONE_S))

    def _own(self, spent: Sequence[Exposure], number: int) -> EngineProcess:
        """This engine, started for the so manieth time as its context begins."""
        return self._process(self._python, spent, number, self.model.operations, is_own=True)

    def _process(
        self,
        python: Path,
        spent: Sequence[Exposure],
        number: int,
        operations: Sequence[ModelOperation],
        *,
        is_own: bool = False,
    ) -> EngineProcess:
        """An interpreter's engine: what is told alike for both, and for the same start of every run."""
        from pytest_dooly.engine_process import EngineProcess

        return EngineProcess(
            python,
            self._engine.name,
            self._configuration,
            _batches_of(spent),
            kv_tokens=kv_tokens(self.model.limits),
            operations=operations,
            is_own=is_own,
            seed=number,
            is_bound=self._environment.clock == PERF_COUNTER,
        )

    def _check_alike(self, environment: Environment) -> None:
        if not alike(environment, self._environment):
            raise ConfigurationError(
                f"{self._options.against} has {environment}, which cannot take turns with {self._environment}: name an "
                "interpreter whose engine runs on the same device in the same way"
            )

    def _take_turns(
        self,
        spent: Sequence[Exposure],
        before: Sequence[Starts],
        taken: Starts,
        engines: Sequence[tuple[Callable[[], Turn], list[Turn], str]],
    ) -> None:
        """Until a slowdown of the limit would be seen, or these starts' part of the budget is spent."""
        starts = self._num_starts
        budget_s, fewest = self._options.budget_s / starts, fewest_of_start(starts)
        done = sum(len(each.turns) for each in before)
        start_s, ask = time.perf_counter(), float(fewest)
        while _too_few(taken.turns, fewest) or time.perf_counter() - start_s < budget_s:
            for take, turns, run in engines if len(taken.turns) % 2 else reversed(engines):
                turns.append(replace(take(), start=len(before) + 1))
                self._db.keep_gate_turn(run, done + len(turns) - 1, turns[-1])
            if len(taken.turns) >= ask:
                ask = max(ask + 1, ask * _MORE)
                if self._seen(spent, [*before, taken]):
                    break

    def _begin_other(self, environment: Environment) -> str:
        return self._db.begin_gate_run(self._series, self.model.name, environment, f"beside {self._options.commit}")

    def _seen(self, spent: Sequence[Exposure], taken: Sequence[Starts]) -> bool:
        """Whether a slowdown of the limit would be seen in every figure, and one worth failing in every operation.

        Asked of the errors alone and never of the changes: to stop when something shows would find what is not there.
        """
        # Of what was profiled the errors stay, however many turns there are: those of the turns are asked for.
        verdict = self._verdict(spent, taken, alone=self._is_first)
        limit = self._options.limit
        if verdict.disturbed is not None:
            return False
        return all(each.visible <= limit for each in verdict.figures) and all(
            each.visible <= max(3 * limit, 2 * WORTH * limit / each.share) for each in verdict.operations if each.share
        )

    @property
    def _is_first(self) -> bool:
        """Whether nothing that the gate itself has timed is there to compare with."""
        return self.baseline is None or not (self.baseline.runs or self._options.against)

    def _told(self, *, turned: bool) -> str:
        """What this run was compared with, for people."""
        baseline = self.baseline
        assert baseline is not None
        return f"{baseline.engine}, which took turns with this one" if turned else str(baseline)

    def _may_begin(self, verdict: Verdict) -> bool:
        """Whether a run may be the first baseline of the latency DB, by what it was compared with.

        One that was compared with another file takes no baseline's place; and with the figures of operations that this
        model does not have nothing could be compared ever after.
        """
        named = self._options.baseline is not None
        has_own = named and any(run.is_baseline for run in self._db.gate_runs(self._series))
        return not has_own and not verdict.unmatched

    def _judge(self, spent: Sequence[Exposure], taken: Sequence[Starts]) -> Found:
        verdict = self._verdict(spent, taken)
        turned = any(each.olds for each in taken)
        outcome = verdict.outcome()
        if self._options.accepted is not None:
            outcome = Outcome.ACCEPTED
        elif verdict.disturbed is not None:
            outcome = Outcome.UNDECIDED
        elif self.baseline is None or (self._is_first and outcome is not Outcome.DRIFT and self._may_begin(verdict)):
            outcome = Outcome.BASELINE
        return Found(
            model=self.model.name,
            environment=self._environment,
            baseline=None if self.baseline is None else self._told(turned=turned),
            before=None if self.baseline is None else self.baseline.environment,
            verdict=verdict,
            outcome=outcome,
            is_profiled=self.baseline is not None and self._is_first,
            interleaved=turned,
            is_own=self._options.baseline is None and not turned,
            accepted=self._options.accepted,
            commit=self._options.commit,
        )

    def _verdict(self, spent: Sequence[Exposure], taken: Sequence[Starts], *, alone: bool = False) -> Verdict:
        """What has changed; with `alone`, on nothing but the noise of the turns."""
        turns, olds = [turn for each in taken for turn in each.turns], [turn for each in taken for turn in each.olds]
        new, places = Timed.of(turns), {place for each in spent for place in each.seconds}
        first = self.baseline if self._is_first and not alone else None
        profiled = None if first is None else first.regressors
        runs: Sequence[Timed] = [new]
        pairs = [Timed.of_pairs(each.turns, each.olds) for each in taken if each.olds]
        if pairs:
            runs = [timed for pair in pairs for timed in pair]
        elif self.baseline is not None and not self._is_first:
            runs = self.baseline.timed
        seen = {p for p in places if new.has(p) and all(run.has(p) for run in runs)}
        if not seen:
            raise ConfigurationError(
                f"nothing that the baseline of {self.model.name} consists of is timed here: run once with "
                '--dooly-accept "why" for a new baseline'
            )
        levels_s = (
            _levels_s([old for _, old in pairs] or runs, seen) if profiled is None else _predicted_s(profiled, seen)
        )
        figures, operations = sums_of(spent, levels_s)
        if profiled is not None:
            told = partial(profiled_changes, new, levels_s, _errors(profiled, spent))
            found = Comparison(told(figures), told(operations), 0.0)
        elif pairs:
            told = partial(paired_changes, pairs, [each.new_first for each in taken])
            found = Comparison(told(figures), told(operations, apart=True), 0.0)
        else:
            found = compared(new, runs, figures, operations, () if alone else self._earlier(seen, operations))
        calm = min(sum(turn.is_calm for turn in each) for each in (turns, olds) if each)
        taken_away = 1 - float(np.median([turn.held for turn in (*turns, *olds)]))
        return judged(
            self.model,
            spent,
            found.figures,
            found.operations,
            limit=self._options.limit,
            unmatched=self._unmatched(places, seen, new),
            disturbed=taken_away if calm < FEWEST_CALM else None,
            crowded=None if olds else _crowded(new, runs),
            alike=math.expm1(found.common),
            turns=len(turns),
            spent_s=sum(turn.spent_s for turn in (*turns, *olds)),
        )

    def _earlier(self, seen: set[Place], operations: Mapping[str, Mapping[Place, float]]) -> Sequence[Earlier]:
        """What other runs since the baseline have found at these places: the same however many turns are judged."""
        if self.baseline is None:
            return ()
        places = frozenset(seen)
        if places not in self._learnt:
            having = [each for each in self.baseline.since if places <= each[0].latencies_s.keys()]
            self._learnt[places] = [
                seen_by(run, self.baseline.timed, operations, drifted=drifted) for run, drifted in having
            ]
        return self._learnt[places]

    def _unmatched(self, places: set[Place], seen: set[Place], new: Timed) -> list[str]:
        """Operations that cannot be compared: those that the baseline does not know, and those that one side lacks."""
        labels = {operation.signature.key: operation.signature.label for operation in self.model.operations}
        known, timed = self._known | {place.signature for place in places}, {p.signature for p in new.latencies_s}
        unknown = [label for key, label in labels.items() if key in timed and key not in known]
        before = () if self.baseline is None or not self.baseline.runs else self.baseline.runs[0].document["operations"]
        labels |= {each["signature"]: each["case"] for each in before}
        lacking = [f"{labels.get(p.signature, p.signature)} at {p.point}" for p in sorted(places - seen)]
        return [
            *(f"{label}, which the baseline does not know" for label in unknown),
            *(f"{place}, not timed on both sides" for place in lacking),
        ]

    @property
    def _known(self) -> set[str]:
        """Signature keys of what the baseline knows: what it timed, and what was profiled there."""
        timed = () if self.baseline is None else self.baseline.timed
        return {*self._regressors(), *(place.signature for run in timed for place in run.latencies_s)}


def is_opened_first(number: int) -> bool:
    """Whether the engine of a run is opened before the one that it takes turns with.

    Args:
        number: of the start, from 1.
    """
    return _NEW_FIRST[(number - 1) % len(_NEW_FIRST)]


def _too_few(turns: Sequence[Turn], fewest: int) -> bool:
    """Whether more are needed, so that as many are calm: at most twice as many, for a machine that never is."""
    return len(turns) < fewest or (sum(turn.is_calm for turn in turns) < fewest and len(turns) < 2 * fewest)


def _batches_of(spent: Sequence[Exposure]) -> tuple[Batch, ...]:
    """The steps that figures consist of, each once."""
    return tuple(dict.fromkeys(each.batch for each in spent))


def _crowded(new: Timed, baseline: Sequence[Timed]) -> float | None:
    """How much more of the processors other processes have than at the baseline; None where that is little."""
    more = new.others - float(np.mean([run.others for run in baseline]))
    return more if abs(more) > _CROWD else None


def _errors(regressors: Mapping[str, Regressor], spent: Sequence[Exposure]) -> dict[str, float]:
    """Expected relative error of regressors: of every operation by key, of every figure by case id."""
    errors = {key: each.error or _UNKNOWN_ERROR for key, each in regressors.items()}
    figures = {
        case_id(each): sum(each.share(key) * errors.get(key, 0.0) for key in {p.signature for p in each.seconds})
        for each in spent
    }
    return errors | figures


def _levels_s(runs: Sequence[Timed], places: set[Place]) -> dict[Place, float]:
    """Median of each place over all turns of some runs, in seconds."""
    return {place: float(np.nanmedian(np.concatenate([run.latencies_s[place] for run in runs]))) for place in places}


def _predicted_s(regressors: Mapping[str, Regressor], places: set[Place]) -> dict[Place, float]:
    """What regressors say of each place, in seconds."""
    return {
        place: max(float(regressors[place.signature].predict_s([SweepPoint.parse(place.point)])[0]), math.ulp(0.0))
        for place in places
        if place.signature in regressors
    }
