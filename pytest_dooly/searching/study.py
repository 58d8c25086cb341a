"""A search: candidates handed to workers, each outcome kept at once: one that is killed goes on where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import device_named, serving_limits
from pytest_dooly.core.environment import content_hash
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import DocumentError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.published.kernels import FEATURES_VERSION
from pytest_dooly.searching.candidate import Candidate, Grid, Place, Trial
from pytest_dooly.searching.chooser import Chooser, place_of
from pytest_dooly.searching.evaluate import Question
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.workers import Workers

__all__ = ["Finished", "Traced", "known_outcomes", "run", "trials_of"]

_FORMAT = 5
"""Of outcomes: raised when the same candidate would come to another one for a reason of ours."""


@dataclass(frozen=True)
class Traced:
    """A model as it was traced for the candidates of one set of options.

    Attributes:
        name: that it was asked for by.
        options: of the trace.
        model: one rank of it.
    """

    name: str
    options: ServingOptions
    model: ServedModel


@dataclass(frozen=True)
class Finished:
    """How far a search has come.

    Attributes:
        done: candidates with an outcome, those known from before included.
        total: candidates that will have one at most.
        outcome: the latest.
    """

    done: int
    total: int
    outcome: Outcome


def trials_of(grid: Grid, traced: Sequence[Traced], question: Question, db: LatencyDB) -> list[Trial]:
    """Every candidate of a grid, those that share step times one after the other.

    Args:
        grid: that is asked for.
        traced: models with the options of each trace.
        question: what is asked of every candidate.
        db: what predictions rest on.
    """
    asked = _asked(question)
    rests_on = {name: db.latencies_of(device_named(name).product) for name in grid.devices}
    trials = []
    for device in grid.devices:
        for each in traced:
            alone = dataclasses.replace(grid, devices=[device])
            candidates = alone.candidates(each.name, each.options, each.model.limits.max_model_len)
            widest = _widest(each, device, candidates, question)
            captured = {candidate: _captured(candidate, each.options) for candidate in candidates}
            places = {
                most: _place(each, device, dataclasses.replace(widest, max_captured=most))
                for most in set(captured.values())
            }
            for candidate in sorted(candidates, key=captured.__getitem__):
                place = places[captured[candidate]]
                own = [
                    candidate.to_json(),
                    each.model.key,
                    place.max_model_len,
                    each.options.max_captured,
                    rests_on[device],
                ]
                trials.append(Trial(candidate, place, content_hash([_FORMAT, FEATURES_VERSION, asked, *own])))
    return trials


def known_outcomes(trials: Sequence[Trial], db: LatencyDB) -> dict[str, Outcome]:
    """What is known from before, by key; what is damaged or of another version is found again.

    Args:
        trials: whose outcomes are asked for.
        db: where they are.
    """
    known: dict[str, Outcome] = {}
    for key, document in db.load_search_outcomes(trial.key for trial in trials).items():
        with suppress(DocumentError):
            known[key] = Outcome.from_json(document)
    return known


def run(
    chooser: Chooser,
    workers: Workers,
    db: LatencyDB,
    *,
    known: Mapping[str, Outcome],
    total: int,
    progress: Callable[[Finished], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Evaluates what the chooser hands out; returns all outcomes by key.

    Args:
        chooser: of candidates.
        workers: that evaluate them.
        db: where each outcome is kept as soon as it is there.
        known: outcomes from before.
        total: number of candidates that will have an outcome at most.
        progress: called after each candidate.

    Raises:
        DatabaseError: an outcome cannot be kept.
        WorkerError: workers went away; what is finished is kept.
    """
    outcomes = dict(known)
    under_way: dict[Future[Outcome], tuple[int, Trial]] = {}
    places: dict[int, str] = {}
    free = list(range(workers.lanes))
    while True:
        while free and (trial := chooser.next(places.get(free[0]))) is not None:
            lane = free.pop(0)
            places[lane] = place_of(trial)
            under_way[workers.submit(lane, trial)] = lane, trial
        if not under_way:
            return outcomes
        for future in _ended(under_way):
            lane, trial = under_way.pop(future)
            outcome = future.result()
            db.save_search_outcome(trial.key, str(trial.candidate), outcome.to_json())
            chooser.tell(trial, outcome)
            outcomes[trial.key] = outcome
            free.append(lane)
            progress(Finished(len(outcomes), total, outcome))


def _ended(under_way: Mapping[Future[Outcome], object]) -> Iterator[Future[Outcome]]:
    """What has ended, without a failure first: what is finished is kept before anything is raised."""
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    yield from sorted(done, key=lambda future: future.exception() is not None)


def _captured(candidate: Candidate, options: ServingOptions) -> int:
    """Most tokens of a step that a candidate replays from a graph, which follows from the most requests of one."""
    return Limits(candidate.max_num_tokens, candidate.max_num_seqs, 1, options.max_captured).captured_tokens


def _widest(traced: Traced, device: str, candidates: Sequence[Candidate], question: Question) -> Limits:
    """Of the widest steps, and of requests as long as the traffic's: tables of step times are filled no further."""
    max_model_len = traced.model.limits.max_model_len
    usual = serving_limits(device_named(device), ServingOptions(), max_model_len)
    return Limits(
        max(usual.max_num_tokens, *(each.max_num_tokens for each in candidates)),
        max(usual.max_num_seqs, *(each.max_num_seqs for each in candidates)),
        min(question.traffic.longest() + 1, max_model_len),
    )


def _place(traced: Traced, device: str, limits: Limits) -> Place:
    model = dataclasses.replace(traced.model, limits=limits)
    return Place(model, device_named(device), traced.model.limits.max_model_len)


def _asked(question: Question) -> str:
    """A content hash of what is asked of every candidate."""
    return content_hash(msgspec.to_builtins(question))
