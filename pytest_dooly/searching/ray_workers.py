"""Candidates as tasks on a Ray cluster: more cores than one machine has, the latency DB shipped once a node."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.environment import content_hash
from pytest_dooly.errors import DatabaseError, MissingExtraError, WorkerError, reason_of
from pytest_dooly.searching.candidate import Trial
from pytest_dooly.searching.evaluate import Evaluator, Question
from pytest_dooly.searching.outcome import Outcome

__all__ = ["RayWorkers"]

_PATIENCE_S = 6.0
"""For an address to answer, and between the first and the last time that a cluster is asked whether it is there."""

_MOST_MISSED = 3
"""Times in a row that a cluster does not answer before it counts as gone."""

_AGAIN = "run again; what is finished is kept"

_RETRIES = 3
"""Of a candidate whose node or process goes away."""


class RayWorkers:
    """One task a candidate, as many at once as the cluster has cores.

    Every node needs this package and its dependencies. A task whose node goes away is tried again on another one.
    """

    def __init__(self, db: Path, question: Question, address: str) -> None:
        """Joins the cluster and hands it the latency DB and the question.

        Args:
            db: path of the latency DB.
            question: what is asked of every candidate.
            address: of the cluster, as in `auto`, `10.0.0.1:6379` or `ray://head:10001`.

        Raises:
            MissingExtraError: Ray is not installed.
            WorkerError: there is no cluster at the address.
        """
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("--ray needs Ray: run pip install 'pytest-dooly[ray]'")
        import ray

        self._ray = ray
        self._joined = not ray.is_initialized()
        try:
            _check_reachable(address)
            if self._joined:
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            self._cores = max(int(ray.cluster_resources().get("CPU", 0)), 1)
            content = _content(db)
            name = content_hash([db.stat().st_size, db.stat().st_mtime_ns, os.getpid()])
            self._db, self._question, self._name = ray.put(content), ray.put(question), name
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise WorkerError(
                f"there is no Ray cluster at {address} ({reason_of(error)}): name another --ray"
            ) from error
        self._pending: set[Future[Outcome]] = set()
        self._closed = threading.Event()
        head = ray.get_runtime_context().gcs_address
        threading.Thread(target=self._watch, args=(head,), daemon=True).start()
        self._task = ray.remote(max_retries=_RETRIES, retry_exceptions=False)(_evaluated)

    @property
    def lanes(self) -> int:
        """Cores of the cluster when it was joined."""
        return self._cores

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        """See `Workers.submit`; which node it runs on is the cluster's to decide."""
        future: Future[Outcome] = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        try:
            reference = self._task.remote(self._db, self._name, self._question, trial)
            reference.future().add_done_callback(lambda done: self._hand_on(done, future))
        except Exception as error:  # noqa: BLE001 - Ray's own have no base but this
            future.set_exception(_gone(error))
        return future

    def close(self) -> None:
        """Leaves the cluster, as far as it was joined here; tasks that run end with that."""
        if self._joined and not self._closed.is_set():  # of a cluster that is gone Ray waits for an answer
            self._ray.shutdown()
        self._closed.set()

    def _watch(self, head: str) -> None:
        """Fails what is under way where the cluster's head does not answer: Ray itself waits, and ends the process."""
        missed = 0
        while missed < _MOST_MISSED:
            if self._closed.wait(_PATIENCE_S / _MOST_MISSED):
                return
            try:
                _check_reachable(head)
                missed = 0
            except OSError:
                missed += 1
        self._closed.set()
        for future in list(self._pending):
            _fail(future, WorkerError(f"the Ray cluster went away ({head} does not answer): {_AGAIN}"))

    def _hand_on(self, done: Future[Any], future: Future[Outcome]) -> None:
        error = done.exception()
        if error is None:
            with suppress(InvalidStateError):
                future.set_result(Outcome.from_json(done.result()))
            return
        cause = getattr(error, "cause", None)
        _fail(future, cause if isinstance(cause, DatabaseError) else _gone(error))


def _evaluated(content: npt.NDArray[np.uint8], name: str, question: Question, trial: Trial) -> dict[str, Any]:
    """A candidate's outcome as plain data, on whatever node; the next one of a process finds what this one has read."""
    if name not in _evaluators:
        _evaluators[name] = Evaluator(_placed(content, name), question)
    return _evaluators[name].evaluate(trial).to_json()


_evaluators: dict[str, Evaluator] = {}
"""Of a process of the cluster, by the search that it works for."""


def _placed(content: npt.NDArray[np.uint8], name: str) -> Path:
    """The latency DB as a file of this node, written by the first task that comes there."""
    folder = Path(tempfile.gettempdir()) / f"dooly-{name}-{os.getuid()}"
    path = folder / "latency.db"
    if not path.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(content.data)
        Path(file.name).rename(path)  # whole or not at all, whichever process comes first
    return path


def _content(db: Path) -> npt.NDArray[np.uint8]:
    """The file as it is at one moment; as an array, which the tasks of a node share."""
    from pytest_dooly.latency_db.file import copy_of

    with copy_of(db) as copy:
        return np.fromfile(copy, dtype=np.uint8)


def _check_reachable(address: str) -> None:
    """Raises an OSError where nobody listens: Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()


def _gone(error: BaseException) -> WorkerError:
    return WorkerError(f"the Ray cluster went away ({reason_of(error)}): {_AGAIN}")


def _fail(future: Future[Outcome], error: Exception) -> None:
    with suppress(InvalidStateError):  # it has just ended
        future.set_exception(error)
