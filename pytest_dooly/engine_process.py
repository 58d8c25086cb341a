"""An engine in a process of its own that takes turns, asked by lines of JSON: of this interpreter, or of another one.

It runs this very code, from a folder that holds nothing else, on its own engine and its own PyTorch. Another
interpreter's traces the model itself at its first start, since another version may run it by other operations; import
and trace take most of a start, so that several do both at once and are opened one after the other.

Python lays out its dictionaries by a hash that it draws anew at every start unless it is told one, and threads move
from core to core unless they are bound: with llama-tiny on two cores single operations take 3 to 5 % more or less by
the first, from start to start, and by the other from second to second. So engines that are compared are told the same
seed, and another one at each of several starts, lest one layout decide (common random numbers; what a layout does to a
program: Mytkowicz et al. 2009).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import torch

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.signature import ModelOperation, model_operations
from pytest_dooly.core.turn import Turn
from pytest_dooly.engine.vllm.processes import OwnProcess
from pytest_dooly.errors import DoolyError, EngineError, reason_of

if TYPE_CHECKING:
    from pytest_dooly.timing.turns import Turns

__all__ = ["BrokenOperation", "EngineProcess", "answers", "main"]


class BrokenOperation(Exception):  # noqa: N818 - no remedy is known
    """An operation that cannot be timed; says which error it raised."""


class EngineProcess(AbstractContextManager["EngineProcess"]):
    """The engine of an interpreter, while its context lasts: imported as that begins, running once it is open.

    Attributes:
        operations: of the model; once it is open, as that interpreter's engine runs it.
    """

    def __init__(
        self,
        python: Path,
        engine: str,
        configuration: ModelConfiguration,
        batches: Sequence[Batch],
        *,
        kv_tokens: int,
        operations: Sequence[ModelOperation] = (),
        is_own: bool = False,
        seed: int = 0,
        is_bound: bool = False,
    ) -> None:
        """Starts nothing yet.

        Args:
            python: interpreter that has the engine, and what pytest-dooly needs.
            engine: name of its adapter.
            configuration: what is served.
            batches: what the steps work on.
            kv_tokens: tokens that the KV cache must hold at once.
            operations: of the model; none where it is to trace it.
            is_own: whether it is this one, started anew, which finds modules where this one does.
            seed: of Python's hash.
            is_bound: whether the thread that takes turns has a core to itself.
        """
        self._python, self._seed = python, seed
        self.operations = tuple(operations)
        self._own_path = [os.environ["PYTHONPATH"]] if is_own and os.environ.get("PYTHONPATH") else []
        self._has_answered = False
        self._asked = {
            "engine": engine,
            "name": configuration.name,
            "directory": configuration.directory and str(configuration.directory.resolve()),
            "options": dataclasses.asdict(configuration.options),
            "batches": [str(batch) for batch in batches],
            "kv_tokens": kv_tokens,
            "operations": [each.to_json() for each in operations],
            "is_bound": is_bound,
        }

    def __enter__(self) -> Self:
        """Has it import, and trace where it is to, and does not wait for it.

        Raises:
            EngineError: there is no such interpreter.
        """
        with ExitStack() as files:
            folder = Path(files.enter_context(tempfile.TemporaryDirectory()))
            # A folder of its own: beside this package lie others, of versions that are not the other interpreter's.
            (folder / "pytest_dooly").symlink_to(Path(__file__).parent)
            environment = {
                "PYTHONPATH": os.pathsep.join([str(folder), *self._own_path]),
                "PYTHONSAFEPATH": "1",  # what lies in the working directory is no module of the engine's
                "PYTHONHASHSEED": str(self._seed),
                # As many threads as there are here: vLLM would keep a core for itself.
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
                # It is ended by a signal, and leaves its files behind.
                "TMPDIR": str(folder),
            }
            command = [str(self._python), "-m", "pytest_dooly.engine_process"]
            try:
                self._process = OwnProcess(command, folder / "log", environment)
            except OSError as error:
                raise EngineError(f"cannot run {self._python} ({error.strerror}): name a Python interpreter") from error
            files.callback(self._process.end)
            self._process.tell(json.dumps(self._asked))
            self._files = files.pop_all()
        return self

    def open(self) -> Environment:
        """Starts the engine; returns what its latencies are true for.

        Raises:
            BrokenOperation: an operation raised.
            EngineError: it does not trace or start; says why.
        """
        about = self._read(self._asked)
        self.operations = tuple(ModelOperation.from_json(each) for each in about["operations"])
        self._ask({"open": True})
        return Environment(**about["environment"])

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def turn(self) -> Turn:
        """One turn there.

        Raises:
            BrokenOperation: an operation raised.
            EngineError: it has died.
        """
        return Turn.from_json(self._ask({"turn": True}))

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        self._process.tell(json.dumps(question))
        return self._read(question)

    def _read(self, question: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._process.answer()
        if not answer:
            ended, lines = self._process.ending(), self._process.last_lines()
            lacks = "No module named" in lines and not self._has_answered
            needs = "; it needs what pytest-dooly needs (pip install pytest-dooly there)" if lacks else ""
            raise EngineError(f"the engine of {self._python} {ended}{needs}; its last lines are:\n{lines}")
        try:
            document: dict[str, Any] = json.loads(answer)
        except ValueError:
            document = {}
        if "broken" in document:
            raise BrokenOperation(document["broken"])
        if "error" in document:
            raise EngineError(f"the engine of {self._python}: {document['error']}")
        if not document or document.keys() == question.keys():
            raise EngineError(f"{self._python} answers as no engine does ({answer[:60]}): name a Python interpreter")
        self._has_answered = True
        return document


def main() -> None:
    """Answers the lines of standard input, until it ends."""
    try:
        # What an engine writes to standard output is no answer.
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(sys.stdout.fileno()), "w") as told:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            for answer in answers(sys.stdin):
                told.write(json.dumps(answer) + "\n")
                told.flush()
    finally:
        if Path(__file__).parent.is_symlink():  # who asked has been killed, and removes nothing
            shutil.rmtree(Path(__file__).parent.parent, ignore_errors=True)


def answers(questions: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What each line is answered with: the first says what is served, others that it is to start or to take a turn.

    Args:
        questions: lines of JSON.
    """
    answering = None
    for line in questions:
        question = json.loads(line)
        try:
            if answering is None:
                answering = _Answering(question)
                yield answering.about()
            elif "open" in question:
                answering.open()
                yield {"opened": True}
            else:
                yield answering.turns.turn().to_json()
        except DoolyError as error:
            yield {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever an engine, or an operation that it runs, raises is told
            yield {"error" if answering is None else "broken": reason_of(error)}


class _Answering:
    """What answers: operations of a model, then an engine that runs them."""

    turns: Turns

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from pytest_dooly.engine import load_engine

        directory = None if asked["directory"] is None else Path(asked["directory"])
        self._configuration = ModelConfiguration(asked["name"], directory, ServingOptions(**asked["options"]))
        self._engine = load_engine(asked["engine"])
        self._environment = self._engine.environment(self._configuration)
        self._engine.prepare()
        self._operations = [ModelOperation.from_json(each) for each in asked["operations"]]
        if not self._operations:
            from pytest_dooly.tracing.trace import trace

            self._operations = list(model_operations(trace(self._engine, self._configuration)[0]))
        gc.freeze()  # what imports leave is no garbage, which vLLM looks through five times as it starts
        self._batches, self._kv_tokens = [Batch.parse(text) for text in asked["batches"]], asked["kv_tokens"]
        self._is_bound = asked["is_bound"]

    def about(self) -> dict[str, Any]:
        """What latencies there are true for, and what is timed."""
        operations = [each.to_json() for each in self._operations]
        return {"environment": dataclasses.asdict(self._environment), "operations": operations}

    def open(self) -> None:
        from pytest_dooly.timing.clock import Clocks
        from pytest_dooly.timing.turns import Turns

        session = self._engine.open(self._configuration, isolating=self._operations, kv_tokens=self._kv_tokens)
        self.turns = Turns(session, self._operations, self._batches, Clocks(self._environment))
        if self._is_bound:
            _settle()


def _settle() -> None:
    """Keeps this thread on the first processor that it may use, and all others off it; those of operations are there.

    Where the system binds no threads it does nothing.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    first, *rest = sorted(os.sched_getaffinity(0))
    for thread in psutil.Process().threads() if rest else ():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(thread.id, {first} if thread.id == threading.get_native_id() else rest)


if __name__ == "__main__":
    main()
