"""Figures and operations over the runs of the gate, and where they changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.gate_run import GateRun
from pytest_dooly.core.turn import Place
from pytest_dooly.drift.change import BLOCKS, Timed, levels
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
        latency_s: at one speed of the machine, shape (runs,); not a number where a run lacks it.
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
    return [_history(db, runs) for runs in series.values() if any(run.document for run in runs)]


def _history(db: LatencyDB, runs: Sequence[GateRun]) -> History:
    judged = [run for run in runs if run.finished_at and run.document]  # not those that took turns with another
    finished = [(run, turns) for run in judged if len(turns := db.gate_turns(run.key)) >= BLOCKS]
    timed = [Timed.of(turns) for _, turns in finished]
    sums: dict[str, dict[Place, float]] = {}
    figures: dict[str, bool] = {}
    for (run, _), own in zip(finished, timed, strict=True):
        document = run.document
        for figure in document.get("figures", ()):
            name = f"{figure['figure'].upper()} of {figure['workload']}"
            seconds = {Place.parse(text): s for text, s in figure["seconds"].items()}
            if name not in sums:
                sums[name], figures[name] = _at_level(seconds, own), True
        for operation in sorted(document.get("operations", ()), key=lambda each: -max(each["shares"].values())):
            if operation["case"] not in sums:
                places = _common(operation["signature"], timed)
                sums[operation["case"]], figures[operation["case"]] = dict.fromkeys(places, 1.0), False
    found = levels(timed, {name: weights for name, weights in sums.items() if weights})
    tracks = [
        Track(name, figures[name], np.exp(logs), errors, _points(logs, errors))
        for name, (logs, errors) in found.items()
    ]
    return History(
        tuple(run for run, _ in finished),
        sum(run.finished_at is None for run in runs),
        tuple(sorted(tracks, key=lambda each: not each.is_figure)),
    )


def _common(signature_key: str, timed: Sequence[Timed]) -> set[Place]:
    """Where every run that has an operation has timed it."""
    by_run = [{place for place in run.latencies_s if place.signature == signature_key} for run in timed]
    return set[Place].intersection(*filter(None, by_run)) if any(by_run) else set()


def _at_level(seconds: dict[Place, float], run: Timed) -> dict[Place, float]:
    """Weights of a figure's places that make their latencies add up to it in a run; none where it lacks one."""
    if not seconds.keys() <= run.latencies_s.keys():
        return {}
    return {place: s / float(np.nanmedian(run.latencies_s[place])) for place, s in seconds.items()}


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
