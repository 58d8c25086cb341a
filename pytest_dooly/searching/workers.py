"""Who evaluates candidates: this process, or several on this machine. What goes in and comes out is plain data."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from pytest_dooly.core.child_process import end_with_parent
from pytest_dooly.errors import WorkerError
from pytest_dooly.searching.candidate import Trial
from pytest_dooly.searching.evaluate import Evaluator, Question
from pytest_dooly.searching.outcome import Outcome

__all__ = ["Here", "Processes", "Workers", "local_workers"]


class Workers(Protocol):
    """Evaluate one candidate at a time in each of several lanes.

    A lane keeps the step times of the last places, so that candidates of one place are best asked of one lane.
    """

    @property
    def lanes(self) -> int:
        """How many candidates are evaluated at once."""

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        """Begins to evaluate a candidate; the future raises a DoolyError where that fails."""

    def close(self) -> None:
        """Ends without waiting for what is under way."""


class Here:
    """This process, when it is asked."""

    lanes = 1

    def __init__(self, db: Path, question: Question) -> None:
        """Begins nothing.

        Args:
            db: path of the latency DB.
            question: what is asked of every candidate.
        """
        self._evaluator = Evaluator(db, question)

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        """See `Workers.submit`; returns when it is done."""
        future: Future[Outcome] = Future()
        future.set_result(self._evaluator.evaluate(trial))
        return future

    def close(self) -> None:
        """Closes the latency DB; nothing is under way."""
        self._evaluator.close()


class Processes:
    """One process a lane, begun anew rather than forked: threads and open files of this one stay here."""

    def __init__(self, db: Path, question: Question, *, jobs: int) -> None:
        """Begins the processes.

        Args:
            db: path of the latency DB, which each opens for itself.
            question: what is asked of every candidate.
            jobs: number of processes.
        """
        context = multiprocessing.get_context("spawn")
        self._pools: Sequence[ProcessPoolExecutor] = [
            ProcessPoolExecutor(1, context, initializer=_begin, initargs=(db, question)) for _ in range(jobs)
        ]

    @property
    def lanes(self) -> int:
        """Number of processes."""
        return len(self._pools)

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        """See `Workers.submit`."""
        future: Future[Outcome] = Future()
        try:
            inner = self._pools[lane].submit(_evaluated, trial)
        except BrokenProcessPool as error:
            future.set_exception(_lost(error))
            return future
        inner.add_done_callback(lambda done: _hand_on(done, future))
        return future

    def close(self) -> None:
        """Ends without waiting for what is under way."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
            # A pool waits for what runs, however long that takes; a search that is interrupted does not.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()


def local_workers(db: Path, question: Question, jobs: int) -> Workers:
    """So many at once on this machine.

    Args:
        db: path of the latency DB.
        question: what is asked of every candidate.
        jobs: how many; with 1 in this process.
    """
    return Here(db, question) if jobs == 1 else Processes(db, question, jobs=jobs)


_evaluator: Evaluator | None = None
"""Of a process that `Processes` has begun."""


def _begin(db: Path, question: Question) -> None:
    global _evaluator
    end_with_parent()
    _evaluator = Evaluator(db, question)


def _evaluated(trial: Trial) -> Outcome:
    assert _evaluator is not None
    return _evaluator.evaluate(trial)


def _hand_on(done: Future[Outcome], future: Future[Outcome]) -> None:
    if done.cancelled():
        future.cancel()
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(_lost(error) if isinstance(error, BrokenProcessPool) else error)


def _lost(error: BaseException) -> WorkerError:
    return WorkerError(
        f"a process that evaluates candidates ended ({error}): run again, with fewer --jobs where memory is short; "
        "what is finished is kept"
    )
