"""Candidates as tasks on a Ray cluster: more cores than one machine has, the latency DB shipped once a node."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.environment import content_hash
from pytest_dooly.errors import DatabaseError, MissingExtraError, WorkerError
from pytest_dooly.searching.candidate import Trial
from pytest_dooly.searching.evaluate import Evaluator, Question
from pytest_dooly.searching.outcome import Outcome

__all__ = ["RayWorkers"]

_PATIENCE_S = 10.0
"""For an address to answer."""

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
            raise WorkerError(f"there is no Ray cluster at {address} ({_first(error)}): name another --ray") from error
        self._task = ray.remote(max_retries=_RETRIES, retry_exceptions=False)(_evaluated)

    @property
    def lanes(self) -> int:
        """Cores of the cluster when it was joined."""
        return self._cores

    def submit(self, lane: int, trial: Trial) -> Future[Outcome]:
        """See `Workers.submit`; which node it runs on is the cluster's to decide."""
        future: Future[Outcome] = Future()
        try:
            reference = self._task.remote(self._db, self._name, self._question, trial)
            reference.future().add_done_callback(lambda done: self._hand_on(done, future))
        except Exception as error:  # noqa: BLE001 - Ray's own have no base but this
            future.set_exception(_gone(error))
        return future

    def close(self) -> None:
        """Leaves the cluster, as far as it was joined here; tasks that run end with that."""
        if self._joined:
            self._ray.shutdown()

    def _hand_on(self, done: Future[Any], future: Future[Outcome]) -> None:
        error = done.exception()
        if error is None:
            future.set_result(Outcome.from_json(done.result()))
            return
        cause = getattr(error, "cause", None)
        future.set_exception(cause if isinstance(cause, DatabaseError) else _gone(error))


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
    return WorkerError(f"the Ray cluster went away ({_first(error)}): run again; what is finished is kept")


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
