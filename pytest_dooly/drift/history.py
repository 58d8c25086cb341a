"""Figures and operations over the runs of the gate, and where they changed.

A run's level is what its verdict said of it: the baseline's, times the change found. So a picture says what the gate
said then, and runs that come later move nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.verdict import Outcome
from pytest_dooly.latency_db.db import LatencyDB

__all__ = ["ChangePoint", "History", "Track", "histories"]

Array = npt.NDArray[np.float64]

_PENALTY = 3.0
"""Of a change point, in units of the noise's variance and of the logarithm of the number of runs: the same as the
modified BIC's leading term (Zhang and Siegmund 2007)."""

_FEWEST_RUNS = 5
"""From which on runs tell how far they are apart where nothing has changed."""


@dataclass(frozen=True)
class ChangePoint:
    """From one run to the next.

    Attributes:
        run: place of the first run after it.
        relative: change of the mean level, 0.05 for 5 % slower.
    """

    run: int
    relative: float


@dataclass(frozen=True)
class Track:
    """A figure or an operation over runs.

    Attributes:
        name: for people.
        is_figure: whether it is TTFT or TPOT.
        latency_s: of the figure, or of the operation in the figure that it takes the largest share of, shape (runs,);
            not a number where a run lacks it.
        error: standard error of its logarithm, shape (runs,).
        points: where it changed, in order.
    """

    name: str
    is_figure: bool
    latency_s: Array
    error: Array
    points: tuple[ChangePoint, ...]


@dataclass(frozen=True)
class History:
    """Runs that are comparable.

    Attributes:
        runs: that have finished, the oldest first.
        unfinished: how many were killed or interrupted.
        tracks: figures, then operations by their share.
    """

    runs: tuple[GateRun, ...]
    unfinished: int
    tracks: tuple[Track, ...]


def histories(db: LatencyDB, model: str) -> list[History]:
    """Every series of runs of a model, the one that ran last at the end.

    Args:
        db: where runs are.
        model: its name.
    """
    series: dict[str, list[GateRun]] = {}
    for run in db.gate_runs():
        if run.model == model:
            series[run.series] = [*series.pop(run.series, []), run]
    return [_history(runs) for runs in series.values() if any(run.document for run in runs)]


def _history(runs: Sequence[GateRun]) -> History:
    finished = [run for run in runs if run.finished_at and run.document]  # not those that took turns with another
    finished = [run for run in finished if run.is_own] or finished  # of one baseline, where there is one
    figures: dict[str, str] = {}
    operations: dict[str, tuple[str, str]] = {}
    for run in finished:
        figures |= {figure["case"]: _name(figure) for figure in run.document.get("figures", ())}
        having = [each for each in run.document.get("operations", ()) if each.get("shares")]
        for operation in sorted(having, key=lambda each: -max(each["shares"].values())):
            home = max(operation["shares"], key=operation["shares"].__getitem__)
            operations.setdefault(operation["case"], (operation["signature"], home))
    decided = np.array([run.outcome != Outcome.UNDECIDED for run in finished])
    tracks = [_track(name, True, [_figure(run, case) for run in finished], decided) for case, name in figures.items()]
    tracks += [
        _track(case, False, [_operation(run, signature, home) for run in finished], decided)
        for case, (signature, home) in operations.items()
    ]
    return History(tuple(finished), sum(run.finished_at is None for run in runs), tuple(tracks))


_FIGURE_KEYS = {"seconds", "now_s", "error"}
"""Runs of an earlier version may lack them."""

_Level = tuple[float, float]
"""A latency in seconds and the standard error of its logarithm; not numbers where a run lacks it."""


def _figure(run: GateRun, case: str) -> _Level:
    """A figure as the run found it; of a baseline, as later runs are compared with it."""
    found = next((each for each in run.document.get("figures", ()) if each["case"] == case), None)
    if found is None or not found.keys() >= _FIGURE_KEYS:
        return math.nan, math.nan
    return sum(found["seconds"].values()) if run.is_baseline else found["now_s"], found["error"]


def _operation(run: GateRun, signature: str, home: str) -> _Level:
    """An operation's part of a figure, likewise."""
    none: dict[str, Any] = {}
    figure = next((each for each in run.document.get("figures", ()) if _name(each) == home), none)
    found = next((each for each in run.document.get("operations", ()) if each["signature"] == signature), none)
    if "seconds" not in figure or not {"change", "error"} <= found.keys():
        return math.nan, math.nan
    places = ((Place.parse(text), seconds) for text, seconds in figure["seconds"].items())
    latency_s = sum(seconds for place, seconds in places if place.signature == signature)
    return latency_s * (1.0 if run.is_baseline else 1 + found["change"]), found["error"]


def _name(figure: Mapping[str, Any]) -> str:
    return f"{figure['figure'].upper()} of {figure['workload']}"


def _track(name: str, is_figure: bool, levels: Sequence[_Level], decided: npt.NDArray[np.bool_]) -> Track:
    """Levels with the points where they change; what a run could not tell from the machine's doing makes none."""
    latency_s, error = np.array(levels).T
    return Track(name, is_figure, latency_s, error, _points(np.where(decided, np.log(latency_s), np.nan), error))


def _points(logs: Array, errors: Array) -> tuple[ChangePoint, ...]:
    """Where the level changes: optimal partitioning, PELT (Killick et al. 2012), of what is in units of its noise.

    Noise is what the turns of a run say of it, or what runs that follow each other differ by where that is more; of
    fewer runs nobody knows.
    """
    known = np.flatnonzero(np.isfinite(logs))
    if len(known) < _FEWEST_RUNS:
        return ()
    import ruptures

    values = logs[known]
    between = 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    noise = max(float(np.nanmedian(errors[known])), between)
    search = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(values[:, None] / noise)
    ends = search.predict(pen=_PENALTY * math.log(len(known)))
    bounds = [0, *ends]
    means = [float(np.mean(values[low:high])) for low, high in itertools.pairwise(bounds)]
    return tuple(
        ChangePoint(int(known[end]), math.expm1(after - before))
        for end, (before, after) in zip(ends, itertools.pairwise(means), strict=False)
    )
