"""Another interpreter's engine that takes turns with this process', asked by lines of JSON.

It runs this very code, from a folder that holds nothing else, on its own engine and its own PyTorch; it traces the
model itself, since another version may run it by other operations.
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
from typing import Any, Self, TextIO

import torch

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions
from pytest_dooly.core.environment import Environment
from pytest_dooly.core.turn import Turn
from pytest_dooly.engine.vllm.processes import OwnProcess
from pytest_dooly.errors import DoolyError, EngineError, reason_of

__all__ = ["OtherEngine", "main"]


class OtherEngine(AbstractContextManager["OtherEngine"]):
    """The engine of another interpreter, while its context lasts.

    Attributes:
        environment: that its latencies are true for.
    """

    environment: Environment

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
        """Starts it.

        Raises:
            EngineError: it does not start; says why.
        """
        with ExitStack() as files:
            folder = Path(files.enter_context(tempfile.TemporaryDirectory()))
            # A folder of its own: beside this package lie others, of versions that are not the other interpreter's.
            (folder / "pytest_dooly").symlink_to(Path(__file__).parent)
            try:
                self._process = OwnProcess(
                    [str(self._python), "-m", "pytest_dooly.other_engine"],
                    folder / "log",
                    # As many threads as there are here: vLLM would keep a core for itself.
                    {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(torch.get_num_threads())},
                )
            except OSError as error:
                raise EngineError(f"cannot run {self._python} ({error.strerror}): name a Python interpreter") from error
            files.callback(self._process.end)
            self.environment = Environment(**self._answer(self._asked)["environment"])
            self._files = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def turn(self) -> Turn:
        """One turn there.

        Raises:
            EngineError: an operation raised there, or it has died.
        """
        return Turn.from_json(self._answer({"turn": True}))

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._process.ask(json.dumps(question))
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
    turns = None
    for line in questions:
        question = json.loads(line)
        try:
            if turns is None:
                turns, answer = _opened(question)
            else:
                answer = turns.turn().to_json()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is told
            answer = {"error": str(error) if isinstance(error, DoolyError) else reason_of(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _opened(asked: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from pytest_dooly.core.signature import model_operations
    from pytest_dooly.engine import load_engine
    from pytest_dooly.timing.clock import Clocks
    from pytest_dooly.timing.turns import Turns
    from pytest_dooly.tracing.trace import trace

    directory = None if asked["directory"] is None else Path(asked["directory"])
    configuration = ModelConfiguration(asked["name"], directory, ServingOptions(**asked["options"]))
    engine = load_engine(asked["engine"])
    environment = engine.environment(configuration)
    traced, _ = trace(engine, configuration)
    operations = model_operations(traced)
    session = engine.open(configuration, isolating=operations, kv_tokens=asked["kv_tokens"])
    turns = Turns(session, operations, [Batch.parse(text) for text in asked["batches"]], Clocks(environment))
    return turns, {"environment": dataclasses.asdict(environment)}


if __name__ == "__main__":
    main()
