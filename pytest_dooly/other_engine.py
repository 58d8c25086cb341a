"""Another interpreter's engine that takes turns with this process', asked by lines of JSON.

It runs this very code, from a folder that holds nothing else, on its own engine and its own PyTorch; it traces the
model itself, since another version may run it by other operations. Its import and its trace take most of a start, so
that several do both at once and are opened one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import torch

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.turn import Turn
from pytest_dooly.engine.vllm.processes import OwnProcess
from pytest_dooly.errors import DoolyError, EngineError, reason_of

if TYPE_CHECKING:
    from pytest_dooly.timing.turns import Turns

__all__ = ["OtherEngine", "main"]


class OtherEngine(AbstractContextManager["OtherEngine"]):
    """The engine of another interpreter, while its context lasts: traced as that begins, running once it is open."""

    def __init__(
        self,
        python: Path,
        engine: str,
        configuration: ModelConfiguration,
        batches: Sequence[Batch],
        *,
        kv_tokens: int,
    ) -> None:
        """Starts nothing yet.

        Args:
            python: interpreter that has the engine, and what pytest-dooly needs.
            engine: name of its adapter.
            configuration: what is served.
            batches: what the steps work on.
            kv_tokens: tokens that the KV cache must hold at once.
        """
        self._python = python
        self._asked = {
            "engine": engine,
            "name": configuration.name,
            "directory": configuration.directory and str(configuration.directory.resolve()),
            "options": dataclasses.asdict(configuration.options),
            "batches": [str(batch) for batch in batches],
            "kv_tokens": kv_tokens,
        }

    def __enter__(self) -> Self:
        """Has it import and trace, and does not wait for it.

        Raises:
            EngineError: there is no such interpreter.
        """
        with ExitStack() as files:
            folder = Path(files.enter_context(tempfile.TemporaryDirectory()))
            # A folder of its own: beside this package lie others, of versions that are not the other interpreter's.
            (folder / "pytest_dooly").symlink_to(Path(__file__).parent)
            try:
                self._process = OwnProcess(
                    [str(self._python), "-m", "pytest_dooly.other_engine"],
                    folder / "log",
                    {
                        "PYTHONPATH": str(folder),
                        # As many threads as there are here: vLLM would keep a core for itself.
                        "OMP_NUM_THREADS": str(torch.get_num_threads()),
                        # It is ended by a signal, and leaves its files behind.
                        "TMPDIR": str(folder),
                    },
                )
            except OSError as error:
                raise EngineError(f"cannot run {self._python} ({error.strerror}): name a Python interpreter") from error
            files.callback(self._process.end)
            self._process.tell(json.dumps(self._asked))
            self._files = files.pop_all()
        return self

    def open(self) -> Environment:
        """Starts the engine; returns what its latencies are true for.

        Raises:
            EngineError: it does not trace or start; says why.
        """
        environment = self._read(self._asked)["environment"]
        self._ask({"open": True})
        return Environment(**environment)

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def turn(self) -> Turn:
        """One turn there.

        Raises:
            EngineError: an operation raised there, or it has died.
        """
        return Turn.from_json(self._ask({"turn": True}))

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        self._process.tell(json.dumps(question))
        return self._read(question)

    def _read(self, question: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._process.answer()
        if not answer:
            raise EngineError(
                f"the engine of {self._python} has ended; it needs what pytest-dooly needs "
                f"(pip install pytest-dooly there), and its last lines are:\n{self._process.last_lines()}"
            )
        try:
            document: dict[str, Any] = json.loads(answer)
        except ValueError:
            document = {}
        if "error" in document:
            raise EngineError(f"the engine of {self._python}: {document['error']}")
        if not document or document.keys() == question.keys():
            raise EngineError(f"{self._python} answers as no engine does ({answer[:60]}): name a Python interpreter")
        return document


def main() -> None:
    """Answers the lines of standard input, until it ends."""
    # What an engine writes to standard output is no answer.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _serve(sys.stdin, answers)


def _serve(questions: TextIO, answers: TextIO) -> None:
    other = None
    for line in questions:
        question, answer = json.loads(line), dict[str, Any]()
        try:
            if other is None:
                other = _Other(question)
                answer = {"environment": dataclasses.asdict(other.environment)}
            elif "open" in question:
                other.open()
                answer = {"opened": True}
            else:
                answer = other.turns.turn().to_json()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is told
            answer = {"error": str(error) if isinstance(error, DoolyError) else reason_of(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Other:
    """What answers: a model that is traced, then an engine that runs it."""

    turns: Turns

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from pytest_dooly.core.signature import model_operations
        from pytest_dooly.engine import load_engine
        from pytest_dooly.tracing.trace import trace

        directory = None if asked["directory"] is None else Path(asked["directory"])
        self._configuration = ModelConfiguration(asked["name"], directory, ServingOptions(**asked["options"]))
        self._engine = load_engine(asked["engine"])
        self.environment = self._engine.environment(self._configuration)
        self._operations = model_operations(trace(self._engine, self._configuration)[0])
        self._batches, self._kv_tokens = [Batch.parse(text) for text in asked["batches"]], asked["kv_tokens"]

    def open(self) -> None:
        from pytest_dooly.timing.clock import Clocks
        from pytest_dooly.timing.turns import Turns

        session = self._engine.open(self._configuration, isolating=self._operations, kv_tokens=self._kv_tokens)
        self.turns = Turns(session, self._operations, self._batches, Clocks(self.environment))


if __name__ == "__main__":
    main()
