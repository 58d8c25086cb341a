"""What a run is compared with: earlier runs of the gate, else latencies that were profiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.drift.change import Timed
from pytest_dooly.drift.verdict import Outcome
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.fit import fit
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.stored import regressors_of

__all__ = ["Baseline", "alike", "baseline_of", "fitted_to", "profiled_environment"]

_MOST_RUNS = 5
"""Runs that a baseline is made of: the first and those that passed after it, so that they tell how far runs are apart
when nothing has changed. No more, or a baseline would follow what creeps."""

_MOST_SINCE = 12
"""Other runs since then that are looked at: reading one takes a tenth of a second."""


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with.

    Attributes:
        runs: of the gate, the oldest first; empty for latencies that were profiled.
        timed: turns of those.
        since: turns of the latest other runs since it began, each with the operations that had drifted, by signature
            key: they tell how unequally operations notice what slows all of them.
        environment: that it is true for.
        regressors: of that environment, by signature key; empty where none are kept of it.
    """

    runs: tuple[GateRun, ...]
    timed: tuple[Timed, ...]
    environment: Environment
    regressors: Mapping[str, Regressor]
    since: tuple[tuple[Timed, frozenset[str]], ...] = ()

    @property
    def engine(self) -> str:
        """What served it, for people."""
        known = self.environment
        return f"{known.engine} {known.engine_version}, torch {known.torch_version}"

    def __str__(self) -> str:
        if not self.runs:
            return f"latencies profiled with {self.engine}"
        commit = f" at {self.runs[0].commit[:12]}" if self.runs[0].commit else ""
        number = f"{len(self.runs)} runs" if len(self.runs) > 1 else "the run"
        return f"{number} from {self.runs[0].started_at[:16]}{commit}, {self.engine}"


def alike(one: Environment, other: Environment) -> bool:
    """Whether latencies of two environments may be compared: of one device, timed alike."""
    names = ("device", "device_count", "engine", "clock", "cache_mode", "execution")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def baseline_of(db: LatencyDB, series: str) -> Baseline | None:
    """The latest baseline among the runs of the gate, with those that passed after it.

    Args:
        db: where they are.
        series: of runs that are comparable.
    """
    finished = [run for run in db.gate_runs(series) if run.finished_at is not None]
    first = max((place for place, run in enumerate(finished) if run.is_baseline), default=None)
    if first is None:
        return None
    begin = finished[first]
    passed = [
        run
        for run in finished[first + 1 :]
        if run.outcome == Outcome.PASSED and _is_alike(run, begin) and _as_before(run)
    ]
    runs = (begin, *passed[: _MOST_RUNS - 1])
    timed = tuple(Timed.of(db.gate_turns(run.key)) for run in runs)
    others = [run for run in finished[first + 1 :] if run not in runs and _is_alike(run, begin)][-_MOST_SINCE:]
    since = tuple((Timed.of(db.gate_turns(run.key)), _drifted(run)) for run in others)
    return Baseline(runs, timed, begin.environment, regressors_of(db, begin.environment), since)


def _is_alike(run: GateRun, begin: GateRun) -> bool:
    return run.environment.key == begin.environment.key and "operations" in run.document and run.is_own


def _drifted(run: GateRun) -> frozenset[str]:
    return frozenset(each["signature"] for each in run.document["operations"] if each["slower"])


def _as_before(run: GateRun) -> bool:
    """Whether a run that passed is no speed-up either, which would make the baseline two things at once."""
    return all(abs(figure["change"]) < run.document["limit"] for figure in run.document["figures"])


def profiled_environment(db: LatencyDB, model: ServedModel, environment: Environment) -> Environment | None:
    """The environment of the same device that has most of a model's operations profiled; another rather than this.

    Args:
        db: to look in.
        model: what is served.
        environment: this one.
    """
    keys = {operation.signature.key for operation in model.operations}
    known = {each: len(keys & regressors_of(db, each).keys()) for each in db.environments() if alike(each, environment)}
    best = max(known.items(), key=lambda pair: (pair[1], pair[0].key != environment.key), default=None)
    return best[0] if best is not None and best[1] else None


def fitted_to(model: ServedModel, measured: Mapping[str, Mapping[SweepPoint, Measurement]]) -> dict[str, Regressor]:
    """Regressors of a model's operations from measurements that are in no latency DB, by signature key.

    Args:
        model: what is served.
        measured: by signature key and sweep point.
    """
    signatures = [operation.signature for operation in model.operations]
    return {each.key: fit(each, measured[each.key]) for each in signatures if measured.get(each.key)}
